"""The weighted loss in O(n) memory on any device, with every setting.

Tiles of similarities are computed in the forward pass, reduced to a few numbers for each anchor (`RowStatistics`), and
computed again in the backward pass. Where `plain` supports the problem, it is used instead, since it is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.losses.backends import exponentials, plain, weight_tiles
from mmcon.losses.backends.autograd_node import ForwardPass, PassKind
from mmcon.losses.backends.exponentials import PairTiles, are_exact, exponential_sums
from mmcon.losses.backends.group_blocks import Layout, as_given, grouped, in_order
from mmcon.losses.backends.row_statistics import (
    RowResults,
    RowStatistics,
    add_pair_losses,
    negative_powers,
    row_results,
)
from mmcon.losses.backends.tiled_gradients import TiledGradients
from mmcon.losses.backends.tiles import iterate_tiles
from mmcon.losses.loss_inputs import AnchorLosses, Problem, check_single_backward
from mmcon.losses.settings import WHERE

TILE_SIZE = 512
#: With more of all pairs than this in blocks of groups, tiles with weights are faster than masks and logarithms.
MAX_SHARE_OF_BLOCKS = 0.15


def tiled_losses(problem: Problem, tile_size: int | None = None) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid, by tiles of `tile_size²` pairs."""
    return tiled_pass(problem, tile_size).losses()


@torch.no_grad()
def tiled_pass(problem: Problem, tile_size: int | None = None) -> ForwardPass:
    """The forward pass, by the fastest path that supports the problem."""
    of_masks, of_exponentials = _tile_sizes(problem, tile_size)
    found = plain.plain_pass(problem, None, of_exponentials) if plain.supports(problem) else None
    if found is not None:
        return found
    layout = grouped(problem, of_masks)
    if (layout is None or layout.share_of_blocks() > MAX_SHARE_OF_BLOCKS) and weight_tiles.supports(problem):
        found = weight_tiles.weight_tile_pass(problem, of_exponentials)
        if found is not None:
            return found
    return _general_pass(problem, layout, of_masks)


@torch.no_grad()
def restored(problem: Problem, kind: PassKind, saved: Float[Tensor, "_ a"]) -> ForwardPass:
    """The forward pass of a problem from its kind and what it saved, without its products."""
    of_masks, of_exponentials = _tile_sizes(problem, None)
    if kind == PassKind.PLAIN:
        return plain.restored(problem, of_exponentials, saved)
    if kind == PassKind.WEIGHTS:
        return weight_tiles.restored(problem, of_exponentials, saved)
    layout = grouped(problem, of_masks) if kind == PassKind.GROUPED else Layout.whole(problem)
    assert layout is not None
    has_positive = saved[1] > 0
    statistics = RowStatistics(saved[0], has_positive, *saved[2:])
    return _GeneralPass(problem, layout, statistics, row_results(problem, statistics), of_masks)


def _tile_sizes(problem: Problem, tile_size: int | None) -> tuple[int, int]:
    """The sizes of tiles with masks and weights, and of tiles of exponentials alone."""
    size = tile_size or (exponentials.GPU_TILE_SIZE if problem.anchors.is_cuda else None)
    return size or TILE_SIZE, size or exponentials.TILE_SIZE


def tiled_both(problem: Problem, reverse: Problem, tile_size: int | None = None) -> tuple[AnchorLosses, AnchorLosses]:
    """`tiled_losses` of both directions of a pair of modalities, in one pass where `plain` supports them."""
    if plain.supports(problem) and plain.supports(reverse):
        found = plain.plain_losses(problem, reverse, _tile_sizes(problem, tile_size)[1])
        if found is not None:
            return found[0], found[1]
    return tiled_losses(problem, tile_size), tiled_losses(reverse, tile_size)


def general_losses(problem: Problem, tile_size: int = TILE_SIZE) -> AnchorLosses:
    """`tiled_losses` for every setting, without `plain` and `weight_tiles`."""
    with torch.no_grad():
        found = _general_pass(problem, grouped(problem, tile_size), tile_size)
    return found.losses()


@dataclass(frozen=True)
class _GeneralPass(ForwardPass):
    """A pass with masks and weights, in the order of its layout."""

    problem: Problem
    layout: Layout
    statistics: RowStatistics
    results: RowResults
    tile_size: int

    @property
    def kind(self) -> PassKind:
        return PassKind.WHOLE if self.layout.rows is None else PassKind.GROUPED

    def losses(self) -> AnchorLosses:
        problem, parameters = self.problem, _extra_parameters(self.problem)
        losses, valid = _TiledLoss.apply(
            self.layout, self.statistics, self.results, self.tile_size,
            problem.anchors, problem.candidates, problem.temperature, *parameters,
        )  # fmt: skip
        return AnchorLosses(losses, valid)

    def saved(self) -> Float[Tensor, "9 a"]:
        sums = [getattr(self.statistics, field.name) for field in fields(self.statistics)]
        return torch.stack([values.to(self.problem.anchors.dtype) for values in sums])


