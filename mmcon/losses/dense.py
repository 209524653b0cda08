"""The weighted loss in its plainest form: n × n matrices and autograd. The reference that other backends must equal.

Reading it next to the equations of `weighted_supcon` is the quickest way to know what is computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmcon.affinity import self_mask
from mmcon.losses.problem import Problem, Rows
from mmcon.losses.reweighting import HardNegatives


def dense_rows(problem: Problem) -> Rows:
    """The loss of every anchor, `a`, and which are valid."""
    similarity = problem.similarity or (lambda anchors, candidates: anchors @ candidates.T)
    s = similarity(problem.anchors, problem.candidates) / problem.temperature
    others = ~self_mask(problem.self_index, s.shape[1])
    weights = problem.affinity.dense().to(s.dtype) * others
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
        losses = log_denominator(problem, s, positive, log_negatives) - _logsumexp(s + _log(weights), positive)
    elif problem.denominator == "one":
        log_each = _log_negatives_of_each(problem, s, log_negatives, negative)
        losses = (weights * torch.where(positive, torch.logaddexp(s, log_each) - s, 0)).sum(1)
    else:
        log_all = log_denominator(problem, s, positive, log_negatives)
        losses = (weights * torch.where(positive, log_all[:, None] - s, 0)).sum(1)
    return Rows(torch.where(valid, losses, 0), valid)


def log_denominator(problem: Problem, s: Tensor, positive: Tensor, log_negatives: Tensor) -> Tensor:
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


def _log_negatives_of_each(problem: Problem, s: Tensor, log_negatives: Tensor, negative: Tensor) -> Tensor:
    """The negatives' part of each positive's denominator, `a 1` or `a c`."""
    prior = problem.negatives.class_prior if isinstance(problem.negatives, HardNegatives) else 0.0
    if prior == 0:
        return log_negatives[:, None]
    some = negative.any(1)[:, None]
    log_count = negative.sum(1, keepdim=True).clamp_min(1).to(s.dtype).log()
    log_sum = torch.where(some, log_negatives[:, None], 0)
    # Relative to the sum: 1 - prior · m · e^{s - log_sum} loses its digits only where the floor rules.
    share = 1 - prior * (log_count + s - log_sum).clamp_max(80).exp()
    corrected = log_sum + share.clamp_min(torch.finfo(s.dtype).tiny).log() - math.log1p(-prior)
    floor = log_count - 1 / problem.temperature
    return torch.where(some, torch.maximum(corrected, floor), float("-inf"))


def _log(weights: Tensor) -> Tensor:
    """Log where above 0, and 0 (to be masked) elsewhere, so that no gradient meets 1/0."""
    return torch.where(weights > 0, weights, 1).log()


def _logsumexp(s: Tensor, mask: Tensor) -> Tensor:
    """Row log-sum-exp over a mask, -inf for an empty row, with a gradient of 0 there."""
    some = mask.any(1)
    safe = torch.where(mask, s, torch.finfo(s.dtype).min)
    return torch.where(some, torch.where(some[:, None], safe, 0).logsumexp(1), float("-inf"))
