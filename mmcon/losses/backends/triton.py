"""The weighted loss on a GPU, in two Triton kernels: class weights, the out form, all candidates.

The first keeps a running maximum and sum of exponentials a row; the second recomputes similarities and multiplies
their gradient with the rows of the other side. Operands of products are bfloat16 (float16 and float32 on request), sums
are float32. Numerators come from class sums outside (`ClassFactor`). Where anchors are the candidates, the second
kernel takes a pair's two directions from one exponential each.

Without a GPU the kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), which is how they are tested; no time is
claimed.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from mmcon.affinity import ClassFactor
from mmcon.losses.problem import Problem, RowLosses, refuse_double_backward

BLOCK = 64


def refusal(problem: Problem) -> str | None:
    """Why the kernels cannot serve a problem, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (problem.anchors.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return f"triton: rows on {problem.anchors.device}"
    if problem.form != "out" or problem.denominator != "all" or problem.negatives is not None:
        return "triton: a form, denominator or negative weights other than the plain ones"
    if problem.similarity is not None:
        return "triton: a similarity other than the dot product"
    if problem.anchors.dtype != torch.float32 or problem.anchors.shape[1] > 512:
        return (
            f"triton: {problem.anchors.dtype} rows of width {problem.anchors.shape[1]}, where float32 to 512 is offered"
        )
    factors = problem.affinity.factors()
    if factors is None or len(factors) != 1 or not isinstance(factors[0], ClassFactor) or factors[0].table is not None:
        return "triton: weights that are not those of classes"
    return None


def triton_rows(problem: Problem, operands: torch.dtype = torch.bfloat16) -> RowLosses:
    """The loss of every anchor and which are valid, as `dense_rows`, to the precision of `operands`."""
    (factor,) = problem.affinity.factors()  # pyright: ignore
    losses, valid = _ByKernels.apply(
        problem, factor, operands, problem.anchors, problem.candidates, problem.temperature
    )
    return RowLosses(losses, valid)


class _ByKernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, factor: Any, operands: torch.dtype, a: Tensor, c: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        from mmcon.affinity import factor_sums
        from mmcon.losses.backends.triton_kernels import log_sum_exp

        inverse = 1 / temperature
        sums, valid = factor_sums((factor,), problem.self_index)
        sums = sums.to(a.dtype)
        log_sum = log_sum_exp(a * inverse, c, problem.self_index, operands)
        log_sum = torch.where(valid, log_sum, float("inf"))
        pulled = _without_self(factor, c, problem.self_index)
        weighted = (pulled * a).sum(1) * inverse
        divisor = torch.where(valid, sums, 1) if problem.row_normalize else torch.ones_like(sums)
        losses = torch.where(valid, (sums * torch.where(valid, log_sum, 0) - weighted) / divisor, 0)
        ctx.save_for_backward(a, c, inverse, log_sum, sums, divisor, valid, pulled)
        ctx.problem, ctx.factor, ctx.operands = problem, factor, operands
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from mmcon.losses.backends.triton_kernels import pull

        refuse_double_backward("triton")
        a, c, inverse, log_sum, sums, divisor, valid, pulled = ctx.saved_tensors
        own = ctx.problem.self_index
        v = torch.where(valid, gradients[0], 0) / divisor
        weight, none = v * sums, torch.zeros_like(c[:, 0])
        back = _without_self_back(ctx.factor, v[:, None] * a, own, len(c))
        left = -v[:, None] * pulled
        if ctx.problem.square:
            both = pull(a * inverse, c, own, weight, log_sum, weight, log_sum, ctx.operands) + left - back
            at_inverse = (a * both).sum() / 2
            return None, None, None, both * inverse, None, -at_inverse * inverse * inverse
        far = torch.full_like(none, float("inf"))
        left = left + pull(a * inverse, c, own, weight, log_sum, none, far, ctx.operands)
        owner = torch.full((len(c),), -1, dtype=own.dtype, device=own.device)
        owner[own[own >= 0]] = (own >= 0).nonzero()[:, 0]
        right = pull(c * inverse, a, owner, none, far, weight, log_sum, ctx.operands) - back
        at_inverse = (a * left).sum()
        return None, None, None, left * inverse, right * inverse, -at_inverse * inverse * inverse


def _without_self(factor: ClassFactor, c: Tensor, own: Tensor) -> Tensor:
    rows, column = torch.arange(len(own), device=own.device), own.clamp_min(0)
    at_self = factor.at(rows, column).to(c.dtype) * (own >= 0) if len(c) else torch.zeros(len(own)).to(c)
    return factor.times(c) - at_self[:, None] * c[column]


def _without_self_back(factor: ClassFactor, pulled: Tensor, own: Tensor, candidates: int) -> Tensor:
    rows, column = torch.arange(len(own), device=own.device), own.clamp_min(0)
    at_self = factor.at(rows, column).to(pulled.dtype) * (own >= 0)
    taken = pulled.new_zeros(candidates, pulled.shape[1]).index_add_(0, column, at_self[:, None] * pulled)
    return factor.transpose().times(pulled) - taken
