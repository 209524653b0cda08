"""AutoAugment and RandAugment, in the variants that are in circulation, told apart by name.

A policy draws, for each slot of each picture, an operation and its magnitude in the operation's own unit; applying
them knows nothing of policies. The tables are facts of the papers' code, held against torchvision's in a test.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.geometry import sizes_in
from mmcon_views.image.pixels import change_rows, copy_as_float, own_float
from mmcon_views.image.policy_dialects import PILLOW, TENSORFLOW, Fill, Functions
from mmcon_views.image.policy_operations import GEOMETRIC, OPERATIONS

NAMES = tuple(OPERATIONS)
ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
NO_MAGNITUDE = ("Identity", "AutoContrast", "Equalize", "Invert")


def parse(table: str) -> tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...]:
    """Read sub-policies, one a line: twice an operation, its probability and its level (- where it has none)."""
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(
        tuple((row[i], float(row[i + 1]), 0 if row[i + 2] == "-" else int(row[i + 2])) for i in (0, 3))  # type: ignore[misc]
        for row in rows
    )


POLICIES = {
    "imagenet": parse("""
        Posterize .4 8     Rotate .6 9
        Solarize .6 5      AutoContrast .6 -
        Equalize .8 -      Equalize .6 -
        Posterize .6 7     Posterize .6 6
        Equalize .4 -      Solarize .2 4
        Equalize .4 -      Rotate .8 8
        Solarize .6 3      Equalize .6 -
        Posterize .8 5     Equalize 1 -
        Rotate .2 3        Solarize .6 8
        Equalize .6 -      Posterize .4 6
        Rotate .8 8        Color .4 0
        Rotate .4 9        Equalize .6 -
        Equalize 0 -       Equalize .8 -
        Invert .6 -        Equalize 1 -
        Color .6 4         Contrast 1 8
        Rotate .8 8        Color 1 2
        Color .8 8         Solarize .8 7
        Sharpness .4 7     Invert .6 -
        ShearX .6 5        Equalize 1 -
        Color .4 0         Equalize .6 -
        Equalize .4 -      Solarize .2 4
        Solarize .6 5      AutoContrast .6 -
        Invert .6 -        Equalize 1 -
        Color .6 4         Contrast 1 8
        Equalize .8 -      Equalize .6 -
    """),
    "cifar10": parse("""
        Invert .1 -        Contrast .2 6
        Rotate .7 2        TranslateX .3 9
        Sharpness .8 1     Sharpness .9 3
        ShearY .5 8        TranslateY .7 9
        AutoContrast .5 -  Equalize .9 -
        ShearY .2 7        Posterize .3 7
        Color .4 3         Brightness .6 7
        Sharpness .3 9     Brightness .7 9
        Equalize .6 -      Equalize .5 -
        Contrast .6 7      Sharpness .6 5
        Color .7 7         TranslateX .5 8
        Equalize .3 -      AutoContrast .4 -
        TranslateY .4 3    Sharpness .2 6
        Brightness .9 6    Color .2 8
        Solarize .5 2      Invert 0 -
        Equalize .2 -      AutoContrast .6 -
        Equalize .2 -      Equalize .6 -
        Color .9 9         Equalize .6 -
        AutoContrast .8 -  Solarize .2 8
        Brightness .1 3    Color .7 0
        Solarize .4 5      AutoContrast .9 -
        TranslateY .9 9    TranslateY .7 9
        AutoContrast .9 -  Solarize .8 3
        Equalize .8 -      Invert .1 -
        TranslateY .7 9    AutoContrast .9 -
    """),
    "tf-v0": parse("""
        Equalize .8 1      ShearY .8 4
        Color .4 9         Equalize .6 3
        Color .4 1         Rotate .6 8
        Solarize .8 3      Equalize .4 7
        Solarize .4 2      Solarize .6 2
        Color .2 0         Equalize .8 8
        Equalize .4 8      SolarizeAdd .8 3
        ShearX .2 9        Rotate .6 8
        Color .6 1         Equalize 1 2
        Invert .4 9        Rotate .6 0
        Equalize 1 9       ShearY .6 3
        Color .4 7         Equalize .6 0
        Posterize .4 6     AutoContrast .4 7
        Solarize .6 8      Color .6 9
        Solarize .2 4      Rotate .8 9
        Rotate 1 7         TranslateY .8 9
        ShearX 0 0         Solarize .8 4
        ShearY .8 0        Color .6 4
        Color 1 0          Rotate .6 2
        Equalize .8 4      Equalize 0 8
        Equalize 1 4       AutoContrast .6 2
        ShearY .4 7        SolarizeAdd .6 7
        Posterize .8 2     Solarize .6 10
        Solarize .6 8      Equalize .6 1
        Color .8 6         Rotate .4 5
    """),
}

# As timm's users pass it on, in bytes.
IMAGENET_MEAN = (124 / 255, 116 / 255, 104 / 255)

TORCHVISION_OPERATIONS = NAMES[:14]
TF_OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
)  # fmt: skip
TIMM_OPERATIONS = tuple(name for name in TF_OPERATIONS if name != "Cutout")
COLOR_SAFE_OPERATIONS = (
    "AutoContrast", "Identity", "Rotate", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip


def torchvision_magnitude(name: str, level: Tensor, sign: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Magnitudes as torchvision bins them; `level` is the bin over the last bin, 0 to 1."""
    if name in ENHANCEMENTS:
        return 1 + sign * 0.9 * level
    if name == "Posterize":
        return torch.round(8 - 4 * level)
    if name == "Solarize":
        return 1 - level
    return sign * _geometric(name, level, 150 / 331 * height, 150 / 331 * width)


