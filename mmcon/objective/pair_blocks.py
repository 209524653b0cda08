"""Blocks: ordered pairs of modalities in a space, anchors of one against candidates of the other.

Each side is a modality, `"image"`, one view of it, `"image:0"`, or several as a tuple, which then share one softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mmcon.errors import ConfigError
from mmcon.losses.settings import reject_unknown_options

Modalities = str | tuple[str, ...]
#: The name of rows: (space, modality) or (space, "modality:view").
Name = tuple[str, str]


@reject_unknown_options
@dataclass(frozen=True)
class Block:
    """Anchors of one modality against candidates of another, in a space.

    Attributes:
        anchors: a modality, or one view of it ("image:0"); a tuple of several shares one block.
        candidates: a modality or a view; a tuple: one softmax over the union; None: the same as the anchors.
        space: the name of a space; None: every space that has both sides.
        weight: multiplies the loss of the block.
        affinity: replaces that of the objective.
        temperature: replaces that of the objective.
        negative_weights: replaces those of the objective, to mask or weight false negatives of this pair.
    """

    anchors: Modalities
    candidates: Modalities | None = None
    space: str | None = None
    weight: float = 1.0
    affinity: Any = None
    temperature: Any = None
    negative_weights: Any = None

    def __post_init__(self) -> None:
        named = {name for side in self.sides for name in side}
        twice = sorted(name for name in named if ":" in name and modality_of(name) in named)
        if twice:
            raise ConfigError(
                f"block {self.label('*')!r}",
                expected="a whole modality, or single views of it",
                got=f"{twice} beside {modality_of(twice[0])!r}, so that a row would be its own candidate",
                fix='name every view: ("image:0", "image:1")',
            )

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The modalities of the anchors and of the candidates."""
        candidates = self.anchors if self.candidates is None else self.candidates
        return _as_tuple(self.anchors), _as_tuple(candidates)

    def label(self, space: str) -> str:
        """The name of the block in logs."""
        anchors, candidates = ("+".join(side) for side in self.sides)
        return f"{space}/{anchors}" if anchors == candidates else f"{space}/{anchors}>{candidates}"


def blocks_by_space(blocks: Sequence[Block] | None, union: bool, names: Iterable[Name]) -> list[tuple[str, Block]]:
    """The blocks of the objective, each with its space; all ranks get the same list.

    Args:
        blocks: of the objective; None: every ordered pair of modalities in every space.
        union: one block a space in place of the pairs.
        names: the rows that exist.
    """
    spaces: dict[str, list[str]] = {}
    for space, modality in names:
        spaces.setdefault(space, []).append(modality)
    if blocks is not None:
        everywhere = sorted(set(spaces) | {block.space for block in blocks if block.space is not None})
        return [(space, block) for block in blocks for space in everywhere if block.space in (space, None)]
    if union:
        return [(space, Block(tuple(sorted(modalities)))) for space, modalities in sorted(spaces.items())]
    pairs = [(s, a, c) for s, modalities in sorted(spaces.items()) for a, c in product(sorted(modalities), repeat=2)]
    return [(space, Block(a, c)) for space, a, c in pairs]


def modality_of(name: str) -> str:
    """The modality of "image:1", or of "image"."""
    return name.partition(":")[0]


def view_of(name: str) -> int:
    """The number of the view of "image:1"."""
    number = name.partition(":")[2]
    if not number.isdecimal():
        raise ConfigError("Block", expected='a modality, or one view of it such as "image:0"', got=repr(name))
    return int(number)


def _as_tuple(side: Modalities) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else tuple(side)
