"""The weighted loss on a GPU by Triton kernels: class weights, every form and denominator.

One kernel sums exponentials for each row: where the anchors are the candidates and no exponential can overflow, each
pair once for both of its rows, else by a running maximum. Another recomputes the similarities and multiplies their
gradient with the rows of the other side; where the anchors are the candidates, it adds both directions of a pair. What
is linear in the similarities, the numerator of the out form, comes from class sums in float32 (`ClassFactor`).

Operands of products are float16 by default (bfloat16 and float32 on request), sums are float32. Rows are divided by a
power of two that bounds their length, 1 for unit rows, and gradients of similarities are scaled to the range of
float16; it has eight times the precision of bfloat16 at the same speed.

Without a GPU the tests run the kernels in Triton's interpreter (`TRITON_INTERPRET=1`), which checks values, not speed.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.affinity import ClassFactor, factor_row_sums
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.problem import AnchorLosses, Problem, check_single_backward

if TYPE_CHECKING:
    from mmcon.losses.backends.triton_kernels import Operand

MAX_WIDTH = 512
#: The largest weight of a gradient of similarities: four terms of it are finite in float16.
LARGEST = 2.0**13
#: Below this logarithm products of exponentials with weights of up to `LARGEST` are finite in float32.
LOG_FINITE = 75.0


def supported_weights(problem: Problem) -> ClassFactor | str:
    """The class weights of a problem that the kernels support, or the reason why they do not."""
    settings, width = problem.settings, problem.anchors.shape[1]
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (problem.anchors.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return f"triton: rows on {problem.anchors.device}"
    if settings.negative_weights is not None or settings.similarity is not None:
        return "triton: negative weights, or a similarity other than the dot product"
    if problem.anchors.dtype != torch.float32 or width > MAX_WIDTH:
        return f"triton: {problem.anchors.dtype} rows of width {width}, where float32 to {MAX_WIDTH} is supported"
    factors = problem.affinity.factors()
    if factors is None or len(factors) != 1 or not isinstance(factors[0], ClassFactor) or factors[0].table is not None:
        return "triton: weights that are not those of classes"
    return factors[0] if factors[0].scale > 0 else "triton: weights that are all 0"


def triton_losses(problem: Problem, factor: ClassFactor, operands: torch.dtype = torch.float16) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid, to the precision of `operands`."""
    if 0 in problem.affinity.shape:
        return dense_losses(problem)
    losses, valid = _TritonLoss.apply(
        problem, factor, operands, problem.anchors, problem.candidates, problem.temperature
    )
    return AnchorLosses(losses, valid)


class _Inputs(NamedTuple):
    """The operands of the kernels.

    Attributes:
        a, c: anchors and candidates, divided by `a_size` and `c_size`, powers of two.
        self_index: of the anchors, padded.
        scale: from products of operands to similarities in units of log 2.
        square: whether the anchors are the candidates, each its own self.
        bounded: whether no exponential of a similarity, and no sum of them, overflows.
    """

    a: Operand
    c: Operand
    a_size: float
    c_size: float
    self_index: Int[Tensor, " padded"]
    scale: Float[Tensor, ""]
    square: bool
    bounded: bool


def _inputs(problem: Problem, factor: ClassFactor, operands: torch.dtype) -> _Inputs:
    from mmcon.losses.backends.triton_kernels import LOG2_E, Operand, pad

    a, c, self_index = problem.anchors.detach(), problem.candidates.detach(), problem.self_index
    diagonal = torch.arange(len(a), device=a.device)
    facts = [a.square().sum(1).max(), c.square().sum(1).max(), problem.temperature, (self_index == diagonal).all()]
    # The only wait for the device.
    a_norm, c_norm, temperature, own = torch.stack([fact.detach().to(a.dtype) for fact in facts]).tolist()
    a_size, c_size = _power_of_two(a_norm), _power_of_two(c_norm)
    square = problem.square and bool(own)
    left = Operand.of(a / a_size, factor.rows, operands)
    right = left if square else Operand.of(c / c_size, factor.columns, operands, candidates=True)
    log_largest = math.sqrt(a_norm * c_norm) / temperature + math.log(len(c) + 1)
    return _Inputs(
        left, right, a_size, c_size, pad(self_index.int(), -1), a_size * c_size * LOG2_E / problem.temperature.detach(),
        square, square and log_largest < LOG_FINITE,
    )  # fmt: skip