def tf_magnitude(name: str, level: Tensor, sign: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Magnitudes as TensorFlow's policies have them; `level` 0 to 1 is their 0 to 10; heights and widths are shifts."""
    if name in ENHANCEMENTS:
        return 1.8 * level + 0.1
    if name == "Posterize":
        return torch.floor(level * 4)
    if name == "Solarize":
        return torch.floor(level * 256) / 255
    if name == "SolarizeAdd":
        return torch.floor(level * 110) / 255
    return sign * _geometric(name, level, height, width)


def _geometric(name: str, level: Tensor, down: Tensor, across: Tensor) -> Tensor:
    spans: dict[str, Any] = {
        "ShearX": 0.3, "ShearY": 0.3, "TranslateX": across, "TranslateY": down, "Rotate": 30.0,
    }  # fmt: skip
    return level * spans.get(name, 0.0)


def apply_operations(
    x: Float[Tensor, "b c h w"], params: Params, fill: Fill, functions: Functions = OPERATIONS
) -> None:
    """Apply, slot by slot, the operation that each picture drew, in place; pictures that drew the same go together.

    Args:
        x: pictures, which are written over.
        params: "operation" (`b slots` int64, positions in `policy_operations.OPERATIONS`, −1 for none), "magnitude"
            (`b slots` float64, in the operation's unit), "centre" where there is a cutout (`b slots 2` float64), and
            "bicubic" where the way of resampling is drawn (`b slots` bool).
        fill: the grey, or the colour, of what geometry uncovers.
        functions: the operations by name: torchvision's, or a dialect's.
    """
    operation, magnitude = params["operation"], params["magnitude"]
    for slot in range(operation.shape[1]):
        for chosen in operation[:, slot].unique().tolist():
            name = NAMES[chosen]
            if chosen < 0 or name == "Identity":
                continue
            amounts = magnitude[:, slot, None]
            if name == "Cutout":
                amounts = torch.cat([amounts, params["centre"][:, slot]], dim=1)
            elif "bicubic" in params and name in GEOMETRIC:
                amounts = torch.cat([amounts, params["bicubic"][:, slot, None].to(amounts.dtype)], dim=1)
            function = functions[name]

            def some(pictures: Tensor, amount: Tensor, name: str = name, function: Any = function) -> Tensor:
                columns = amount.to(torch.float32)[:, :, None, None]
                if name in GEOMETRIC:
                    return function(pictures, columns, fill=fill)
                return function(pictures, columns.to(pictures.device, non_blocking=True))

            change_rows(x, operation[:, slot] == chosen, some, amounts)


@register_view("image/autoaugment", modality="image")
@final
class AutoAugment(ViewGenerator):
    """One of 25 learned pairs of operations (Cubuk et al. 2019).

    Policies "imagenet" and "cifar10" are torchvision's tables, with its ten magnitude bins, signed enhancements and
    black fill. "tf-v0" is the one that SupCon's released code uses: its own table, enhancements from .1 to 1.9, shifts
    up to 250 pixels, SolarizeAdd, grey fill.

    >>> view = mmcon.create_view("image/autoaugment", policy="cifar10")

    Args:
        policy: "imagenet", "cifar10" or "tf-v0".
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)

    def __init__(self, *, policy: str = "imagenet") -> None:
        if policy not in POLICIES:
            raise InputError("image/autoaugment", expected=f"a policy among {sorted(POLICIES)}", got=repr(policy))
        self.policy = policy

    @property
    def fill(self) -> float:
        """The grey of what geometry uncovers."""
        return 128 / 255 if self.policy == "tf-v0" else 0.0

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the pair, which of its two are applied, and their signs: `operation` and `magnitude`, `b 2` each."""
        height, width = sizes_in(meta, "image/autoaugment")
        table = POLICIES[self.policy]
        which = keys.choice("policy", len(table))
        code = torch.tensor([[NAMES.index(name) for name, _, _ in pair] for pair in table])[which]
        chance = torch.tensor([[p for _, p, _ in pair] for pair in table], dtype=torch.float64)[which]
        level = torch.tensor([[level for _, _, level in pair] for pair in table], dtype=torch.float64)[which]
        sign = 1 - 2 * keys.bernoulli("sign", 0.5, shape=(2,)).to(torch.float64)
        kept = keys.bernoulli("apply", chance, shape=(2,))
        tf = self.policy == "tf-v0"
        bins = level / (10 if tf else 9)
        shift = torch.full_like(height, 250), torch.full_like(width, 250)
        sizes = [s.to(torch.float64)[:, None].expand(-1, 2) for s in (shift if tf else (height, width))]
        magnitude = _magnitudes(tf_magnitude if tf else torchvision_magnitude, code, bins, sign, *sizes)
        return {"operation": torch.where(kept, code, -1), "magnitude": magnitude}

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Apply both operations."""
        x = own_float(batch, self.name or "image/autoaugment")
        self.apply_(x, params)
        return x

    def apply_(self, batch: Tensor, params: Params) -> None:
        """Apply both in place."""
        apply_operations(batch, params, self.fill, TENSORFLOW if self.policy == "tf-v0" else OPERATIONS)


def _magnitudes(rule: Any, code: Tensor, level: Tensor, sign: Tensor, height: Tensor, width: Tensor) -> Tensor:
    magnitude = torch.zeros_like(level)
    for number in code.unique().tolist():
        name = NAMES[number]
        if name not in NO_MAGNITUDE:
            magnitude = torch.where(code == number, rule(name, level, sign, height, width), magnitude)
    return magnitude


@register_view("image/randaugment", modality="image")
@final
class RandAugment(ViewGenerator):
    """A few operations at random at one strength (Cubuk et al. 2020), in one of four variants.

    - "torchvision": 14 operations, 2 of them, bin 9 of 31; signed enhancements; black fill.
    - "tf": TensorFlow's, used by SupCon: 16 operations and the identity, 2 of them at level 10; shifts up to 100
      pixels, cutout of up to 80 pixels a side; grey fill.
    - "timm": `rand-n2-m10-mstd0.5`: 15 operations, 2 of them, each with probability .5 and a level from a normal
      around 10 with deviation .5, clipped to 0..10; shifts up to .45 of the size; bilinear or bicubic geometry, as
      drawn; fill of ImageNet's mean colour.
    - "color-safe": the timm variant with only the operations that leave colours alone (CMC's second version).

    >>> view = mmcon.create_view("image/randaugment", variant="tf")

    Args:
        variant: "torchvision", "tf", "timm" or "color-safe".
        operations: how many, one after another.
        level: the strength: a bin of 0..30 for torchvision, 0 to 10 for the others; by default the variant's own.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)
    VARIANTS: ClassVar[dict[str, tuple[str, ...]]] = {
        "torchvision": TORCHVISION_OPERATIONS,
        "tf": (*TF_OPERATIONS, "Identity"),
        "timm": TIMM_OPERATIONS,
        "color-safe": COLOR_SAFE_OPERATIONS,
    }
    FILLS: ClassVar[dict[str, Fill]] = {
        "torchvision": 0.0, "tf": 128 / 255, "timm": IMAGENET_MEAN, "color-safe": IMAGENET_MEAN
    }  # fmt: skip
    FUNCTIONS: ClassVar[dict[str, Functions]] = {
        "torchvision": OPERATIONS, "tf": TENSORFLOW, "timm": PILLOW, "color-safe": PILLOW
    }  # fmt: skip

    def __init__(self, *, variant: str = "torchvision", operations: int = 2, level: float | None = None) -> None:
        if variant not in self.VARIANTS:
            raise InputError("image/randaugment", expected=f"a variant among {list(self.VARIANTS)}", got=repr(variant))
        highest = 30 if variant == "torchvision" else 10
        self.variant, self.operations = variant, operations
        self.level = level if level is not None else (9 if variant == "torchvision" else 10)
        if operations < 1 or not 0 <= self.level <= highest:
            raise InputError(
                "image/randaugment",
                expected=f"at least one operation, level 0 to {highest}",
                got=f"operations={operations}, level={level}",
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `operation` and `magnitude`, `b slots` each, and `centre` or `bicubic` as the variant needs it."""
        height, width = sizes_in(meta, "image/randaugment")
        slots, names = self.operations, self.VARIANTS[self.variant]
        chosen = keys.choice("operation", len(names), shape=(slots,))
        code = torch.tensor([NAMES.index(name) for name in names])[chosen]
        sign = 1 - 2 * keys.bernoulli("sign", 0.5, shape=(slots,)).to(torch.float64)
        sides = [side.to(torch.float64)[:, None].expand(-1, slots) for side in (height, width)]
        if self.variant == "torchvision":
            level = torch.full_like(sign, self.level / 30)
            return {"operation": code, "magnitude": _magnitudes(torchvision_magnitude, code, level, sign, *sides)}
        if self.variant == "tf":
            level = torch.full_like(sign, self.level / 10)
            magnitude = _magnitudes(tf_magnitude, code, level, sign, *(torch.full_like(s, 100.0) for s in sides))
            magnitude = torch.where(code == NAMES.index("Cutout"), torch.floor(level * 40), magnitude)
            centre = keys.uniform("centre", shape=(slots, 2))
            return {"operation": code, "magnitude": magnitude, "centre": centre}
        level = keys.normal("level", float(self.level), 0.5, shape=(slots,)).clamp(0, 10) / 10
        magnitude = _magnitudes(tf_magnitude, code, level, sign, *(0.45 * s for s in sides))
        kept = keys.bernoulli("apply", 0.5, shape=(slots,))
        bicubic = keys.bernoulli("bicubic", 0.5, shape=(slots,))
        return {"operation": torch.where(kept, code, -1), "magnitude": magnitude, "bicubic": bicubic}

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Apply the operations in order."""
        x = own_float(batch, self.name or "image/randaugment")
        self.apply_(x, params)
        return x

    def apply_(self, batch: Tensor, params: Params) -> None:
        """Apply them in place."""
        apply_operations(batch, params, self.FILLS[self.variant], self.FUNCTIONS[self.variant])
