# ruff: noqa: D102 — an override does what its base says
"""Weights by the overlap of time spans."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.affinity.groups import Groups
from mmcon.affinity.pairwise import OF_COLUMNS, Column, ColumnPair, Pair, Pairwise, equal


class SpanOverlap(Pairwise, flattened=OF_COLUMNS):
    """Intersection over union of two time spans of one recording: 1 for equal spans, 0 for disjoint ones.

        W = max(0, min(end_i, end_j) − max(start_i, start_j)) / (max(end_i, end_j) − min(start_i, start_j))

    Args:
        start: of the span of each row, in seconds, or the name of a column.
        end: of the span of each row.
        group: the recording of each row; None: all rows are of one.

    >>> SpanOverlap(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), group=None).dense()[0, 1].item()
    0.3333333432674408
    """

    def __init__(
        self, start: Column = "time_start", end: Column = "time_end", *, group: Column | None = "group"
    ) -> None:
        super().__init__(*(ColumnPair(column) for column in (start, end, group) if column is not None))
        self.check_values()

    def groups(self) -> Groups | None:
        return None if len(self.column_pairs) == 2 else Groups(*self.values()[2])

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        (start, others_start), (end, others_end) = (
            [v if v.is_floating_point() else v.to(self.dtype) for v in pair] for pair in values[:2]
        )
        both = torch.minimum(end[:, None], others_end) - torch.maximum(start[:, None], others_start)
        either = torch.maximum(end[:, None], others_end) - torch.minimum(start[:, None], others_start)
        weights = both.clamp_min(0) / torch.where(either > 0, either, 1)
        if len(values) > 2:
            rows, columns = values[2]
            weights = weights * equal(rows, columns, weights.dtype)
        return weights
