"""Negative weights that depend on the embeddings: hard-negative weighting and debiasing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcon.errors import InputError


@dataclass(frozen=True)
class HardNegatives:
    """Negatives weighted by how near they are, and corrected for the positives hidden among them.

    With `m` negatives of an anchor, the sum over negatives in its denominator becomes

        N = m Σ e^{(1 + concentration) s} / Σ e^{concentration s}                   (Robinson et al. 2021, eq. 4)
        N ← max((N - class_prior · m · e^{s⁺}) / (1 - class_prior), m e^{-1/T})    (Chuang et al. 2020, eq. 8)

    with T the temperature, and the second only where `class_prior` is above 0; then the denominator is that of one
    positive (`denominator="one"`).

    Args:
        concentration: β >= 0; 0 weighs negatives alike.
        class_prior: τ⁺ in [0, 1), the chance that a negative is a positive in truth.
        detach: keep the gradient out of the weights. The published code lets it through, and so does the default.
    """

    concentration: float = 0.0
    class_prior: float = 0.0
    detach: bool = False

    def __post_init__(self) -> None:
        if self.concentration < 0 or not 0 <= self.class_prior < 1:
            got = f"concentration={self.concentration}, class_prior={self.class_prior}"
            raise InputError("HardNegatives", expected="concentration >= 0 and class_prior in [0, 1)", got=got)

    def check(self, form: str, denominator: str) -> None:
        """Refuse combinations that no equation defines."""
        if self.class_prior > 0 and (form, denominator) != ("out", "one"):
            raise InputError(
                "HardNegatives",
                expected="form 'out' and denominator 'one' with a class_prior",
                got=f"form {form!r}, denominator {denominator!r}",
                fix="the correction subtracts the positive at hand, so each positive has its own denominator",
            )


def log_debiased(s: Tensor, log_sum: Tensor, count: Tensor, temperature: Tensor, class_prior: float) -> Tensor:
    """Log of the corrected sum over negatives, -inf where there are none.

    Args:
        s: similarities of positives over temperature.
        log_sum: log of the negatives' sum, of a shape that broadcasts with s.
        count: their number, likewise.
        temperature: of the floor below which the corrected sum cannot truly be.
        class_prior: τ⁺.
    """
    some = count > 0
    log_count = count.clamp_min(1).to(s.dtype).log()
    log_sum = torch.where(some, log_sum, 0)
    # Relative to the sum: 1 - prior · m · e^{s - log_sum} loses its digits only where the floor rules.
    share = 1 - class_prior * (log_count + s - log_sum).clamp_max(80).exp()
    corrected = log_sum + share.clamp_min(torch.finfo(s.dtype).tiny).log() - math.log1p(-class_prior)
    return torch.where(some, torch.maximum(corrected, log_count - 1 / temperature), float("-inf"))
