"""Magnitudes of policy operations: from levels to each operation's own unit, as in torchvision and TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mmcon_views.image.policy_operations import NAMES

ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
NO_MAGNITUDE = ("Identity", "AutoContrast", "Equalize", "Invert")

Slots = Float64[Tensor, "b slots"]
# rule(operation name, level, sign, height, width) -> magnitudes
Rule = Callable[[str, Tensor, Tensor, Tensor, Tensor], Tensor]


def magnitudes(
    rule: Rule, operation: Int[Tensor, "b slots"], level: Slots, sign: Slots, height: Slots, width: Slots
) -> Slots:
    """The magnitude of each drawn operation; 0 for operations without one.

    Args:
        rule: `torchvision_magnitude` or `tf_magnitude`.
        operation: indices into `policy_operations.OPERATIONS`.
        level: the strength, 0 to 1.
        sign: −1 or 1, for operations in two directions.
        height: of the image, or the largest vertical translation (see the rule).
        width: of the image, or the largest horizontal translation.
    """
    magnitude = torch.zeros_like(level)
    for number in operation.unique().tolist():
        name = NAMES[number]
        if name not in NO_MAGNITUDE:
            magnitude = torch.where(operation == number, rule(name, level, sign, height, width), magnitude)
    return magnitude


def torchvision_magnitude(name: str, level: Slots, sign: Slots, height: Slots, width: Slots) -> Slots:
    """Magnitudes of torchvision: `level` is the bin over the last bin, `height` and `width` are the image's."""
    if name in ENHANCEMENTS:
        return 1 + sign * 0.9 * level
    if name == "Posterize":
        return torch.round(8 - 4 * level)
    if name == "Solarize":
        return 1 - level
    return sign * _geometric(name, level, 150 / 331 * height, 150 / 331 * width)


def tf_magnitude(name: str, level: Slots, sign: Slots, height: Slots, width: Slots) -> Slots:
    """Magnitudes of TensorFlow: `level` 1 is its level 10, `height` and `width` are the largest translations."""
    if name in ENHANCEMENTS:
        return 1.8 * level + 0.1
    if name == "Posterize":
        return torch.floor(level * 4)
    if name == "Solarize":
        return torch.floor(level * 256) / 255
    if name == "SolarizeAdd":
        return torch.floor(level * 110) / 255
    return sign * _geometric(name, level, height, width)


def _geometric(name: str, level: Slots, down: Slots, across: Slots) -> Slots:
    limits: dict[str, Any] = {
        "ShearX": 0.3, "ShearY": 0.3, "TranslateX": across, "TranslateY": down, "Rotate": 30.0,
    }  # fmt: skip
    return level * limits.get(name, 0.0)