def _power_of_two(squared_norm: float) -> float:
    """At least the norm; 1 for rows that are zero or not finite."""
    fits = 0 < squared_norm < math.inf
    return 2.0 ** math.ceil(math.log2(squared_norm) / 2) if fits else 1.0


class _Forward(NamedTuple):
    """What the backward pass needs of each anchor; logarithms of invalid anchors are +inf, so that e^{s - inf} is 0.

    Attributes:
        valid: whether the anchor has a loss.
        divisor: the sum of weights, or 1.
        log_denominator: log D; with denominator `one`, of the negatives alone.
        log_positives: log Σ_P e^s, with the in form.
        shares: Σ_P ∂ log(D/e^s) / ∂ log N, with denominator `one`.
        product: W c, without self, where the numerator is linear in the similarities.
    """

    valid: Bool[Tensor, " a"]
    weight_sum: Float[Tensor, " a"]
    divisor: Float[Tensor, " a"]
    log_denominator: Float[Tensor, " a"]
    log_positives: Float[Tensor, " a"]
    shares: Float[Tensor, " a"]
    product: Float[Tensor, "a d"] | None


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
        inputs = _inputs(problem, factor, operands)
        losses, found = _losses(problem, factor, inputs)
        ctx.save_for_backward(a, c, temperature)
        ctx.problem, ctx.factor, ctx.inputs, ctx.found = problem, factor, inputs, found
        ctx.mark_non_differentiable(found.valid)
        return losses, found.valid

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " a"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        check_single_backward("triton")
        a, c, temperature = ctx.saved_tensors
        factor, inputs, found = ctx.factor, ctx.inputs, ctx.found
        gradient = torch.where(found.valid, gradients[0], 0)
        of_a, of_c = _softmax_terms(ctx.problem, factor, inputs, found, gradient)
        if found.product is not None:
            v = (gradient / found.divisor)[:, None]
            of_a.addcmul_(v, found.product, value=-1)
            (of_a if of_c is None else of_c).sub_(
                _transposed_times_without_self(factor, v * a, ctx.problem.self_index, len(c))
            )
        # Σ_ij G_ij ⟨a_i, c_j⟩; where the anchors are the candidates, each pair was added from both ends.
        of_inverse = (a * of_a).sum() / (2 if of_c is None else 1)
        inverse = 1 / temperature
        return (
            None, None, None, of_a * inverse, None if of_c is None else of_c * inverse,
            -of_inverse * inverse * inverse,
        )  # fmt: skip


