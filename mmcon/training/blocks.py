"""Blocks: which rows are contrasted with which, in which space; and what is known of them before the first step.

A block is an ordered pair. Each side is a modality, `"image"`, one view of it, `"image:0"`, or several as a tuple,
which then share one softmax.
"""

from __future__ import annotations

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
    """

    anchors: Modalities
    candidates: Modalities | None = None
    space: str | None = None
    weight: float = 1.0
    affinity: Any = None
    temperature: Any = None

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


def check_blocks(blocks: Sequence[Block] | None, spaces: Mapping[str, Iterable[str]]) -> None:
    """Refuse blocks that no model with these spaces can fill.

    Args:
        blocks: a pair table, or None.
        spaces: by space, the modalities that have a head there.

    Raises:
        ConfigError: a block names a space or a modality that is not there.
    """
    for block in blocks or ():
        if block.space is not None and block.space not in spaces:
            raise ConfigError(
                f"block {block.label(block.space)!r}",
                expected=f"a space among {sorted(spaces)}",
                got=repr(block.space),
                fix=nearest(block.space, sorted(spaces)),
            )
        there = {m for name, modalities in spaces.items() if block.space in (name, None) for m in modalities}
        for name in {name for side in block.sides for name in side}:
            modality = name.partition(":")[0]
            if ":" in name:
                view_of(name)
            if modality not in there:
                where = f"space {block.space!r}" if block.space is not None else "any space"
                raise ConfigError(
                    f"block {block.label(block.space or '*')!r}",
                    expected=f"modalities among {sorted(there)}, which have a head in {where}",
                    got=repr(modality),
                    fix=nearest(modality, sorted(there)),
                )


def check_meetings(blocks: Sequence[tuple[Block, Any]], together: Mapping[tuple[str, str], int], where: str) -> None:
    """Refuse pairs that find each other by sample in data where no sample has both.

    Args:
        blocks: blocks of a model, each with its affinity.
        together: how many samples of the data have both modalities, by pair.
        where: what the data are called.
    """
    for block, affinity in blocks:
        anchors, candidates = ({name.partition(":")[0] for name in side} for side in block.sides)
        counts = [together.get((a, c), 0) for a in anchors for c in candidates]
        if isinstance(affinity, SameSample) and not any(counts):
            raise ConfigError(
                f"block {block.label(block.space or '*')!r}",
                expected="samples that have both sides, since positives are rows of one sample",
                got=f"none in {where}",
                fix="check that both sources call a sample by the same id, leave the pair out, or use SameLabel",
            )


def _names(side: Modalities) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else tuple(side)
