"""Cosine similarities of two feature sets, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.evaluation.features import Features

# Similarities in memory at once: 32 MB in float32.
BLOCK_SIZE = 8_000_000


def similarity_blocks(
    queries: Features, candidates: Features
) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r c"]]]:
    """Blocks of the cosine matrix: the indices of `r` queries, and their cosines with all candidates."""
    x, y = queries.normalized(), candidates.normalized()
    for rows in torch.arange(len(x)).split(max(1, BLOCK_SIZE // len(y))):
        yield rows, x[rows] @ y.T


def check_same_width(where: str, first: Features, second: Features) -> None:
    """Raise InputError unless both sets have rows, and rows of one width."""
    widths = first.values.shape[1], second.values.shape[1]
    if widths[0] != widths[1] or not len(first) or not len(second):
        raise InputError(
            where,
            expected="two non-empty feature sets of one width",
            got=f"{len(first)} × {widths[0]}, {len(second)} × {widths[1]}",
        )
