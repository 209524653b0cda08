"""The order of rows in which all positives are in a few blocks, so that most pairs are negatives of weight 1.

With class weights every positive is a pair of one class. Rows are sorted by class, and whole classes are joined to
blocks of a hundred rows or more. Pairs within blocks need masks and weights; the pairs across blocks, nearly all where
there are many classes, need an exponential alone, whatever the form and the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mmcon.affinity import Affinity, CandidateWeights, Groups, coarser
from mmcon.losses.backends.exponentials import Block
from mmcon.losses.loss_inputs import Problem

#: The least rows of a block, on a CPU and on a GPU, where small operations wait for their launch.
CPU_ROWS, GPU_ROWS = 128, 1024
#: The most blocks of a problem: each takes some hundred operations.
MAX_BLOCKS = 64


@dataclass(frozen=True)
class Layout:
    """A problem whose pairs across blocks are negatives of weight 1.

    Attributes:
        problem: with its rows in order, without gradient.
        rows, columns: the orders of anchors and of candidates; None: as they were.
        blocks: slices of rows and of columns.
        kept: whether a candidate is a negative across blocks; None: all are.
    """

    problem: Problem
    rows: Int[Tensor, " a"] | None
    columns: Int[Tensor, " c"] | None
    blocks: Sequence[Block]
    kept: Bool[Tensor, " c"] | None = None

    @staticmethod
    def whole(problem: Problem) -> Layout:
        """All pairs in one block."""
        a, c = problem.affinity.shape
        return Layout(problem, None, None, [(slice(0, a), slice(0, c))])

    def share_of_blocks(self) -> float:
        """The share of all pairs that are in blocks."""
        within = sum((r.stop - r.start) * (c.stop - c.start) for r, c in self.blocks)
        return within / max(1, math.prod(self.problem.affinity.shape))

    def negatives_across(self) -> Int[Tensor, " a"]:
        """The number of negatives across blocks, for each anchor."""
        kept = torch.ones_like(self.problem.candidates[:, 0], dtype=torch.bool) if self.kept is None else self.kept
        counts = kept.sum().expand(len(self.problem.anchors)).clone()
        for rows, columns in self.blocks:
            counts[rows] -= kept[columns].sum()
        return counts


def grouped(problem: Problem, tile_size: int) -> Layout | None:
    """The problem in blocks of groups; None where its weights have no groups."""
    groups = _groups(problem)
    if groups is None:
        return None
    rows, columns, blocks = _order(groups, _least_rows(problem, tile_size))
    columns = rows if problem.square else columns
    reordered = _reordered(problem, rows, columns)
    if reordered is None:
        return None
    weights = reordered.negative_affinity
    kept = weights.weights > 0 if isinstance(weights, CandidateWeights) else None
    return Layout(reordered, rows, columns, blocks, kept)


def in_order(values: Shaped[Tensor, "n ..."], order: Int[Tensor, " n"] | None) -> Shaped[Tensor, "n ..."]:
    """Values of the given rows in an order."""
    return values if order is None else values[order]


def as_given(values: Shaped[Tensor, "n ..."], order: Int[Tensor, " n"] | None) -> Shaped[Tensor, "n ..."]:
    """Values in an order as the rows were given: the inverse of `in_order`."""
    return values if order is None else torch.empty_like(values).index_copy_(0, order, values)


def _groups(problem: Problem) -> Groups | None:
    """Groups across which W is 0, and V is 1 or that of the candidate, 0 or 1; they contain the self pairs."""
    if problem.settings.similarity is not None or problem.all_are_negatives:
        return None
    groups = problem.affinity.groups()
    if groups is None or groups.across != 0:
        return None
    weights = problem.negative_affinity
    if isinstance(weights, CandidateWeights):
        if problem.square:
            return None  # a triangle serves both directions of a pair, and these weights hold for candidates alone
        groups = groups if bool(((weights.weights == 0) | (weights.weights == 1)).all()) else None
    elif weights is not None:
        others = weights.groups()
        groups = coarser(groups, others) if others is not None and others.across == 1 else None
    if groups is None:
        return None
    if problem.square:
        same = groups.rows is groups.columns or torch.equal(groups.rows, groups.columns)
        return groups if same and problem.is_diagonal() else None
    own = problem.self_index
    within = (own < 0) | (groups.rows == groups.columns[own.clamp_min(0)])
    return groups if not problem.has_self or bool(within.all()) else None


def _least_rows(problem: Problem, tile_size: int) -> int:
    least = GPU_ROWS if problem.anchors.is_cuda else CPU_ROWS
    return max(min(least, tile_size), -(-max(problem.affinity.shape) // MAX_BLOCKS))


def _order(groups: Groups, least: int) -> tuple[Int[Tensor, " a"], Int[Tensor, " c"], list[Block]]:
    """The orders that sort rows by group, and blocks of whole groups with about `least` rows or more."""
    a = len(groups.rows)
    known, ids = torch.unique(torch.cat([groups.rows, groups.columns]), return_inverse=True)
    counts = torch.stack([torch.bincount(side, minlength=len(known)) for side in (ids[:a], ids[a:])])
    # Groups without an anchor or without a candidate have no pairs, and come last.
    alone = (counts == 0).any(0)
    order = torch.argsort(alone.long(), stable=True)
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    row_order, column_order = (torch.argsort(rank[side], stable=True) for side in (ids[:a], ids[a:]))
    counts = counts[:, order][:, : int((~alone).sum())]
    size = counts.amax(0)
    block_of_group = (size.cumsum(0) - size) // least
    _, block = torch.unique_consecutive(block_of_group, return_inverse=True)
    ends = torch.zeros(2, int(block.max()) + 1 if len(block) else 0, dtype=torch.int64, device=block.device)
    ends = ends.index_add_(1, block, counts).cumsum(1).tolist()
    starts = [[0, *side][:-1] for side in ends]
    edges = zip(starts[0], ends[0], starts[1], ends[1], strict=True)
    return row_order, column_order, [(slice(i, j), slice(k, m)) for i, j, k, m in edges]


def _reordered(problem: Problem, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Problem | None:
    affinity, settings = problem.affinity.reordered(rows, columns), problem.settings
    if isinstance(settings.negative_weights, Affinity):
        weights = settings.negative_weights.reordered(rows, columns)
        if weights is None:
            return None
        settings = replace(settings, negative_weights=weights)
    if affinity is None:
        return None
    anchors, own = problem.anchors.detach()[rows], problem.self_index
    if not problem.square:
        moved = torch.empty_like(columns).index_copy_(0, columns, torch.arange(len(columns), device=columns.device))
        own = own[rows]
        own = torch.where(own >= 0, moved[own.clamp_min(0)], -1)
    return replace(
        problem,
        anchors=anchors,
        candidates=anchors if problem.square else problem.candidates.detach()[columns],
        affinity=affinity,
        temperature=problem.temperature.detach(),
        self_index=own,
        settings=settings,
    )
