"""All pairs of a problem, block by block, each block seen from its anchors' side.

Where anchors are the candidates, the similarity of a pair is computed once and seen from both of its sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcon.affinity import Affinity
from mmcon.losses.backends.matmul import inner
from mmcon.losses.problem import Problem


class Side(NamedTuple):
    """A block of pairs from the anchors' point of view, all `r c`.

    Attributes:
        rows, columns: which anchors and candidates.
        s: similarities over temperature.
        weights: W, 0 for self.
        positive, negative: which pairs are.
        log_v: logarithm of the negative weights, or None for 0.
        others: all pairs but self.
    """

    rows: slice
    columns: slice
    s: Tensor
    weights: Tensor
    positive: Tensor
    negative: Tensor
    log_v: Tensor | None
    others: Tensor


def visit(problem: Problem, tile: int) -> Iterator[list[Side]]:
    """All pairs, block by block; of a dot product of rows with themselves only the upper triangle, from both sides."""
    similarity = problem.similarity or inner
    triangle_only = problem.square and problem.similarity is None
    inverse = 1 / problem.temperature
    for rows in _blocks(len(problem.anchors), tile):
        for columns in _blocks(len(problem.candidates), tile):
            if triangle_only and columns.start < rows.start:
                continue
            s = similarity(problem.anchors[rows], problem.candidates[columns]) * inverse
            sides = [_side(problem, rows, columns, s)]
            if triangle_only and columns.start > rows.start:
                sides.append(_side(problem, columns, rows, s.T))
            yield sides


def _side(problem: Problem, rows: slice, columns: slice, s: Tensor) -> Side:
    own = problem.self_index[rows, None]
    others = own != torch.arange(columns.start, columns.stop, device=s.device)
    weights = problem.affinity.tile(rows, columns).detach().to(s.dtype) * others
    positive = weights > 0
    negative = others if problem.all_are_negatives else others & ~positive
    log_v = None
    if isinstance(problem.negatives, Affinity):
        v = problem.negatives.tile(rows, columns).detach().to(s.dtype)
        negative, log_v = negative & (v > 0), v.log()
    return Side(rows, columns, s, weights, positive, negative, log_v, others)


def _blocks(n: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, n)) for start in range(0, n, tile)]
