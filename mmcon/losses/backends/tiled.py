"""The weighted loss in O(n) memory on any device, with every setting.

Tiles of similarities are computed in the forward pass, reduced to a few numbers for each anchor (`RowStatistics`), and
computed again in the backward pass. Where `plain` supports the problem, it is used instead, since it is faster.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.losses.backends import exponentials, plain
from mmcon.losses.backends.row_statistics import RowStatistics, row_results
from mmcon.losses.backends.tiled_gradients import TiledGradients
from mmcon.losses.backends.tiles import iterate_tiles
from mmcon.losses.problem import AnchorLosses, Problem, check_single_backward
from mmcon.losses.settings import WHERE

TILE_SIZE = 512


def tiled_losses(problem: Problem, tile_size: int | None = None) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid, by tiles of `tile_size²` pairs."""
    on_gpu = exponentials.GPU_TILE_SIZE if problem.anchors.is_cuda else None
    if plain.supports(problem):
        found = plain.plain_losses(problem, None, tile_size or on_gpu or exponentials.TILE_SIZE)
        if found is not None:
            return found[0]
    return general_losses(problem, tile_size or on_gpu or TILE_SIZE)


def general_losses(problem: Problem, tile_size: int = TILE_SIZE) -> AnchorLosses:
    """`tiled_losses` for every setting, without `plain`."""
    parameters = _extra_parameters(problem)
    losses, valid = _TiledLoss.apply(
        problem, tile_size, problem.anchors, problem.candidates, problem.temperature, *parameters
    )
    return AnchorLosses(losses, valid)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, tile_size: int, *inputs: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, " a"], Bool[Tensor, " a"]]:
        statistics = RowStatistics.empty(problem)
        for tiles in iterate_tiles(problem, tile_size):
            for tile in tiles:
                statistics.add(problem, tile)
        results = row_results(problem, statistics, tile_size)
        ctx.problem, ctx.tile_size, ctx.statistics, ctx.results = problem, tile_size, statistics, results
        ctx.parameters = inputs[3:]
        ctx.mark_non_differentiable(results.valid)
        # A copy: an output of the node that is stored in ctx would be a reference cycle, which keeps its memory.
        return results.losses.clone(), results.valid

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " a"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        check_single_backward("tiled")
        accumulated = TiledGradients(ctx.problem, ctx.statistics, ctx.results, gradients[0], ctx.parameters)
        for tiles in iterate_tiles(ctx.problem, ctx.tile_size):
            accumulated.add(tiles)
        return None, None, *accumulated.of_inputs()


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
