"""A temperature that learns, within bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmcon.errors import InputError


class LearnableTemperature(nn.Module):
    """A temperature held as the logarithm of its inverse, the logit scale, as CLIP does.

    Bounds are kept by moving the parameter back before it is used, not by a clamp in the graph, beyond which no
    gradient would bring it back. CLIP's are 1/100 from below, none from above.

    Args:
        initial: the temperature to start from.
        minimum: below which it never falls.
        maximum: above which it never rises.

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

    def forward(self) -> Tensor:
        """The temperature, a scalar with a gradient."""
        with torch.no_grad():
            self.log_logit_scale.clamp_(-math.log(self.maximum), -math.log(self.minimum))
        return torch.exp(-self.log_logit_scale)
