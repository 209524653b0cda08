"""The weighted loss in its plainest form: n × n matrices and autograd. The reference that other backends must equal.

Reading it next to the equations of `weighted_supcon` is the quickest way to know what is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcon.affinity import self_mask
from mmcon.losses.negative_weights import HardNegatives, log_debiased
from mmcon.losses.problem import Problem, RowLosses


def dense_rows(problem: Problem) -> RowLosses:
    """The loss of every anchor, `a`, and which are valid."""
    similarity = problem.similarity or (lambda anchors, candidates: anchors @ candidates.T)
    s = similarity(problem.anchors, problem.candidates) / problem.temperature
    others = ~self_mask(problem.self_index, s.shape[1])
    weights = problem.affinity.dense().to(s.dtype) * others
    if problem.form == "out" and problem.denominator == "all" and problem.negatives is None:
        return _over_all_others(s, weights, others, row_normalize=problem.row_normalize)
    positive = weights > 0
    negative = others if problem.all_are_negatives else others & ~positive

    log_negatives = _log_negatives(problem, s, positive, negative)
    valid = positive.any(1)
    if problem.denominator == "negatives":
        valid = valid & torch.isfinite(log_negatives.detach())
    if problem.row_normalize:
        weights = weights / torch.where(valid, weights.sum(1), 1)[:, None]

    # Rows that are not valid are computed on harmless numbers and then dropped: 0 · -inf would be NaN in backward.
    log_negatives = torch.where(valid, log_negatives, 0)
    positive = positive & valid[:, None]
    if problem.form == "in":
        losses = _log_denominator(problem, s, positive, log_negatives) - _logsumexp(s + _log(weights), positive)
    elif problem.denominator == "one":
        log_each = log_negatives[:, None]
        if isinstance(problem.negatives, HardNegatives) and problem.negatives.class_prior > 0:
            count = negative.sum(1, keepdim=True)
            log_each = log_debiased(s, log_each, count, problem.temperature, problem.negatives.class_prior)
        losses = (weights * torch.where(positive, torch.logaddexp(s, log_each) - s, 0)).sum(1)
    else:
        log_all = _log_denominator(problem, s, positive, log_negatives)
        losses = (weights * torch.where(positive, log_all[:, None] - s, 0)).sum(1)
    return RowLosses(torch.where(valid, losses, 0), valid)


def _over_all_others(s: Tensor, weights: Tensor, others: Tensor, *, row_normalize: bool) -> RowLosses:
    """The usual case, where positives and negatives need not be told apart: `Σ_j W_ij (log D_i − s_ij)`.

    It is what the general form gives; small blocks, of which a step may have many, take a third of its time.
    """
    valid = (weights > 0).any(1)
    total = weights.sum(1)
    # Rows without a positive have no weight either: their loss is 0, and so is their gradient.
    pulled, log_all = (weights * s).sum(1), torch.where(others, s, torch.finfo(s.dtype).min).logsumexp(1)
    losses = log_all - pulled / torch.where(valid, total, 1) if row_normalize else total * log_all - pulled
    return RowLosses(torch.where(valid, losses, 0), valid)


def _log_denominator(problem: Problem, s: Tensor, positive: Tensor, log_negatives: Tensor) -> Tensor:
    """Log of `Σ_positives e^s + Σ_negatives V e^s`, or of the second sum alone."""
    if problem.denominator == "negatives":
        return log_negatives
    return torch.logaddexp(_logsumexp(s, positive), log_negatives)


def _log_negatives(problem: Problem, s: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    if isinstance(problem.negatives, HardNegatives):
        beta = problem.negatives.concentration
        near = s.detach() if problem.negatives.detach else s
        count = negative.sum(1).to(s.dtype).log()
        weighed = s + beta * near
        spread = torch.where(negative.any(1), _logsumexp(beta * near, negative), 0)
        return count + _logsumexp(weighed, negative) - spread
    if problem.negatives is None:
        return _logsumexp(s, negative)
    weights = problem.negatives.dense().to(s.dtype)
    negative = negative & (weights > 0)
    return _logsumexp(s + _log(weights), negative)


def _log(weights: Tensor) -> Tensor:
    """Log where above 0, and 0 (to be masked) elsewhere, so that no gradient meets 1/0."""
    return torch.where(weights > 0, weights, 1).log()


def _logsumexp(s: Tensor, mask: Tensor) -> Tensor:
    """Row log-sum-exp over a mask, -inf for an empty row, with a gradient of 0 there."""
    some = mask.any(1)
    safe = torch.where(mask, s, torch.finfo(s.dtype).min)
    return torch.where(some, torch.where(some[:, None], safe, 0).logsumexp(1), float("-inf"))
