"""Blocks: which rows are contrasted with which, in which space; and what is known of them before the first step.

A block is an ordered pair. Each side is a modality, `"image"`, one view of it, `"image:0"`, or several as a tuple,
which then share one softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from mmcon.affinity import SameSample
from mmcon.batch import Index
from mmcon.errors import ConfigError, nearest

Modalities = str | tuple[str, ...]
# A side of a block in a space: (space, modality) or (space, "modality:view").
Name = tuple[str, str]


@dataclass(frozen=True)
class Block:
    """Anchors of one modality against candidates of another, in a space.

    Attributes:
        anchors: a modality, or one view of it ("image:0"); several share one block as a tuple.
        candidates: a modality or a view; a tuple: one softmax over the union of theirs; None: the anchors' own.
        space: where they meet; None: in every space that has them.
        weight: multiplies the block's loss.
        affinity: in place of the objective's.
        temperature: in place of the objective's.
        negative_weights: in place of the objective's, to mask or to weigh false negatives of this pair.
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
        twice = sorted(name for name in named if ":" in name and name.partition(":")[0] in named)
        if twice:
            raise ConfigError(
                f"block {self.label('*')!r}",
                expected="a modality as a whole, or single views of it",
                got=f"{twice} beside {twice[0].partition(':')[0]!r}, so that a row would meet itself",
                fix='name every view: ("image:0", "image:1")',
            )

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Modalities of anchors and of candidates."""
        return _names(self.anchors), _names(self.anchors if self.candidates is None else self.candidates)

    def label(self, space: str) -> str:
        """How logs call the block in a space."""
        anchors, candidates = ("+".join(side) for side in self.sides)
        return f"{space}/{anchors}" if anchors == candidates else f"{space}/{anchors}>{candidates}"


class BlockReport(NamedTuple):
    """What a block contributed, over all processes; tensors, so that nothing waits for the device.

    Attributes:
        loss: its mean before the weight.
        anchors: how many there were.
        valid: how many had a positive.
    """

    loss: Tensor
    anchors: Tensor
    valid: Tensor


class Report(dict[str, BlockReport]):
    """The last step by block, `space/anchors>candidates`."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log: each block's loss and share of valid anchors, and how many blocks were empty."""
        logged = {}
        for name, block in self.items():
            logged[f"loss/{name}"] = float(block.loss)
            logged[f"valid_anchors/{name}"] = float(block.valid / block.anchors.clamp_min(1))
        return {**logged, "empty_blocks": float(sum(int(block.valid) == 0 for block in self.values()))}


def plan(blocks: Sequence[Block] | None, union: bool, names: Iterable[Name]) -> list[tuple[str, Block]]:
    """Which blocks the rows at hand call for, by space; all processes come to the same list.

    Args:
        blocks: what was asked for; None: every ordered pair of modalities in every space.
        union: in place of pairs, one block a space.
        names: what rows there are, by (space, modality).
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


def with_views(
    named: Mapping[Name, Tensor], tables: Mapping[str, Index], blocks: Sequence[Block] | None
) -> tuple[dict[Name, Tensor], dict[Name, Index]]:
    """Rows and their tables by the names that blocks use: modalities, and views of which a block speaks."""
    wanted = sorted({name for block in blocks or () for side in block.sides for name in side if ":" in name})
    rows: dict[Name, Tensor] = {}
    found: dict[Name, Index] = {}
    for (space, modality), z in named.items():
        rows[space, modality], found[space, modality] = z, tables[modality]
        for name in wanted:
            if name.partition(":")[0] == modality:
                chosen = (tables[modality]["view"] == view_of(name)).nonzero()[:, 0]
                rows[space, name], found[space, name] = z[chosen], tables[modality].take(chosen)
    if blocks is not None:
        used = {name for block in blocks for side in block.sides for name in side}
        rows = {name: z for name, z in rows.items() if name[1] in used}
    return rows, {name: found[name] for name in rows}


def view_of(name: str) -> int:
    """The view that "image:1" speaks of."""
    number = name.partition(":")[2]
    if not number.isdecimal():
        raise ConfigError("Block", expected='a modality, or one view of it such as "image:0"', got=repr(name))
    return int(number)


def check_blocks(
    blocks: Sequence[Block] | None, spaces: Mapping[str, Iterable[str]], views: Mapping[str, int] | None = None
) -> None:
    """Refuse blocks that no model with these spaces, or no batch with these views, can fill.

    Args:
        blocks: a pair table, or None.
        spaces: by space, the modalities that have a head there.
        views: by modality, how many views batches hold; None: not known yet.

    Raises:
        ConfigError: a block names a space, a modality or a view that is not there.
    """
    for block in blocks or ():
        if block.space is not None and block.space not in spaces:
            raise _unknown(block, "a space", block.space, spaces)
        there = {m for name, modalities in spaces.items() if block.space in (name, None) for m in modalities}
        where = f"which have a head in {'any space' if block.space is None else f'space {block.space!r}'}"
        for name in sorted({name for side in block.sides for name in side}):
            modality = name.partition(":")[0]
            if modality not in there:
                raise _unknown(block, "a modality", modality, there, where)
            if views is not None and modality not in views:
                raise _unknown(block, "a modality", modality, views, "which batches have views of")
            if ":" in name and view_of(name) >= (views or {}).get(modality, math.inf):
                known = [f"{modality}:{view}" for view in range((views or {})[modality])]
                raise _unknown(block, "a view", name, known, "which batches hold")


def fillable(planned: Iterable[tuple[str, Block]], spaces: Mapping[str, Iterable[str]]) -> list[tuple[str, Block]]:
    """Of a plan, the blocks that have heads for both sides in the space."""
    there = {space: set(modalities) for space, modalities in spaces.items()}

    def has(space: str, side: tuple[str, ...]) -> bool:
        return any(name.partition(":")[0] in there.get(space, ()) for name in side)

    return [(space, block) for space, block in planned if all(has(space, side) for side in block.sides)]


def _unknown(block: Block, what: str, name: str, known: Iterable[str], where: str = "") -> ConfigError:
    return ConfigError(
        f"block {block.label(block.space or '*')!r}",
        expected=f"{what} among {sorted(known)}" + (f", {where}" if where else ""),
        got=repr(name),
        fix=nearest(name, sorted(known)),
    )


def check_meetings(
    blocks: Sequence[tuple[str, Block, Any]], together: Mapping[tuple[str, str], int], where: str
) -> None:
    """Refuse pairs that find each other by sample in data where no sample has both.

    Args:
        blocks: each with its label and its affinity.
        together: how many samples of the data have both modalities, by pair.
        where: what the data are called.

    Raises:
        ConfigError: a block can never have a positive.
    """
    for label, block, affinity in blocks:
        anchors, candidates = ({name.partition(":")[0] for name in side} for side in block.sides)
        counts = [together.get((a, c), 0) for a in anchors for c in candidates]
        if isinstance(affinity, SameSample) and not any(counts):
            raise ConfigError(
                f"block {label!r}",
                expected="samples that have both sides, since positives are rows of one sample",
                got=f"none in {where}",
                fix="check that both sources call a sample by the same id, leave the pair out, or use SameLabel",
            )


def _names(side: Modalities) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else tuple(side)
