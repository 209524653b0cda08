"""A learnable temperature with bounds."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError


class LearnableTemperature(nn.Module):
    """A temperature parametrized by the logarithm of its inverse, the logit scale, as in CLIP.

    The bounds are kept by clamping the parameter in place before each use. A clamp in the graph would have no gradient
    beyond the bounds, so that the parameter could not return. CLIP bounds the temperature by 1/100 from below only.

    Args:
        initial: the temperature at the start.
        minimum: the lower bound.
        maximum: the upper bound.

    Raises:
        InputError: bounds that do not enclose the initial temperature, or are not above 0.

    >>> round(LearnableTemperature(initial=0.07)().item(), 4)
    0.07
    """

    def __init__(self, *, initial: float, minimum: float = 0.01, maximum: float = 10.0) -> None:
        super().__init__()
        if not 0 < minimum <= initial <= maximum:
            got = f"{minimum} <= {initial} <= {maximum}"
            raise InputError("LearnableTemperature", expected="0 < minimum <= initial <= maximum", got=got)
        self.minimum, self.maximum = minimum, maximum
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(initial)))

    def forward(self) -> Float[Tensor, ""]:
        """The temperature, a scalar with a gradient."""
        with torch.no_grad():
            self.log_logit_scale.clamp_(-math.log(self.maximum), -math.log(self.minimum))
        return torch.exp(-self.log_logit_scale)
