"""Groups of rows across which all pairs have one weight: most pairs, in a batch of many classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class Groups(NamedTuple):
    """Numbers of anchors and of candidates; pairs with different numbers have the weight `across`.

    Attributes:
        rows: of the anchors, such as class labels.
        columns: of the candidates.
        across: 0 for an affinity, 1 for its complement.
    """

    rows: Shaped[Tensor, " a"]
    columns: Shaped[Tensor, " c"]
    across: float = 0.0


def coarser(first: Groups | None, second: Groups | None) -> Groups | None:
    """The groups that contain those of the other; None where neither do, or one is None."""
    if first is None or second is None:
        return None
    ids, counts = [], []
    for groups in (first, second):
        known, of_rows = torch.unique(torch.cat([groups.rows, groups.columns]), return_inverse=True)
        ids.append(of_rows)
        counts.append(len(known))
    pairs = len(torch.unique(ids[0] * counts[1] + ids[1]))
    # As many pairs of numbers as numbers of one: each of these has one number of the other.
    return second if pairs == counts[0] else first if pairs == counts[1] else None
