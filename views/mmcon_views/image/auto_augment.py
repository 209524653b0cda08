"""AutoAugment: one of 25 learned pairs of operations, by torchvision's policies or TensorFlow's policy v0.

`draw` selects two operations per image and their magnitudes in the operations' units; `apply_operations` applies them.
A test compares the policy tables with torchvision's and timm's.
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
from mmcon_views.image.policy_operations import NAMES, OPERATIONS, apply_operations
from mmcon_views.image.policy_variants import TENSORFLOW
from mmcon_views.image.sizes import input_sizes


def parse_policy(table: str) -> tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...]:
    """Parse sub-policies, one per line: two operations, each with its probability and level (- for none)."""
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(
        tuple((row[i], float(row[i + 1]), 0 if row[i + 2] == "-" else int(row[i + 2])) for i in (0, 3))  # type: ignore[misc]
        for row in rows
    )


POLICIES = {
    "imagenet": parse_policy("""
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
    "cifar10": parse_policy("""
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
    "tf-v0": parse_policy("""
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


@register_view("image/autoaugment", modality="image")
@final
class AutoAugment(ViewGenerator):
    """One of 25 learned pairs of operations (Cubuk et al. 2019).

    Policies "imagenet" and "cifar10" are torchvision's, with ten magnitude bins, signed enhancements and black fill.
    "tf-v0" is TensorFlow's, used by SupCon's released code: another table, enhancements from 0.1 to 1.9, translations
    up to 250 pixels, SolarizeAdd, gray fill.

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
        """The gray outside of the image after a geometric operation."""
        return 128 / 255 if self.policy == "tf-v0" else 0.0

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `operation` (index, −1 for none) and `magnitude`, `b 2` each."""
        height, width = input_sizes(meta, "image/autoaugment")
        table = POLICIES[self.policy]
        pair_index = keys.choice("policy", len(table))
        operation = torch.tensor([[NAMES.index(name) for name, _, _ in pair] for pair in table])[pair_index]
        probability = torch.tensor([[p for _, p, _ in pair] for pair in table], dtype=torch.float64)[pair_index]
        level = torch.tensor([[level for _, _, level in pair] for pair in table], dtype=torch.float64)[pair_index]
        sign = 1 - 2 * keys.bernoulli("sign", 0.5, shape=(2,)).to(torch.float64)
        kept = keys.bernoulli("apply", probability, shape=(2,))
        tf = self.policy == "tf-v0"
        # TensorFlow's levels reach to 10; torchvision has ten bins, 0 to 9.
        bins = level / (10 if tf else 9)
        shift = torch.full_like(height, 250), torch.full_like(width, 250)
        sizes = [s.to(torch.float64)[:, None].expand(-1, 2) for s in (shift if tf else (height, width))]
        magnitude = magnitudes(tf_magnitude if tf else torchvision_magnitude, operation, bins, sign, *sizes)
        return {"operation": torch.where(kept, operation, -1), "magnitude": magnitude}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Apply both operations in order."""
        x = float_copy(batch, self.name or "image/autoaugment")
        self.apply_(x, params)
        return x

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Apply them in place."""
        apply_operations(batch, params, self.fill, TENSORFLOW if self.policy == "tf-v0" else OPERATIONS)