def _general_pass(problem: Problem, layout: Layout | None, tile_size: int) -> _GeneralPass:
    found = None if layout is None else _row_results(layout, tile_size)
    if layout is None or found is None:
        layout = Layout.whole(problem)
        found = _row_results(layout, tile_size)
    assert found is not None  # a whole problem has no pairs across blocks, whose exponentials may leave the range
    return _GeneralPass(problem, layout, *found, tile_size)


def _across(layout: Layout, tile_size: int) -> PairTiles:
    """The pairs across blocks, in larger tiles than those with masks and weights."""
    problem = layout.problem
    size = exponentials.TILE_SIZE if tile_size == TILE_SIZE else tile_size
    return PairTiles(
        problem.anchors, problem.candidates, 1 / problem.temperature, size, blocks=layout.blocks, kept=layout.kept
    )


def _row_results(layout: Layout, tile_size: int) -> tuple[RowStatistics, RowResults] | None:
    """The sums of each anchor; None where exponentials of pairs across blocks leave the range of the dtype."""
    problem, counts = layout.problem, layout.negatives_across()
    statistics = RowStatistics.empty(problem)
    if bool((counts > 0).any()):
        sums = exponential_sums(_across(layout, tile_size), negative_powers(problem))
        if not all(are_exact(of_rows, counts) for of_rows, _ in sums):
            return None
        statistics.add_negatives(problem, [of_rows for of_rows, _ in sums], counts)
    for tiles in iterate_tiles(problem, tile_size, layout.blocks):
        for tile in tiles:
            statistics.add(problem, tile)
    if problem.settings.denominator == "one":
        add_pair_losses(problem, statistics, iterate_tiles(problem, tile_size, layout.blocks))
    return statistics, row_results(problem, statistics)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        statistics: RowStatistics,
        results: RowResults,
        tile_size: int,
        *inputs: Float[Tensor, "..."],
    ) -> tuple[Float[Tensor, " a"], Bool[Tensor, " a"]]:
        ctx.layout, ctx.statistics, ctx.results, ctx.tile_size = layout, statistics, results, tile_size
        ctx.parameters = inputs[3:]
        ctx.save_for_backward(inputs[0], inputs[1])  # autograd then refuses embeddings that were changed in place
        # Copies: an output of the node that is stored in ctx would be a reference cycle, which keeps its memory.
        losses, valid = (as_given(x.clone(), layout.rows) for x in (results.losses, results.valid))
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " a"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        check_single_backward("tiled")
        _ = ctx.saved_tensors
        layout, gradient = ctx.layout, in_order(gradients[0], ctx.layout.rows)
        accumulated = TiledGradients(
            layout.problem, ctx.statistics, ctx.results, gradient, ctx.parameters,
            candidates_too=ctx.needs_input_grad[5],
        )  # fmt: skip
        for tiles in iterate_tiles(layout.problem, ctx.tile_size, layout.blocks):
            accumulated.add(tiles)
        if bool((layout.negatives_across() > 0).any()):
            accumulated.add_negatives(_across(layout, ctx.tile_size))
        of_anchors, of_candidates, *others = accumulated.of_inputs()
        assert of_anchors is not None
        of_anchors = as_given(of_anchors, layout.rows)
        of_candidates = None if of_candidates is None else as_given(of_candidates, layout.columns)
        return None, None, None, None, of_anchors, of_candidates, *others


def _extra_parameters(problem: Problem) -> list[Float[Tensor, "..."]]:
    """The other tensors that receive a gradient: kernel widths, given weights, parameters of a similarity."""
    found = list(problem.affinity.parameters())
    if problem.negative_affinity is not None:
        found += problem.negative_affinity.parameters()
    similarity = problem.settings.similarity
    if isinstance(similarity, nn.Module):
        found += [parameter for parameter in similarity.parameters() if parameter.requires_grad]
    elif similarity is not None:
        _check_visible_parameters(problem)
    return found


def _check_visible_parameters(problem: Problem) -> None:
    """Raise InputError if a function closes over parameters: the backward pass of tiles cannot reach them."""
    with torch.enable_grad():
        probe = problem.settings.similarity(problem.anchors[:1].detach(), problem.candidates[:1].detach())  # pyright: ignore
    if probe.requires_grad:
        raise InputError(
            WHERE,
            expected="a similarity whose parameters are visible",
            got="a function that closes over tensors with gradients",
            fix="make it a torch.nn.Module, or use backend='dense'",
        )
