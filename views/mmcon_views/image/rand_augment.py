"""RandAugment: a few random operations at one strength, as in torchvision, TensorFlow and timm.

`draw` selects operations for each image and their magnitudes in the operations' units; `apply_operations` applies them.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.pixels import copy_as_float, float_copy
from mmcon_views.image.policy_magnitudes import magnitudes, tf_magnitude, torchvision_magnitude
from mmcon_views.image.policy_operations import NAMES, OPERATIONS, Fill, Functions, apply_operations
from mmcon_views.image.policy_variants import PILLOW, TENSORFLOW
from mmcon_views.image.sizes import input_sizes

# The fill of timm's training scripts, in uint8 steps.
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


@register_view("image/randaugment", modality="image")
@final
class RandAugment(ViewGenerator):
    """A few random operations at one strength (Cubuk et al. 2020), in one of four variants.

    - "torchvision": 2 of 14 operations, bin 9 of 31; signed enhancements; black fill.
    - "tf": TensorFlow's, used by SupCon: 2 of 16 operations and the identity, level 10; translations up to 100 pixels,
      cutout up to 80 pixels per side; gray fill.
    - "timm": `rand-n2-m10-mstd0.5`: 2 of 15 operations, each with probability .5 and a level from a normal distribution
      with mean 10 and deviation .5, clipped to 0..10; translations up to .45 of the size; bilinear or bicubic geometry,
      as drawn; ImageNet's mean color as fill.
    - "color-safe": the timm variant with only the operations that do not change colors (CMC's second version).

    >>> view = mmcon.create_view("image/randaugment", variant="tf")

    Args:
        variant: "torchvision", "tf", "timm" or "color-safe".
        operations: the number of operations.
        level: the strength: a bin of 0..30 for torchvision, 0 to 10 for the others; by default that of the variant.
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
        """Draw `operation` and `magnitude`, `b slots` each, and `center` (tf) or `bicubic` (timm, color-safe)."""
        height, width = input_sizes(meta, "image/randaugment")
        slots, names = self.operations, self.VARIANTS[self.variant]
        chosen = keys.choice("operation", len(names), shape=(slots,))
        operation = torch.tensor([NAMES.index(name) for name in names])[chosen]
        sign = 1 - 2 * keys.bernoulli("sign", 0.5, shape=(slots,)).to(torch.float64)
        sides = [side.to(torch.float64)[:, None].expand(-1, slots) for side in (height, width)]
        if self.variant == "torchvision":
            level = torch.full_like(sign, self.level / 30)
            return {
                "operation": operation,
                "magnitude": magnitudes(torchvision_magnitude, operation, level, sign, *sides),
            }
        if self.variant == "tf":
            level = torch.full_like(sign, self.level / 10)
            magnitude = magnitudes(tf_magnitude, operation, level, sign, *(torch.full_like(s, 100.0) for s in sides))
            magnitude = torch.where(operation == NAMES.index("Cutout"), torch.floor(level * 40), magnitude)
            center = keys.uniform("centre", shape=(slots, 2))
            return {"operation": operation, "magnitude": magnitude, "center": center}
        # timm clips after the draw, so that half of the levels of `m10` are exactly 10.
        level = keys.normal("level", float(self.level), 0.5, shape=(slots,)).clamp(0, 10) / 10
        magnitude = magnitudes(tf_magnitude, operation, level, sign, *(0.45 * s for s in sides))
        kept = keys.bernoulli("apply", 0.5, shape=(slots,))
        bicubic = keys.bernoulli("bicubic", 0.5, shape=(slots,))
        return {"operation": torch.where(kept, operation, -1), "magnitude": magnitude, "bicubic": bicubic}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Apply the operations in order."""
        x = float_copy(batch, self.name or "image/randaugment")
        self.apply_(x, params)
        return x

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Apply them in place."""
        apply_operations(batch, params, self.FILLS[self.variant], self.FUNCTIONS[self.variant])
