"""Affinity by shared time: two views are alike by as much as their spans overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcon.affinity.pairwise import Column, Key, Pairwise


class SpanOverlap(Pairwise):
    """The time that two spans of one clip share, over the time that either covers: 1 for the same span, 0 for none.

        W = max(0, min(end_i, end_j) − max(start_i, start_j)) / (max(end_i, end_j) − min(start_i, start_j))

    Args:
        start: of each row's span, seconds, or the name of a column.
        end: of each row's span.
        group: which clip a row is from; None: all rows are of one.

    >>> SpanOverlap(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), group=None).dense()[0, 1].item()
    0.3333333432674408
    """

    def __init__(
        self, start: Column = "time_start", end: Column = "time_end", *, group: Column | None = "group"
    ) -> None:
        super().__init__(*(Key(column) for column in (start, end, group) if column is not None))

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        """The weights of a block."""
        (start, others_start), (end, others_end) = values[:2]
        both = torch.minimum(end[:, None], others_end) - torch.maximum(start[:, None], others_start)
        either = torch.maximum(end[:, None], others_end) - torch.minimum(start[:, None], others_start)
        weights = both.clamp_min(0) / torch.where(either > 0, either, 1)
        if len(values) > 2:
            rows, columns = values[2]
            weights = weights * (rows[:, None] == columns)
        return weights
