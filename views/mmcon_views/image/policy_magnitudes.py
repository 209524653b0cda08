"""Magnitudes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcon_views.image.policy_operations import NAMES

ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")


NO_MAGNITUDE = ("Identity", "AutoContrast", "Equalize", "Invert")


def magnitudes(rule: Any, code: Tensor, level: Tensor, sign: Tensor, height: Tensor, width: Tensor) -> Tensor:
    magnitude = torch.zeros_like(level)
    for number in code.unique().tolist():
        name = NAMES[number]
        if name not in NO_MAGNITUDE:
            magnitude = torch.where(code == number, rule(name, level, sign, height, width), magnitude)
    return magnitude


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
