"""The anchors and candidates of one step: local rows, gathered rows of all ranks, and rows of a queue or bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.affinity import Affinity, CandidateWeights
from mmcon.batch import Index, ViewBatch
from mmcon.distributed import collectives
from mmcon.errors import InputError
from mmcon.objective.pair_blocks import Block, Name, modality_of, view_of

Embeddings = Mapping[str, Mapping[str, Float[Tensor, "_ _"]]]


@runtime_checkable
class CandidateMemory(Protocol):
    """A queue or memory bank: candidates beyond the batch."""

    def rows(self, space: str, modality: str) -> tuple[Float[Tensor, "c d"], Index] | None:
        """Embeddings `c d` and their table, or None while there are none."""
        ...


class CandidateRows(NamedTuple):
    """The candidates of a block.

    Attributes:
        embeddings: None: the anchors themselves.
        table: of the same rows.
        self_index: for each anchor its own row, or -1; None: no anchor is a candidate, or the candidates are None.
        stored: the number of rows from memory, which are the last ones.
    """

    embeddings: Float[Tensor, "c d"] | None
    table: Index | None
    self_index: Int[Tensor, " a"] | None
    stored: int = 0


class GlobalBatch(NamedTuple):
    """The rows of one step, by (space, modality).

    Attributes:
        local: the rows of this rank.
        gathered: the rows of all ranks.
        pool: the rows of all ranks that serve as candidates: `gathered`, or those of a momentum encoder.
    """

    local: dict[Name, Float[Tensor, "_ _"]]
    gathered: collectives.Gathered
    pool: collectives.Gathered

    def anchors(self, names: Sequence[Name]) -> tuple[Float[Tensor, "a d"], Index]:
        """The local rows of the names, concatenated, and their table."""
        found, tables = [], []
        for name in names:
            rows = self.local[name] if name in self.local else self.gathered.embeddings[name][:0]
            offset, table = self.gathered.offsets[name], self.gathered.tables[name]
            found.append(rows)
            tables.append(table if len(rows) == table.n else table.take(slice(offset, offset + len(rows))))
        return _concatenated(found), _concatenated_tables(tables)

    def candidates(
        self, anchors: Sequence[Name], names: Sequence[Name], memory: CandidateMemory | None
    ) -> CandidateRows:
        """The rows of the names on all ranks, then those in memory."""
        stored = [found for name in names if memory is not None and (found := stored_rows(memory, name)) is not None]
        same_rows = self.pool is self.gathered and tuple(anchors) == tuple(names)
        # None in place of the same rows: backends then compute each unordered pair once.
        if same_rows and not stored and collectives.get_world_size() == 1:
            return CandidateRows(None, None, None)
        rows = _concatenated([*(self.pool.embeddings[name] for name in names), *(rows for rows, _ in stored)])
        table = _concatenated_tables([*(self.pool.tables[name] for name in names), *(table for _, table in stored)])
        own = self._self_index(anchors, names, rows.device) if set(anchors) & set(names) else None
        return CandidateRows(rows, table, own, stored=sum(len(rows) for rows, _ in stored))

    def _self_index(self, anchors: Sequence[Name], names: Sequence[Name], device: torch.device) -> Int[Tensor, " a"]:
        starts, start = {}, 0
        for name in names:
            starts[name] = start
            start += len(self.pool.embeddings[name])
        indices = []
        for name in anchors:
            index = torch.arange(len(self.local.get(name, ())), device=device)
            own = index + starts[name] + self.pool.offsets[name] if name in starts else torch.full_like(index, -1)
            indices.append(own)
        return torch.cat(indices)


def rows_by_name(
    embeddings: Embeddings | Float[Tensor, "n d"], tables: Mapping[str, Index], blocks: Sequence[Block] | None
) -> tuple[dict[Name, Float[Tensor, "_ _"]], dict[Name, Index]]:
    """Rows and tables by the names that blocks use: modalities, and single views of them."""
    sides = {name for block in blocks or () for side in block.sides for name in side}
    single_views = sorted(name for name in sides if ":" in name)
    rows: dict[Name, Float[Tensor, "_ _"]] = {}
    found: dict[Name, Index] = {}
    for (space, modality), z in _checked_rows(embeddings, tables).items():
        table = tables[modality]
        if blocks is None or modality in sides:
            rows[space, modality], found[space, modality] = z, table
        for name in single_views:
            if modality_of(name) == modality:
                chosen = (table["view"] == view_of(name)).nonzero()[:, 0]
                rows[space, name], found[space, name] = z[chosen], table.take(chosen)
    return rows, found


def tables_by_modality(
    embeddings: Embeddings | Float[Tensor, "n d"], batch: ViewBatch | Mapping[str, Index] | Index
) -> Mapping[str, Index]:
    """The table of each modality; a single table serves all of them."""
    if isinstance(batch, ViewBatch):
        return batch.index
    if isinstance(batch, Index):
        modalities = {"rows"} if isinstance(embeddings, Tensor) else {m for rows in embeddings.values() for m in rows}
        return dict.fromkeys(modalities, batch)
    return batch


def stored_rows(memory: CandidateMemory, name: Name) -> tuple[Float[Tensor, "c d"], Index] | None:
    """The rows in memory of a modality, or of one view of it."""
    space, side = name
    found = memory.rows(space, modality_of(side))
    if found is None or ":" not in side:
        return found
    rows, table = found
    if "view" not in table:
        raise InputError(
            type(memory).__name__,
            expected=f"rows with a column 'view', since a block names {side!r} alone",
            got=f"columns {sorted(table)}",
            fix="use a Queue, which stores each view; a Bank has one row a sample, whatever the view",
        )
    chosen = (table["view"] == view_of(side)).nonzero()[:, 0]
    return rows[chosen], table.take(chosen)


def stored_columns(anchors: int, candidates: int, stored: int, device: torch.device) -> Affinity:
    """Weights that are 1 for the candidates from memory, which are the last ones, and 0 for those of the batch."""
    return CandidateWeights(torch.arange(candidates, device=device) >= candidates - stored, anchors=anchors)


def _checked_rows(
    embeddings: Embeddings | Float[Tensor, "n d"], tables: Mapping[str, Index]
) -> dict[Name, Float[Tensor, "_ _"]]:
    """Rows by (space, modality), each with a table of as many rows."""
    if isinstance(embeddings, Tensor):
        if len(tables) != 1:
            got = f"a tensor, and tables of {sorted(tables)}"
            raise InputError("Objective", expected="embeddings by space and modality", got=got)
        return {("space", next(iter(tables))): embeddings}
    named = {(space, modality): z for space, rows in embeddings.items() for modality, z in rows.items()}
    for (space, modality), z in named.items():
        if modality not in tables or tables[modality].n != len(z):
            got = f"one of {tables[modality].n}" if modality in tables else f"tables of {sorted(tables)}"
            raise InputError("Objective", expected=f"a table of {len(z)} rows for {space}/{modality}", got=got)
    return named


def _concatenated(rows: list[Float[Tensor, "_ d"]]) -> Float[Tensor, "n d"]:
    return rows[0] if len(rows) == 1 else torch.cat([z.to(rows[0]) for z in rows])


def _concatenated_tables(tables: list[Index]) -> Index:
    return tables[0] if len(tables) == 1 else Index.cat(tables)
