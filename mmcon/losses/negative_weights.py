"""Negative weights that depend on the embeddings: hard-negative weighting and debiasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.affinity.graph_arguments import flattens
from mmcon.errors import InputError


@flattens("concentration", "class_prior", "detach")
@dataclass(frozen=True)
class HardNegatives:
    """Weights of negatives that grow with their similarity, with a correction for false negatives.

    With `m` negatives of an anchor, the sum over negatives in its denominator becomes

        N = m Σ e^{(1 + concentration) s} / Σ e^{concentration s}                   (Robinson et al. 2021, eq. 4)
        N ← max((N - class_prior · m · e^{s⁺}) / (1 - class_prior), m e^{-1/T})    (Chuang et al. 2020, eq. 8)

    with T the temperature. The second line applies only with a `class_prior` above 0, and needs a denominator for each
    positive (`denominator="one"`).

    Args:
        concentration: β >= 0; 0 gives all negatives the same weight.
        class_prior: τ⁺ in [0, 1), the probability that a negative is of the anchor's class.
        detach: stop the gradient through the weights. The published code does not, and neither does the default.
    """

    concentration: float = 0.0
    class_prior: float = 0.0
    detach: bool = False

    def __post_init__(self) -> None:
        if self.concentration < 0 or not 0 <= self.class_prior < 1:
            got = f"concentration={self.concentration}, class_prior={self.class_prior}"
            raise InputError("HardNegatives", expected="concentration >= 0 and class_prior in [0, 1)", got=got)

    def check(self, form: str, denominator: str) -> None:
        """Raise InputError if the form and the denominator have no equation with these weights."""
        if self.class_prior > 0 and (form, denominator) != ("out", "one"):
            raise InputError(
                "HardNegatives",
                expected="form 'out' and denominator 'one' with a class_prior",
                got=f"form {form!r}, denominator {denominator!r}",
                fix="the correction subtracts the positive, so each positive has its own denominator",
            )


def log_debiased(
    s: Float[Tensor, "a c"],
    log_sum: Float[Tensor, "a _"],
    count: Shaped[Tensor, "a 1"],
    temperature: Float[Tensor, "..."],
    class_prior: float,
) -> Float[Tensor, "a c"]:
    """Log of the corrected sum over negatives, -inf for an anchor without negatives.

    Args:
        s: similarities of positives over temperature.
        log_sum: log of the sum over negatives.
        count: the number of negatives.
        temperature: of the lower bound `m e^{-1/T}` of the corrected sum.
        class_prior: τ⁺.
    """
    some = count > 0
    log_count = count.clamp_min(1).to(s.dtype).log()
    log_sum = torch.where(some, log_sum, 0)
    # Relative to the sum: 1 - prior · m · e^{s - log_sum} loses its digits only where the lower bound takes over.
    # The clamp keeps the exponential finite; so large a share is below the bound anyway.
    share = 1 - class_prior * (log_count + s - log_sum).clamp_max(80).exp()
    # A share of 0 or below becomes the smallest number, which the maximum replaces by the bound, without NaN.
    corrected = log_sum + share.clamp_min(torch.finfo(s.dtype).tiny).log() - math.log1p(-class_prior)
    return torch.where(some, torch.maximum(corrected, log_count - 1 / temperature), float("-inf"))


class Debiased(NamedTuple):
    """`log_debiased` and its derivatives.

    Attributes:
        log_sum: -inf for an anchor without negatives.
        by_s: the derivative by the similarity of the positive.
        by_log_sum: by the logarithm of the sum that is corrected.
        by_temperature: by the temperature of the lower bound.
    """

    log_sum: Float[Tensor, "a c"]
    by_s: Float[Tensor, "a c"]
    by_log_sum: Float[Tensor, "a c"]
    by_temperature: Float[Tensor, "a c"]


def debiased_with_derivatives(
    s: Float[Tensor, "a c"],
    log_sum: Float[Tensor, "a _"],
    count: Shaped[Tensor, "a 1"],
    temperature: Float[Tensor, ""],
    class_prior: float,
) -> Debiased:
    """`log_debiased` of the same arguments, with its derivatives."""
    log_corrected = log_debiased(s, log_sum, count, temperature, class_prior)
    log_count = count.clamp_min(1).to(s.dtype).log()
    share = class_prior * (log_count + s - torch.where(count > 0, log_sum, 0)).clamp_max(80).exp()
    above_bound = log_corrected > log_count - 1 / temperature
    ratio = torch.where(above_bound, share / (1 - share), 0)
    of_bound = torch.where(above_bound, 0, temperature**-2)
    return Debiased(log_corrected, -ratio, above_bound + ratio, of_bound)
