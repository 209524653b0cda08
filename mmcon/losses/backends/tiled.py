"""The weighted loss in O(n) memory on any device: tiles are computed, used, and computed again in the backward pass.

Kept between the passes are the embeddings and a few numbers a row (`_Stats`): log-sum-exps and sums of weights. Every
knob of the loss is served. `triangle` takes over where it is quicker still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmcon.affinity import Affinity
from mmcon.errors import InputError
from mmcon.losses.backends import symmetric
from mmcon.losses.backends.matmul import times, transposed_times
from mmcon.losses.backends.tiles import Side, visit
from mmcon.losses.negative_weights import HardNegatives, log_debiased
from mmcon.losses.problem import WHERE, Problem, RowLosses, refuse_double_backward

TILE = 512
EMPTY = float("-inf")


def tiled_rows(problem: Problem, tile: int | None = None) -> RowLosses:
    """The loss of every anchor and which are valid, as `dense_rows`, by tiles of `tile × tile` pairs."""
    if symmetric.fits(problem):
        return symmetric.triangle_rows(problem, tile or symmetric.TILE)
    return general_rows(problem, tile or TILE)


def general_rows(problem: Problem, tile: int = TILE) -> RowLosses:
    """As `tiled_rows`, for all knobs and without the short cut."""
    learnable = _learnable(problem)
    losses, valid = _Tiled.apply(problem, tile, problem.anchors, problem.candidates, problem.temperature, *learnable)
    return RowLosses(losses, valid)


def _learnable(problem: Problem) -> list[Tensor]:
    """What else receives a gradient: kernels' widths, given weights, a similarity's parameters."""
    found = list(problem.affinity.parameters())
    if isinstance(problem.negatives, Affinity):
        found += problem.negatives.parameters()
    if isinstance(problem.similarity, nn.Module):
        found += [parameter for parameter in problem.similarity.parameters() if parameter.requires_grad]
    elif problem.similarity is not None:
        _refuse_hidden_parameters(problem)
    return found


def _refuse_hidden_parameters(problem: Problem) -> None:
    """A function may close over parameters; a backward pass by tiles could not reach them."""
    with torch.enable_grad():
        probe = problem.similarity(problem.anchors[:1].detach(), problem.candidates[:1].detach())  # pyright: ignore
    if probe.requires_grad:
        raise InputError(
            WHERE,
            expected="a similarity whose parameters can be seen",
            got="a function that closes over tensors with gradients",
            fix="make it a torch.nn.Module, or use backend='dense'",
        )


@dataclass
class _Stats:
    """Numbers a row, `a`, gathered over its tiles."""

    sums: Tensor  # Σ W
    has_positive: Tensor
    weighted: Tensor  # Σ W s, or with a denominator for each positive Σ W log(D/e^s)
    log_positives: Tensor  # log Σ_P e^s
    log_weighted: Tensor  # log Σ W e^s
    log_far: Tensor  # log Σ_N V e^s, or with hard negatives log Σ_N e^{(1+β)s}
    log_near: Tensor  # log Σ_N e^{βs}
    negatives: Tensor  # |N|
    felt: Tensor  # Σ W ∂log(D/e^s)/∂log N, with a denominator for each positive

    @staticmethod
    def of(problem: Problem) -> _Stats:
        def full(value: float) -> Tensor:
            return problem.anchors.new_full((len(problem.anchors),), value)

        zero, empty = [full(0.0) for _ in range(4)], [full(EMPTY) for _ in range(4)]
        none = torch.zeros(len(problem.anchors), dtype=torch.bool, device=problem.anchors.device)
        return _Stats(zero[0], none, zero[1], empty[0], empty[1], empty[2], empty[3], zero[2], zero[3])

    def take(self, problem: Problem, side: Side) -> None:
        """Account for a side."""
        rows = side.rows
        self.sums[rows] += side.weights.sum(1)
        self.has_positive[rows] |= side.positive.any(1)
        self.negatives[rows] += side.negative.sum(1)
        if problem.form == "in":
            _grow(self.log_weighted, rows, side.positive, side.s + side.weights.log())
        elif problem.denominator != "one":
            self.weighted[rows] += (side.weights * side.s).sum(1)
        if problem.denominator == "all":
            _grow(self.log_positives, rows, side.positive, side.s)
        beta = _concentration(problem)
        _grow(self.log_far, rows, side.negative, _far(problem, side))
        if beta > 0:
            _grow(self.log_near, rows, side.negative, beta * side.s)

    def log_negatives(self, problem: Problem) -> Tensor:
        if not isinstance(problem.negatives, HardNegatives):
            return self.log_far
        spread = self.log_near if problem.negatives.concentration > 0 else self.negatives.log()
        return torch.where(self.negatives > 0, self.negatives.log() + self.log_far - spread, EMPTY)


class _Solved(NamedTuple):
    """What the backward pass needs of each row."""

    valid: Tensor
    divisor: Tensor
    log_negatives: Tensor
    log_all: Tensor
    losses: Tensor


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, tile: int, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        stats = _Stats.of(problem)
        for sides in visit(problem, tile):
            for side in sides:
                stats.take(problem, side)
        solved = _solve(problem, stats, tile)
        ctx.problem, ctx.tile, ctx.stats, ctx.solved, ctx.learnable = problem, tile, stats, solved, inputs[3:]
        ctx.mark_non_differentiable(solved.valid)
        return solved.losses.clone(), solved.valid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("tiled")
        back = _Backward(ctx.problem, ctx.stats, ctx.solved, gradients[0], ctx.learnable)
        for sides in visit(ctx.problem, ctx.tile):
            back.take(sides)
        return None, None, *back.results()


def _solve(problem: Problem, stats: _Stats, tile: int) -> _Solved:
    log_negatives = stats.log_negatives(problem)
    valid = stats.has_positive
    if problem.denominator == "negatives":
        valid = valid & torch.isfinite(log_negatives)
    divisor = torch.where(valid, stats.sums, 1) if problem.row_normalize else torch.ones_like(stats.sums)
    log_all = torch.logaddexp(stats.log_positives, log_negatives) if problem.denominator == "all" else log_negatives
    if problem.form == "in":
        losses = log_all - stats.log_weighted + divisor.log()
    else:
        if problem.denominator == "one":
            _second_pass(problem, stats, log_negatives, tile)
            losses = stats.weighted / divisor
        else:
            losses = (stats.sums * log_all - stats.weighted) / divisor
    # Rows that are not valid feel nothing: e^{s - inf} = 0 whatever s is.
    log_all = torch.where(valid, log_all, float("inf"))
    return _Solved(valid, divisor, log_negatives, log_all, torch.where(valid, losses, 0))


def _second_pass(problem: Problem, stats: _Stats, log_negatives: Tensor, tile: int) -> None:
    """Denominators of single positives are known only when the negatives' sum is."""
    for sides in visit(problem, tile):
        for side in sides:
            excess, _, felt, _ = _excess(problem, side, stats.negatives[side.rows], log_negatives[side.rows])
            stats.weighted[side.rows] += (side.weights * excess).sum(1)
            stats.felt[side.rows] += (side.weights * felt).sum(1)


