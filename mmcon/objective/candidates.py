"""Rows of one call of the objective: this process's as anchors, all processes' and a queue's as candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmcon.batch import Index
from mmcon.distributed import collectives
from mmcon.errors import InputError
from mmcon.objective.pair_blocks import Name, view_of


@runtime_checkable
class MoreCandidates(Protocol):
    """Rows beyond the batch: a queue or a bank."""

    def rows(self, space: str, modality: str) -> tuple[Tensor, Index] | None:
        """Embeddings `c d` and their table, or None while there are none."""
        ...


class Step(NamedTuple):
    """Rows of one call: this process's, all processes', and those that stand in as candidates."""

    local: dict[Name, Tensor]
    rows: collectives.Gathered
    others: collectives.Gathered
    own: bool
    temperatures: dict[str, Tensor]

    def anchors(self, names: list[Name]) -> tuple[Tensor, Index]:
        """This process's rows of the names, under one another."""
        parts, tables = [], []
        for name in names:
            part = self.local[name] if name in self.local else self.rows.embeddings[name][:0]
            offset, table = self.rows.offsets[name], self.rows.tables[name]
            parts.append(part)
            tables.append(table if len(part) == table.n else table.take(slice(offset, offset + len(part))))
        return _stacked(parts), _table(tables)

    def candidates(
        self, anchors: list[Name], names: list[Name], queue: MoreCandidates | None
    ) -> tuple[Tensor | None, Index | None, Tensor | None]:
        """All processes' rows of the names, then the queue's; their table; and where each anchor is among them.

        Without candidates the anchors are meant; without positions no anchor is among the candidates.
        """
        beyond = [found for name in names if queue is not None and (found := rows_beyond(queue, name)) is not None]
        if self.own and anchors == names and not beyond and collectives.get_world_size() == 1:
            return None, None, None
        pool = _stacked([*(self.others.embeddings[name] for name in names), *(rows for rows, _ in beyond)])
        table = _table([*(self.others.tables[name] for name in names), *(table for _, table in beyond)])
        if not set(anchors) & set(names):
            return pool, table, None
        starts, start = {}, 0
        for name in names:
            starts[name] = start
            start += len(self.others.embeddings[name])
        positions = []
        for name in anchors:
            rows = torch.arange(len(self.local.get(name, ())), device=pool.device)
            inside = name in starts
            positions.append(rows + starts[name] + self.others.offsets[name] if inside else torch.full_like(rows, -1))
        return pool, table, torch.cat(positions)


def present(names: Mapping[Name, Tensor], space: str, side: tuple[str, ...]) -> list[Name]:
    """Which names of a block's side have rows in a space."""
    return [(space, modality) for modality in side if (space, modality) in names]


def rows_beyond(queue: MoreCandidates, name: Name) -> tuple[Tensor, Index] | None:
    """A queue's rows of a modality, or of the one view of it that a block speaks of."""
    space, side = name
    found = queue.rows(space, side.partition(":")[0])
    if found is None or ":" not in side:
        return found
    rows, table = found
    if "view" not in table:
        raise InputError(
            type(queue).__name__,
            expected=f"rows with a column 'view', since a block speaks of {side!r} alone",
            got=f"columns {sorted(table)}",
            fix="Queue keeps the views apart; a Bank has one row a sample, whatever the view",
        )
    chosen = (table["view"] == view_of(side)).nonzero()[:, 0]
    return rows[chosen], table.take(chosen)


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0]) for part in parts])


def _table(tables: list[Index]) -> Index:
    return tables[0] if len(tables) == 1 else Index.cat(tables)