def _losses(problem: Problem, factor: ClassFactor, inputs: _Inputs) -> tuple[Float[Tensor, " a"], _Forward]:
    """The losses of `weighted_supcon`, 0 for invalid anchors."""
    from mmcon.losses.backends.triton_kernels import log_sums, pair_sums, positive_sums

    settings, a, c = problem.settings, problem.anchors.detach(), problem.candidates.detach()
    weight_sum, valid = factor_row_sums((factor,), problem.self_index)
    weight_sum = weight_sum.to(a.dtype)
    log_positives = shares = product = torch.zeros_like(weight_sum)
    needs_labels = settings.form == "in" or settings.denominator != "all"
    # Atomic additions have no fixed order.
    if inputs.bounded and not needs_labels and not torch.are_deterministic_algorithms_enabled():
        log_denominator = pair_sums(inputs.a, inputs.scale).log()
    else:
        sums = log_sums(inputs.a, inputs.c, inputs.self_index, inputs.scale, labels=needs_labels)
        log_denominator, log_positives = sums
        if needs_labels and settings.denominator == "all":
            log_denominator = torch.logaddexp(*sums)
    if settings.denominator == "negatives":
        valid = valid & torch.isfinite(log_denominator)
    divisor = torch.where(valid, weight_sum, 1) if settings.row_normalize else torch.ones_like(weight_sum)
    product = None
    if settings.form == "in":
        losses = log_denominator - log_positives - math.log(factor.scale) + divisor.log()
    elif settings.denominator == "one":
        losses, shares = positive_sums(inputs.a, inputs.c, inputs.self_index, log_denominator, inputs.scale)
        losses = factor.scale * losses / divisor
    else:
        product = _times_without_self(factor, c, problem.self_index)
        weighted = (product * a).sum(1) / problem.temperature.detach()
        losses = (weight_sum * log_denominator - weighted) / divisor
    log_denominator, log_positives = (torch.where(valid, x, math.inf) for x in (log_denominator, log_positives))
    found = _Forward(valid, weight_sum, divisor, log_denominator, log_positives, shares, product)
    return torch.where(valid, losses, 0), found


def _softmax_terms(
    problem: Problem, factor: ClassFactor, inputs: _Inputs, found: _Forward, gradient: Float[Tensor, " a"]
) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
    """`Σ_j G_ij c_j` and `Σ_i G_ij a_i` by temperature, without the numerator of the out form.

    Where the anchors are the candidates, both sums are in the first.
    """
    from mmcon.losses.backends.triton_kernels import LOG2_E, pad, weighted_rows

    settings, v = problem.settings, gradient / found.divisor
    form_in, one = settings.form == "in", settings.denominator == "one"
    if form_in:
        weights = positive_weights = gradient
    else:
        weights = v * factor.scale * found.shares if one else v * found.weight_sum
        positive_weights = v * factor.scale
    size = torch.maximum(weights.abs().max(), positive_weights.abs().max()).clamp_min(1e-30) / LARGEST
    weights, positive_weights = weights / size, positive_weights / size
    if inputs.bounded and not (form_in or settings.denominator != "all"):
        weights = weights * torch.exp(-found.log_denominator)
    numbers = torch.stack([weights, found.log_denominator * LOG2_E, positive_weights, found.log_positives * LOG2_E])
    terms: Any = {
        "shared": inputs.bounded and not form_in and settings.denominator == "all",
        "negatives": settings.denominator != "all", "form_in": form_in, "one": one,
    }  # fmt: skip
    numbers, d = pad(numbers, 0), problem.anchors.shape[1]
    if inputs.square:
        both = weighted_rows(inputs.a, inputs.c, inputs.self_index, (numbers, numbers), inputs.scale, **terms)
        return both[:, :d] * (size * inputs.a_size), None
    of_a = weighted_rows(inputs.a, inputs.c, inputs.self_index, (numbers, None), inputs.scale, **terms)
    of_c = weighted_rows(inputs.c, inputs.a, inputs.self_index, (None, numbers), inputs.scale, **terms)
    return of_a[:, :d] * (size * inputs.c_size), of_c[:, :d] * (size * inputs.a_size)


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
    return factor.matmul(c) - _self_weights(factor, self_index, c)[:, None] * c[self_index.clamp_min(0)]


def _transposed_times_without_self(
    factor: ClassFactor, rows: Float[Tensor, "a d"], self_index: Int[Tensor, " a"], candidates: int
) -> Float[Tensor, "c d"]:
    """`Wᵀ rows`, each anchor's own column left out."""
    own = _self_weights(factor, self_index, rows)[:, None] * rows
    taken = rows.new_zeros(candidates, rows.shape[1]).index_add_(0, self_index.clamp_min(0), own)
    return factor.transpose().matmul(rows) - taken
