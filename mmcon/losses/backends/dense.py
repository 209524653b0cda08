"""The weighted loss by full matrices and autograd: the reference for the other backends.

The equations are in `mmcon.losses.forms`. This is the only backend with second derivatives.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mmcon.losses.forms import form_losses
from mmcon.losses.loss_inputs import AnchorLosses, Problem


def dense_losses(problem: Problem) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid."""
    return form_losses(problem, _similarities(problem))


def dense_both(problem: Problem, reverse: Problem) -> tuple[AnchorLosses, AnchorLosses]:
    """The losses of both directions, from one matrix of dot products."""
    s = _similarities(problem)
    return form_losses(problem, s), form_losses(reverse, s.T)


def _similarities(problem: Problem) -> Float[Tensor, "a c"]:
    similarity = problem.settings.similarity or (lambda anchors, candidates: anchors @ candidates.T)
    return similarity(problem.anchors, problem.candidates) / problem.temperature