def _excess(problem: Problem, side: Side, count: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log(D_ij / e^{s_ij}) at positives; its derivatives by s_ij, by log N_i, and by temperature (weighted, `r`)."""
    hard = problem.negatives
    if not isinstance(hard, HardNegatives) or hard.class_prior == 0:
        gap = torch.where(side.positive, log_sum[:, None] - side.s, EMPTY)
        felt = torch.sigmoid(gap)
        return nn.functional.softplus(gap), -felt, felt, torch.zeros_like(log_sum)
    with torch.enable_grad():
        s = side.s.detach().requires_grad_()
        each_sum = log_sum[:, None].expand_as(s).clone().requires_grad_()
        temperature = problem.temperature.detach().expand_as(s).clone().requires_grad_()
        log_each = log_debiased(s, each_sum, count[:, None], temperature, hard.class_prior)
        excess = torch.where(side.positive, torch.logaddexp(s, log_each) - s, 0)
        by_s, by_sum, by_temperature = torch.autograd.grad(excess.sum(), [s, each_sum, temperature])
    return excess.detach(), by_s, by_sum, (side.weights * by_temperature).sum(1)


class _Backward:
    """Gradients of embeddings, temperature and learnable parts, gathered over tiles."""

    def __init__(
        self, problem: Problem, stats: _Stats, solved: _Solved, g: Tensor, learnable: tuple[Tensor, ...]
    ) -> None:
        self.problem, self.stats, self.solved, self.learnable = problem, stats, solved, learnable
        self.g = torch.where(solved.valid, g, 0)
        self.v = self.g / solved.divisor
        self.anchors = torch.zeros_like(problem.anchors)
        self.candidates = self.anchors if problem.square else torch.zeros_like(problem.candidates)
        self.extra = [torch.zeros_like(parameter) for parameter in learnable]
        self.at_inverse = torch.zeros_like(problem.temperature)
        self.at_temperature = torch.zeros_like(problem.temperature)

    def take(self, sides: list[Side]) -> None:
        total = self.gradient(sides[0])
        if len(sides) == 2:
            total = total + self.gradient(sides[1]).T
        rows, columns = sides[0].rows, sides[0].columns
        if self.problem.similarity is None:
            self.anchors[rows] += times(total, self.problem.candidates[columns])
            self.candidates[columns] += transposed_times(total, self.problem.anchors[rows])
        else:
            self._through_similarity(rows, columns, total)

    def gradient(self, side: Side) -> Tensor:
        """∂ loss / ∂ s of a side, and what its weights receive on the way."""
        problem, rows = self.problem, side.rows
        v = self.v[rows, None]
        pressure = self._pressure()[rows, None]
        if problem.denominator == "all":
            by_s = pressure * _exp(side.positive, side.s - self.solved.log_all[rows, None])
            pressure = pressure * torch.exp(self.solved.log_negatives - self.solved.log_all)[rows, None]
        else:
            by_s = torch.zeros_like(side.s)
        by_s = by_s + pressure * self._of_negatives(side)
        if problem.form == "in":
            by_s = by_s - self.g[rows, None] * self._share_in(side)
        elif problem.denominator == "one":
            excess = _excess(problem, side, self.stats.negatives[rows], self.solved.log_negatives[rows])
            by_s = by_s + v * side.weights * excess[1]
            self.at_temperature += (self.v[rows] * excess[3]).sum()
        else:
            by_s = by_s - v * side.weights
        self._learn(side, pressure)
        return by_s

    def _pressure(self) -> Tensor:
        """∂ loss / ∂ log of the denominator; with a denominator for each positive, of the negatives' sum."""
        if self.problem.form == "in":
            return self.g
        return self.v * (self.stats.felt if self.problem.denominator == "one" else self.stats.sums)

    def _of_negatives(self, side: Side) -> Tensor:
        """∂ log N / ∂ s, N the negatives' sum."""
        rows, hard = side.rows, self.problem.negatives
        far = _exp(side.negative, _far(self.problem, side) - _finite(self.stats.log_far[rows])[:, None])
        if not isinstance(hard, HardNegatives) or hard.concentration == 0 or hard.detach:
            return far
        beta = hard.concentration
        near = _exp(side.negative, beta * side.s - _finite(self.stats.log_near[rows])[:, None])
        return (1 + beta) * far - beta * near

    def _share_in(self, side: Side) -> Tensor:
        """W e^s / Σ W e^s, of the in form."""
        return _exp(side.positive, side.s + side.weights.log() - _finite(self.stats.log_weighted[side.rows])[:, None])

    def _learn(self, side: Side, pressure: Tensor) -> None:
        """What learnable positive and negative weights receive."""
        problem, rows = self.problem, side.rows
        positive = list(problem.affinity.parameters())
        if positive:
            self._into(positive, problem.affinity, side, self._at_weights(side))
        if isinstance(problem.negatives, Affinity) and (negative := list(problem.negatives.parameters())):
            assert side.log_v is not None
            gap = side.s - _finite(self.solved.log_negatives[rows])[:, None]
            self._into(negative, problem.negatives, side, pressure * _exp(side.negative, gap))

    def _at_weights(self, side: Side) -> Tensor:
        rows, problem = side.rows, self.problem
        if problem.form == "in":
            direct = -self._share_in(side) / torch.where(side.positive, side.weights, 1)
            level = -1 / self.solved.divisor[rows, None] if problem.row_normalize else 0.0
            return self.g[rows, None] * torch.where(side.others, direct - level, 0)
        if problem.denominator == "one":
            excess = _excess(problem, side, self.stats.negatives[rows], self.solved.log_negatives[rows])[0]
        else:
            excess = torch.where(side.positive, _finite(self.solved.log_all[rows])[:, None] - side.s, 0)
        level = self.solved.losses[rows, None] if problem.row_normalize else 0.0
        return self.v[rows, None] * torch.where(side.others, excess - level, 0)

    def _into(self, parameters: list[Tensor], affinity: Affinity, side: Side, gradient: Tensor) -> None:
        with torch.enable_grad():
            weights = affinity.tile(side.rows, side.columns)
        found = torch.autograd.grad(weights, parameters, gradient.to(weights.dtype), allow_unused=True)
        self._add(parameters, found)

    def _through_similarity(self, rows: slice, columns: slice, gradient: Tensor) -> None:
        problem = self.problem
        assert problem.similarity is not None
        own = [p for p in problem.similarity.parameters() if p.requires_grad] if _is_module(problem.similarity) else []
        with torch.enable_grad():
            a, c = (
                problem.anchors[rows].detach().requires_grad_(),
                problem.candidates[columns].detach().requires_grad_(),
            )
            raw = problem.similarity(a, c)
        self.at_inverse += (gradient * raw.detach()).sum()
        through = gradient / problem.temperature
        at_a, at_c, *found = torch.autograd.grad(raw, [a, c, *own], through, allow_unused=True)
        self.anchors[rows] += 0 if at_a is None else at_a
        self.candidates[columns] += 0 if at_c is None else at_c
        self._add(own, tuple(found))

    def _add(self, parameters: list[Tensor], found: tuple[Tensor | None, ...]) -> None:
        for parameter, gradient in zip(parameters, found, strict=True):
            i = next(i for i, known in enumerate(self.learnable) if known is parameter)
            if gradient is not None:
                self.extra[i] += gradient

    def results(self) -> tuple[Tensor | None, ...]:
        """In the order of the inputs: anchors, candidates, temperature, learnable parts."""
        problem, inverse = self.problem, 1 / self.problem.temperature
        if problem.similarity is None:
            # Σ_ij G_ij ⟨a_i, c_j⟩; where anchors are the candidates, each pair was counted from both ends.
            self.at_inverse = (problem.anchors * self.anchors).sum() / (2 if problem.square else 1)
            self.anchors.mul_(inverse)
            if not problem.square:
                self.candidates.mul_(inverse)
        at_temperature = self.at_temperature - self.at_inverse * inverse * inverse
        # Where anchors are the candidates, both inputs are one tensor, and its gradient goes in once.
        return self.anchors, None if problem.square else self.candidates, at_temperature, *self.extra


def _far(problem: Problem, side: Side) -> Tensor:
    """Exponents of the negatives' sum."""
    if side.log_v is not None:
        return side.s + side.log_v
    return side.s * (1 + _concentration(problem))


def _concentration(problem: Problem) -> float:
    return problem.negatives.concentration if isinstance(problem.negatives, HardNegatives) else 0.0


def _grow(log_sums: Tensor, rows: slice, mask: Tensor, exponents: Tensor) -> None:
    """Take a block's terms into a running log-sum-exp."""
    log_sums[rows] = torch.logaddexp(log_sums[rows], torch.where(mask, exponents, EMPTY).logsumexp(1))


def _exp(mask: Tensor, exponents: Tensor) -> Tensor:
    return torch.where(mask, exponents, EMPTY).exp()


def _finite(log_sums: Tensor) -> Tensor:
    """Empty sums are only met behind a mask, where any number will do."""
    return torch.where(torch.isfinite(log_sums), log_sums, 0)


def _is_module(similarity: Any) -> bool:
    return isinstance(similarity, nn.Module)
