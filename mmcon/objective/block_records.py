"""What a block of the last step was made of, kept for the diagnostics of a log line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from mmcon.affinity import Affinity
from mmcon.losses.diagnostics import diagnose


class BlockRecord(NamedTuple):
    """The arguments of the loss of a block on this rank, without gradient.

    Attributes:
        anchors: the rows of this rank.
        candidates: the rows of all ranks, and those of a queue; None: the anchors.
        affinity: bound to the tables of the rows.
        temperature: a number or a scalar.
        self_index: for each anchor its own row among the candidates, or -1; None: no anchor is a candidate, or the
            candidates are None.
    """

    anchors: Float[Tensor, "a d"]
    candidates: Float[Tensor, "c d"] | None
    affinity: Affinity
    temperature: float | Float[Tensor, ""]
    self_index: Int[Tensor, " a"] | None


def diagnose_blocks(records: Mapping[str, BlockRecord], *, independent_negatives: bool = False) -> dict[str, float]:
    """The `Diagnostics` of each block as numbers to log; with several blocks, each under the name of the block.

    Args:
        records: by block.
        independent_negatives: whether the negatives are sampled independently of the anchor (see `diagnose`).
    """
    found: dict[str, float] = {}
    for name, record in records.items():
        measured = diagnose(
            record.anchors,
            record.candidates,
            record.affinity.map_parameters(Tensor.detach),
            temperature=record.temperature,
            self_index=record.self_index,
            independent_negatives=independent_negatives,
        ).metrics()
        found |= {f"{key}/{name}" if len(records) > 1 else key: value for key, value in measured.items()}
    return found
