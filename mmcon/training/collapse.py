"""A monitor of collapsed embeddings: all embeddings equal, so that the loss is ln(candidates) and gradients vanish."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: The mean cosine distance of two rows below which embeddings count as collapsed.
COLLAPSED_SPREAD = 0.01
#: The loss counts as that of identical embeddings within this fraction.
LOSS_TOLERANCE = 0.01
#: A gradient norm below this fraction of the largest one is vanishing.
VANISHING_GRADIENT = 0.01
#: Steps at which embeddings are measured besides those with a log line.
CHECKED_STEPS = (10, 15, 20, 25, 30)
#: The first step that warns: embeddings of random weights may be close to each other.
FIRST_WARNING = 15


@torch.no_grad()
def embedding_spread(rows: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The mean cosine distance of two unit rows, 1 − ‖mean row‖²: 0 for identical rows, about 1 for uniform ones."""
    return 1 - rows.float().mean(0).square().sum()


@torch.no_grad()
def embedding_rank(rows: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The effective number of dimensions of unit rows, 1 / mean cos² of two rows: 1 on a line, d for uniform rows."""
    moments = rows.float().T @ rows.float() / len(rows)
    return 1 / moments.square().sum()


class CollapseMonitor:
    """Measures the embeddings of the last step at some steps, and warns once of each collapse.

    A measurement reads rows that the objective keeps, so the model runs no extra pass, and steps in between do not
    wait for the device.

    Args:
        objective: has `last_rows`; another objective, such as cross-entropy, is not measured.
        learning_rate: the peak, for the advice.
        log: receives the warning.

    Attributes:
        warnings: what was logged, for the results.
    """

    def __init__(self, objective: Any, *, learning_rate: float, log: Callable[[str], Any]) -> None:
        self.objective, self.learning_rate, self.log = objective, learning_rate, log
        self.warnings: list[str] = []
        self._largest_gradient = 0.0
        self._collapsed_before = self._has_warned = False

    def measure(self, step: int, loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""] | None) -> dict[str, float]:
        """The spread and the rank of the embeddings with the smaller spread; warns after two collapsed measurements.

        Args:
            step: the number of the finished step.
            loss: of the step.
            gradient_norm: of the last optimizer step, before clipping.
        """
        blocks = {name: found for name, found in getattr(self.objective, "last_rows", {}).items() if len(found[0])}
        norm = math.nan if gradient_norm is None else float(gradient_norm)
        self._largest_gradient = max(self._largest_gradient, norm) if norm == norm else self._largest_gradient
        if not blocks:
            return {}
        spread, name = min((float(embedding_spread(rows)), name) for name, (rows, _) in blocks.items())
        rows, candidates = blocks[name]
        collapsed = spread < COLLAPSED_SPREAD
        if collapsed and self._collapsed_before and not self._has_warned and step >= FIRST_WARNING:
            self._warn(step, name, spread, candidates, float(loss), norm)
            self._has_warned = True
        if self._has_warned and not collapsed:
            self.warnings.append(f"step {step}: the embeddings of {name} are no longer collapsed")
            self._has_warned = False
        self._collapsed_before = collapsed
        return {"embedding_spread": spread, "embedding_rank": float(embedding_rank(rows))}

    def _warn(self, step: int, name: str, spread: float, candidates: int, loss: float, norm: float) -> None:
        lines = [f"step {step}: the embeddings of {name} have collapsed: their mean cosine distance is {spread:.1g}"]
        of_identical = math.log(max(candidates, 2))
        if abs(loss - of_identical) <= LOSS_TOLERANCE * of_identical:
            lines.append(f"the loss, {loss:.3f}, is that of identical embeddings, ln({candidates})")
        if norm < VANISHING_GRADIENT * self._largest_gradient:
            lines.append(f"gradients vanish: their norm fell from {self._largest_gradient:.2g} to {norm:.2g}")
        cause = f"likely cause: a learning rate of {self.learning_rate:.2g} is too high for this encoder and batch size"
        fix = (
            f"fix: --projection-head mlp-batch-norm, which keeps embeddings apart, or --learning-rate"
            f" {self.learning_rate / 10:.1g} (--find-learning-rate suggests one); a larger --batch-size helps too"
        )
        self.warnings.append("; ".join(lines))
        self.log(f"warning: {'; '.join(lines)}\n  {cause}\n  {fix}")
