"""The weighted loss on a GPU by two Triton kernels: class weights, the out form, all candidates.

The first kernel keeps a running maximum and sum of exponentials for each row. The second recomputes the similarities
and multiplies their gradient with the rows of the other side. Operands of products are bfloat16 (float16 and float32 on
request), sums are float32. Numerators come from class sums outside the kernels (`ClassFactor`). Where the anchors are
the candidates, the second kernel computes both directions of a pair, with one exponential for each.

Without a GPU the tests run the kernels in Triton's interpreter (`TRITON_INTERPRET=1`), which checks values, not speed.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.affinity import ClassFactor, factor_row_sums
from mmcon.losses.problem import AnchorLosses, Problem, check_single_backward

MAX_WIDTH = 512


def unsupported_reason(problem: Problem) -> str | None:
    """Why the kernels do not support a problem, or None."""
    settings, width = problem.settings, problem.anchors.shape[1]
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (problem.anchors.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return f"triton: rows on {problem.anchors.device}"
    if settings.form != "out" or settings.denominator != "all" or settings.negative_weights is not None:
        return "triton: a form, denominator or negative weights other than the plain ones"
    if settings.similarity is not None:
        return "triton: a similarity other than the dot product"
    if problem.anchors.dtype != torch.float32 or width > MAX_WIDTH:
        return f"triton: {problem.anchors.dtype} rows of width {width}, where float32 to {MAX_WIDTH} is supported"
    factors = problem.affinity.factors()
    if factors is None or len(factors) != 1 or not isinstance(factors[0], ClassFactor) or factors[0].table is not None:
        return "triton: weights that are not those of classes"
    return None


def triton_losses(problem: Problem, operands: torch.dtype = torch.bfloat16) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid, to the precision of `operands`."""
    (factor,) = problem.affinity.factors()  # pyright: ignore
    losses, valid = _TritonLoss.apply(
        problem, factor, operands, problem.anchors, problem.candidates, problem.temperature
    )
    return AnchorLosses(losses, valid)


class _TritonLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        factor: ClassFactor,
        operands: torch.dtype,
        a: Float[Tensor, "a d"],
        c: Float[Tensor, "c d"],
        temperature: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, " a"], Bool[Tensor, " a"]]:
        from mmcon.losses.backends.triton_kernels import log_sum_exp

        inverse = 1 / temperature
        weight_sum, valid = factor_row_sums((factor,), problem.self_index)
        weight_sum = weight_sum.to(a.dtype)
        log_sum = log_sum_exp(a * inverse, c, problem.self_index, operands)
        # +inf makes every e^{s - log_sum} of an invalid anchor 0 in the backward kernel.
        log_sum = torch.where(valid, log_sum, float("inf"))
        product = _times_without_self(factor, c, problem.self_index)
        weighted = (product * a).sum(1) * inverse
        normalize = problem.settings.row_normalize
        divisor = torch.where(valid, weight_sum, 1) if normalize else torch.ones_like(weight_sum)
        # 0 replaces the +inf of invalid anchors, since 0 · inf is NaN.
        losses = torch.where(valid, (weight_sum * torch.where(valid, log_sum, 0) - weighted) / divisor, 0)
        ctx.save_for_backward(a, c, inverse, log_sum, weight_sum, divisor, valid, product)
        ctx.problem, ctx.factor, ctx.operands = problem, factor, operands
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " a"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        from mmcon.losses.backends.triton_kernels import weighted_rows

        check_single_backward("triton")
        a, c, inverse, log_sum, weight_sum, divisor, valid, product = ctx.saved_tensors
        self_index = ctx.problem.self_index
        v = torch.where(valid, gradients[0], 0) / divisor
        u = v * weight_sum
        transposed = _transposed_times_without_self(ctx.factor, v[:, None] * a, self_index, len(c))
        of_a = -v[:, None] * product
        if ctx.problem.square:
            softmax = weighted_rows(a * inverse, c, self_index, u, log_sum, u, log_sum, ctx.operands)
            of_both = softmax + of_a - transposed
            of_inverse = (a * of_both).sum() / 2
            return None, None, None, of_both * inverse, None, -of_inverse * inverse * inverse
        # Weights of 0 with a log-sum of +inf switch the other direction off: candidates are not anchors here.
        zero = torch.zeros_like(c[:, 0])
        infinite = torch.full_like(zero, float("inf"))
        of_a = of_a + weighted_rows(a * inverse, c, self_index, u, log_sum, zero, infinite, ctx.operands)
        anchor_index = torch.full((len(c),), -1, dtype=self_index.dtype, device=self_index.device)
        anchor_index[self_index[self_index >= 0]] = (self_index >= 0).nonzero()[:, 0]
        softmax = weighted_rows(c * inverse, a, anchor_index, zero, infinite, u, log_sum, ctx.operands)
        of_c = softmax - transposed
        of_inverse = (a * of_a).sum()
        return None, None, None, of_a * inverse, of_c * inverse, -of_inverse * inverse * inverse


def _self_weights(
    factor: ClassFactor, self_index: Int[Tensor, " a"], like: Float[Tensor, "_ d"]
) -> Float[Tensor, " a"]:
    """The weight of each anchor's own column, 0 where it has none."""
    rows = torch.arange(len(self_index), device=self_index.device)
    return factor.weights_at(rows, self_index.clamp_min(0)).to(like.dtype) * (self_index >= 0)


def _times_without_self(
    factor: ClassFactor, c: Float[Tensor, "c d"], self_index: Int[Tensor, " a"]
) -> Float[Tensor, "a d"]:
    """`W c`, each anchor's own column left out."""
    weights = _self_weights(factor, self_index, c) if len(c) else torch.zeros(len(self_index)).to(c)
    return factor.matmul(c) - weights[:, None] * c[self_index.clamp_min(0)]


def _transposed_times_without_self(
    factor: ClassFactor, rows: Float[Tensor, "a d"], self_index: Int[Tensor, " a"], candidates: int
) -> Float[Tensor, "c d"]:
    """`Wᵀ rows`, each anchor's own column left out."""
    own = _self_weights(factor, self_index, rows)[:, None] * rows
    taken = rows.new_zeros(candidates, rows.shape[1]).index_add_(0, self_index.clamp_min(0), own)
    return factor.transpose().matmul(rows) - taken
