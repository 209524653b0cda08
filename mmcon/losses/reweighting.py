"""Negative weights that depend on the embeddings: hard-negative weighting and debiasing."""

from __future__ import annotations

from dataclasses import dataclass

from mmcon.errors import InputError


@dataclass(frozen=True)
class HardNegatives:
    """Negatives weighted by how near they are, and corrected for the positives hidden among them.

    With `m` negatives of an anchor, the sum over negatives in its denominator becomes

        N = m Σ e^{(1 + concentration) s} / Σ e^{concentration s}        (Robinson et al. 2021, eq. 4)
        N ← max((N - class_prior · m · e^{s⁺}) / (1 - class_prior),  m e^{-1 / temperature})   (Chuang et al. 2020, eq.
        8)

    the second only where `class_prior` is above 0; then the denominator is that of one positive (`denominator="one"`).

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
