"""The forms of the weighted loss, `out` and `in`, and its denominators, by full matrices and autograd.

The equations are those of `weighted_supcon`, line by line. Other backends than the dense one compute the same numbers
tile by tile, and are tested against these.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmcon.affinity import self_mask
from mmcon.losses.loss_inputs import AnchorLosses, Problem
from mmcon.losses.negative_weights import log_debiased


def out_form(
    s: Float[Tensor, "a c"],
    weights: Float[Tensor, "a c"],
    positive: Bool[Tensor, "a c"],
    log_denominator: Float[Tensor, "a _"],
) -> Float[Tensor, " a"]:
    """`Σ_j W_ij (log D_ij - s_ij)`: the sum over the positives is outside the logarithm."""
    return (weights * torch.where(positive, log_denominator - s, 0)).sum(1)


def in_form(
    s: Float[Tensor, "a c"],
    weights: Float[Tensor, "a c"],
    positive: Bool[Tensor, "a c"],
    log_denominator: Float[Tensor, " a"],
) -> Float[Tensor, " a"]:
    """`log D_i - log Σ_j W_ij e^{s_ij}`: the sum over the positives is inside the logarithm."""
    return log_denominator - _logsumexp(s + _log(weights), positive)


def form_losses(problem: Problem, s: Float[Tensor, "a c"]) -> AnchorLosses:
    """The loss of each anchor from all similarities divided by temperature, and whether the anchor is valid."""
    settings = problem.settings
    not_self = ~self_mask(problem.self_index, s.shape[1])
    weights = problem.affinity.dense().to(s.dtype) * not_self
    if settings.form == "out" and settings.denominator == "all" and settings.negative_weights is None:
        return _out_form_over_all(s, weights, not_self, row_normalize=settings.row_normalize)
    positive = weights > 0
    negative = not_self if problem.all_are_negatives else not_self & ~positive

    log_negatives = log_negative_sum(problem, s, negative)
    valid = positive.any(1)
    if settings.denominator == "negatives":
        valid = valid & torch.isfinite(log_negatives.detach())
    if settings.row_normalize:
        weights = weights / torch.where(valid, weights.sum(1), 1)[:, None]

    # Invalid rows are computed on finite numbers and then dropped: 0 · -inf would be NaN in the backward pass.
    log_negatives = torch.where(valid, log_negatives, 0)
    positive = positive & valid[:, None]
    if settings.form == "in":
        losses = in_form(s, weights, positive, log_denominator(problem, s, positive, log_negatives))
    elif settings.denominator == "one":
        losses = out_form(s, weights, positive, log_denominator_of_each(problem, s, negative, log_negatives))
    else:
        losses = out_form(s, weights, positive, log_denominator(problem, s, positive, log_negatives)[:, None])
    return AnchorLosses(torch.where(valid, losses, 0), valid)


def log_denominator(
    problem: Problem, s: Float[Tensor, "a c"], positive: Bool[Tensor, "a c"], log_negatives: Float[Tensor, " a"]
) -> Float[Tensor, " a"]:
    """Log of `Σ_positives e^s + N` (denominator `all`), or of N alone (`negatives`)."""
    if problem.settings.denominator == "negatives":
        return log_negatives
    return torch.logaddexp(_logsumexp(s, positive), log_negatives)


def log_denominator_of_each(
    problem: Problem, s: Float[Tensor, "a c"], negative: Bool[Tensor, "a c"], log_negatives: Float[Tensor, " a"]
) -> Float[Tensor, "a c"]:
    """Log of `e^{s_ij} + N_i` (denominator `one`), by logaddexp, in which no exponential overflows."""
    log_each = log_negatives[:, None]
    hard = problem.hard_negatives
    if hard is not None and hard.class_prior > 0:
        count = negative.sum(1, keepdim=True)
        log_each = log_debiased(s, log_each, count, problem.temperature, hard.class_prior)
    return torch.logaddexp(s, log_each)


def log_negative_sum(problem: Problem, s: Float[Tensor, "a c"], negative: Bool[Tensor, "a c"]) -> Float[Tensor, " a"]:
    """Log of `N = Σ_negatives V e^s`."""
    if (hard := problem.hard_negatives) is not None:
        beta, weighting = hard.concentration, s.detach() if hard.detach else s
        log_count = negative.sum(1).to(s.dtype).log()
        log_sum = _logsumexp(s + beta * weighting, negative)
        spread = torch.where(negative.any(1), _logsumexp(beta * weighting, negative), 0)
        # In logarithms: e^{(1 + β) s} overflows float32 from s = 44 on at β = 1.
        return log_count + log_sum - spread
    if problem.negative_affinity is None:
        return _logsumexp(s, negative)
    weights = problem.negative_affinity.dense().to(s.dtype)
    return _logsumexp(s + _log(weights), negative & (weights > 0))


def _out_form_over_all(
    s: Float[Tensor, "a c"], weights: Float[Tensor, "a c"], not_self: Bool[Tensor, "a c"], *, row_normalize: bool
) -> AnchorLosses:
    """The out form over all candidates, `Σ_j W_ij (log D_i - s_ij)`, which needs no mask of positives.

    The general form gives the same numbers; small blocks, of which a step may have many, take a third of its time.
    """
    valid = (weights > 0).any(1)
    weight_sum = weights.sum(1)
    weighted = (weights * s).sum(1)
    # The lowest finite number, not -inf: the gradient of a row without candidates would be NaN.
    log_denominator = torch.where(not_self, s, torch.finfo(s.dtype).min).logsumexp(1)
    # Rows without a positive have no weight either, so that their loss and gradient are 0.
    if row_normalize:
        losses = log_denominator - weighted / torch.where(valid, weight_sum, 1)
    else:
        losses = weight_sum * log_denominator - weighted
    return AnchorLosses(torch.where(valid, losses, 0), valid)


def _log(weights: Float[Tensor, "a c"]) -> Float[Tensor, "a c"]:
    """The logarithm where weights are above 0; 0, which the caller masks, elsewhere: the gradient 1/0 is avoided."""
    return torch.where(weights > 0, weights, 1).log()


def _logsumexp(s: Float[Tensor, "a c"], mask: Bool[Tensor, "a c"]) -> Float[Tensor, " a"]:
    """The log-sum-exp of each row over a mask; -inf for an empty row, with a gradient of 0."""
    some = mask.any(1)
    # Empty rows are computed on finite numbers and then replaced: a gradient through -inf would be NaN.
    safe = torch.where(mask, s, torch.finfo(s.dtype).min)
    return torch.where(some, torch.where(some[:, None], safe, 0).logsumexp(1), float("-inf"))
