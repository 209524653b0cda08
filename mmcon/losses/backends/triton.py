"""The weighted loss on a GPU by Triton kernels: class weights, every form and denominator.

One kernel sums exponentials for each row: where the anchors are the candidates and no exponential can overflow, each
pair once for both of its rows, else by a running maximum. Another recomputes the similarities and multiplies their
gradient with the rows of the other side; where the anchors are the candidates, it adds both directions of a pair. What
is linear in the similarities, the numerator of the out form, comes from sums by class in float32.

Operands of products are float16 by default (bfloat16 on request), sums are float32. Rows are divided by a power of two
that bounds their length, 1 for unit rows, and gradients of similarities are scaled to the range of float16; it has
eight times the precision of bfloat16 at the same speed. Up to some ten thousand rows the launches of operations take
longer than the kernels, so that operations are few, and the host waits for the device once.

Without a GPU the tests run the kernels in Triton's interpreter (`TRITON_INTERPRET=1`), which checks values, not speed.
"""

from __future__ import annotations

import importlib.util
import math
import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad as pad_columns

from mmcon.affinity import Affinity, ClassFactor, SameLabel
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.loss_inputs import AnchorLosses, Problem, check_single_backward

if TYPE_CHECKING:
    from mmcon.losses.backends.triton_kernels import Operand

MAX_WIDTH = 512
#: The largest weight of a gradient of similarities: four terms of it are finite in float16.
LARGEST = 2.0**13
#: Below this logarithm products of exponentials with weights of up to `LARGEST` are finite in float32.
LOG_FINITE = 75.0


class ClassWeights(NamedTuple):
    """Weights `scale` of pairs of one class, else 0.

    Attributes:
        rows: classes of the anchors, any integers.
        columns: classes of the candidates; the same tensor where they are the anchors'.
        scale: above 0.
    """

    rows: Int[Tensor, " a"]
    columns: Int[Tensor, " c"]
    scale: float = 1.0


def supported_weights(problem: Problem) -> ClassWeights | str:
    """The class weights of a problem that the kernels support, or the reason why they do not."""
    settings, width = problem.settings, problem.anchors.shape[1]
    if not _is_installed():
        return "the package triton is not installed"
    if not (problem.anchors.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return f"triton: rows on {problem.anchors.device}"
    if settings.negative_weights is not None or settings.similarity is not None:
        return "triton: negative weights, or a similarity other than the dot product"
    if problem.anchors.dtype != torch.float32 or width > MAX_WIDTH:
        return f"triton: {problem.anchors.dtype} rows of width {width}, where float32 to {MAX_WIDTH} is supported"
    weights = _class_weights(problem.affinity)
    if weights is None:
        return "triton: weights that are not those of classes"
    return weights if weights.scale > 0 else "triton: weights that are all 0"


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _class_weights(affinity: Affinity) -> ClassWeights | None:
    if isinstance(affinity, SameLabel):
        # As they are: `factors` sorts them, for which the host waits.
        return ClassWeights(*affinity.values()[0])
    factors = affinity.factors() or ()
    if len(factors) != 1 or not isinstance(factors[0], ClassFactor) or factors[0].table is not None:
        return None
    return ClassWeights(factors[0].rows, factors[0].columns, factors[0].scale)


def triton_losses(problem: Problem, weights: ClassWeights, operands: torch.dtype = torch.float16) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid, to the precision of `operands`."""
    if 0 in problem.affinity.shape:
        return dense_losses(problem)
    losses, valid = _TritonLoss.apply(
        problem, weights, operands, problem.anchors, problem.candidates, problem.temperature
    )
    return AnchorLosses(losses, valid)


class _Inputs(NamedTuple):
    """The operands of the kernels.

    Attributes:
        a, c: anchors and candidates, divided by `a_size` and `c_size`, powers of two, with class indices.
        a_size, c_size: at least the norms.
        inverse: one over the temperature.
        scale: from products of operands to similarities in units of log 2.
        square: whether the anchors are the candidates, each its own self.
        bounded: whether no exponential of a similarity, and no sum of them, overflows.
        classes: the number of class indices.
    """

    a: Operand
    c: Operand
    a_size: float
    c_size: float
    inverse: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    square: bool
    bounded: bool
    classes: int


def _inputs(problem: Problem, weights: ClassWeights, operands: torch.dtype) -> _Inputs:
    from mmcon.losses.backends.triton_kernels import LOG2_E, Operand

    a, c, (rows, columns, _) = problem.anchors.detach(), problem.candidates.detach(), weights
    square = problem.square and problem.diagonal
    sides = [(a, rows)] if square else [(a, rows), (c, columns)]
    facts = [torch.linalg.vector_norm(x, dim=1).max() for x, _ in sides]
    facts += [bound for _, labels in sides for bound in labels.aminmax()]
    # The only wait for the device.
    facts = torch.stack([fact.double() for fact in (problem.temperature.detach(), *facts)]).tolist()
    temperature, a_norm, c_norm, *bounds = (facts[0], facts[1], *facts[1:]) if square else facts
    classes = int(max(bounds)) + 1
    if min(bounds) < 0 or classes > 4 * len(c) + 1024:
        known, ids = torch.unique(torch.cat([labels for _, labels in sides]), return_inverse=True)
        classes, rows, columns = len(known), ids[: len(a)], ids[-len(c) :]
    a_size, c_size, inverse = _power_of_two(a_norm), _power_of_two(c_norm), 1 / problem.temperature.detach()
    # Padding has no class in common with the other side.
    left = Operand.of(a if a_size == 1 else a / a_size, rows, operands, -1)
    right = left if square else Operand.of(c if c_size == 1 else c / c_size, columns, operands, -2)
    bounded = square and a_norm * c_norm / temperature + math.log(len(c) + 1) < LOG_FINITE
    return _Inputs(left, right, a_size, c_size, inverse, inverse * (a_size * c_size * LOG2_E), square, bounded, classes)


def _power_of_two(norm: float) -> float:
    """At least the norm; 1 for rows that are zero or not finite."""
    return 2.0 ** math.ceil(math.log2(norm)) if 0 < norm < math.inf else 1.0


class _Forward(NamedTuple):
    """What the backward pass needs of each anchor; logarithms of invalid anchors are +inf, so that e^{s - inf} is 0.

    Attributes:
        valid: whether the anchor has a loss.
        weight_sum: the sum of weights.
        divisor: the sum of weights, or 1.
        log_denominator: log D; with denominator `one`, of the negatives alone; None where `inverse_sums` is given.
        inverse_sums: 1 / D where no exponential overflows, 0 for invalid anchors.
        log_positives: log Σ_P e^s, with the in form.
        shares: Σ_P ∂ log(D/e^s) / ∂ log N, with denominator `one`.
        class_sums: Σ_P c_j, where the numerator is linear in the similarities.
    """

    valid: Bool[Tensor, " a"]
    weight_sum: Float[Tensor, " a"]
    divisor: Float[Tensor, " a"]
    log_denominator: Float[Tensor, " a"] | None
    inverse_sums: Float[Tensor, " a"] | None = None
    log_positives: Float[Tensor, " a"] | None = None
    shares: Float[Tensor, " a"] | None = None
    class_sums: Float[Tensor, "a d"] | None = None


class _TritonLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        weights: ClassWeights,
        operands: torch.dtype,
        a: Float[Tensor, "a d"],
        c: Float[Tensor, "c d"],
        temperature: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, " a"], Bool[Tensor, " a"]]:
        inputs = _inputs(problem, weights, operands)
        losses, found = _losses(problem, weights, inputs)
        ctx.save_for_backward(a, c)
        ctx.problem, ctx.weight, ctx.inputs, ctx.found = problem, weights.scale, inputs, found
        ctx.mark_non_differentiable(found.valid)
        return losses, found.valid

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " a"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        check_single_backward("triton")
        a, _ = ctx.saved_tensors
        inputs, found = ctx.inputs, ctx.found
        gradient = torch.where(found.valid, gradients[0], 0)
        v = gradient / found.divisor
        of_a, of_c = _softmax_terms(ctx.problem, ctx.weight, inputs, found, gradient, v)
        if found.class_sums is not None:
            v = v[:, None]
            of_a.addcmul_(v, found.class_sums, value=-ctx.weight)
            (of_a if of_c is None else of_c).sub_(_sums_of_anchors(ctx.problem, inputs, v * a), alpha=ctx.weight)
        of_temperature = None
        if ctx.needs_input_grad[5]:
            # Σ_ij G_ij ⟨a_i, c_j⟩; where the anchors are the candidates, each pair was added from both ends.
            of_inverse = (a * of_a).sum() / (2 if of_c is None else 1)
            of_temperature = -of_inverse * inputs.inverse**2
        of_c = None if of_c is None else of_c.mul_(inputs.inverse)
        return None, None, None, of_a.mul_(inputs.inverse), of_c, of_temperature


def _losses(problem: Problem, weights: ClassWeights, inputs: _Inputs) -> tuple[Float[Tensor, " a"], _Forward]:
    """The losses of `weighted_supcon`, 0 for invalid anchors."""
    from mmcon.losses.backends.triton_kernels import log_sums, pair_sums, positive_sums

    settings, a = problem.settings, problem.anchors.detach()
    plain = settings.form == "out" and settings.denominator == "all"
    class_sums, counts = _sums_of_candidates(problem, inputs)
    valid, weight_sum = counts > 0, counts * weights.scale
    log_positives = shares = inverse_sums = None
    # Atomic additions have no fixed order.
    if plain and inputs.bounded and not torch.are_deterministic_algorithms_enabled():
        sums = pair_sums(inputs.a, inputs.scale)
        log_denominator, inverse_sums = sums.log(), torch.where(valid, sums.reciprocal_(), 0)
    else:
        own = _padded_self_index(problem)
        log_denominator, log_positives = log_sums(inputs.a, inputs.c, own, inputs.scale, labels=not plain)
        if not plain and settings.denominator == "all":
            log_denominator = torch.logaddexp(log_denominator, log_positives)
    if settings.denominator == "negatives":
        valid = valid & torch.isfinite(log_denominator)
    divisor = torch.where(valid, weight_sum, 1) if settings.row_normalize else torch.ones_like(weight_sum)
    if settings.form == "in":
        assert log_positives is not None
        losses = log_denominator - log_positives - math.log(weights.scale) + divisor.log()
        log_positives = torch.where(valid, log_positives, math.inf)
    elif settings.denominator == "one":
        own = _padded_self_index(problem)
        losses, shares = positive_sums(inputs.a, inputs.c, own, log_denominator, inputs.scale)
        losses = losses * weights.scale / divisor
    else:
        numerator = (class_sums * a).sum(1).mul_(inputs.inverse * weights.scale)
        losses = (weight_sum * log_denominator).sub_(numerator).div_(divisor)
    linear = settings.form == "out" and settings.denominator != "one"
    known = None if inverse_sums is not None else torch.where(valid, log_denominator, math.inf)
    found = _Forward(
        valid, weight_sum, divisor, known, inverse_sums, log_positives, shares, class_sums if linear else None
    )
    return torch.where(valid, losses, 0), found


def _softmax_terms(
    problem: Problem,
    weight: float,
    inputs: _Inputs,
    found: _Forward,
    gradient: Float[Tensor, " a"],
    v: Float[Tensor, " a"],
) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
    """`Σ_j G_ij c_j` and `Σ_i G_ij a_i` by temperature, without the numerator of the out form.

    Where the anchors are the candidates, both sums are in the first.
    """
    from mmcon.losses.backends.triton_kernels import LOG2_E, pad, weighted_rows

    form_in, one = problem.settings.form == "in", problem.settings.denominator == "one"
    negatives = problem.settings.denominator != "all"
    shared = found.inverse_sums is not None
    weights = positive_weights = gradient if form_in else v * found.weight_sum
    if one:
        assert found.shares is not None
        weights, positive_weights = v * found.shares * weight, v * weight
    largest = torch.linalg.vector_norm(torch.cat([weights, positive_weights]) if one else weights, math.inf)
    size = (largest / LARGEST).clamp_min_(1e-30)
    if found.inverse_sums is not None:
        numbers = (weights * found.inverse_sums).div_(size)[None]
    else:
        assert found.log_denominator is not None
        log_positives = found.log_denominator if found.log_positives is None else found.log_positives
        logs = found.log_denominator * LOG2_E, log_positives * LOG2_E
        numbers = torch.stack([weights / size, logs[0], positive_weights / size, logs[1]])
    terms: Any = {"shared": shared, "negatives": negatives, "form_in": form_in, "one": one}
    padded, own, d = pad(numbers, 0), _padded_self_index(problem), problem.anchors.shape[1]
    if inputs.square:
        both = weighted_rows(inputs.a, inputs.c, own, (padded, padded), inputs.scale, **terms)
        return both[:, :d] * (size * inputs.a_size), None
    of_a = weighted_rows(inputs.a, inputs.c, own, (padded, None), inputs.scale, **terms)
    of_c = weighted_rows(inputs.c, inputs.a, own, (None, padded), inputs.scale, **terms)
    return of_a[:, :d] * (size * inputs.c_size), of_c[:, :d] * (size * inputs.a_size)


# --- sums by class ---------------------------------------------------------------------------------------------------


def _padded_self_index(problem: Problem) -> Int[Tensor, " padded"]:
    from mmcon.losses.backends.triton_kernels import pad

    return pad(problem.self_index.int(), -1)


def _by_class(rows: Float[Tensor, "n d"], inputs: _Inputs, source: Operand, target: Operand) -> Float[Tensor, "m d"]:
    """For each row of `target` the sum of the given rows, those of `source`, of its class."""
    sums = rows.new_zeros(inputs.classes, rows.shape[1])
    sums.index_add_(0, source.labels[: source.count], rows)
    return sums.index_select(0, target.labels[: target.count])


def _sums_of_candidates(problem: Problem, inputs: _Inputs) -> tuple[Float[Tensor, "a d"], Float[Tensor, " a"]]:
    """The sum and the number of the candidates in the class of each anchor, without its own column."""
    # A column of ones counts the rows: exact in float32 to 16 million.
    c = pad_columns(problem.candidates.detach(), (0, 1), value=1.0)
    sums = _by_class(c, inputs, inputs.c, inputs.a)
    if inputs.square:
        sums.sub_(c)
    else:
        sums.sub_(c[problem.self_index.clamp_min(0)] * _has_own_positive(problem, inputs)[:, None])
    return sums[:, :-1], sums[:, -1]


def _sums_of_anchors(problem: Problem, inputs: _Inputs, rows: Float[Tensor, "a d"]) -> Float[Tensor, "c d"]:
    """The sum of rows of the anchors in the class of each candidate, without anchors whose own column it is."""
    sums = _by_class(rows, inputs, inputs.a, inputs.c)
    if inputs.square:
        return sums.sub_(rows)
    own = rows * _has_own_positive(problem, inputs)[:, None]
    return sums.index_add_(0, problem.self_index.clamp_min(0), own, alpha=-1)


def _has_own_positive(problem: Problem, inputs: _Inputs) -> Bool[Tensor, " a"]:
    """Whether an anchor's own column is a candidate of its class."""
    own = inputs.c.labels[problem.self_index.clamp_min(0)]
    return (problem.self_index >= 0) & (own == inputs.a.labels[: inputs.a.count])
