"""What the loader hands to the model: views by modality, and one table that says which row is what.

Rows of a modality are *view-major*: all samples' first view, then all samples' second view, so that views of different
shapes (multi-crop) can stand beside one another as parts, each part a stacked tensor, and the table stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmcon.errors import InputError

# The columns by which a row is named; together they are its identity.
IDENTITY = ("epoch", "sample", "occurrence", "view")


class Index(Mapping[str, Tensor]):
    """A table of rows: named columns, each with leading axis `n`.

    Columns that the house knows: `epoch`, `sample`, `occurrence`, `view` (the identity), `label`, `time` (seconds),
    `group`, `length`. A source or a generator may add its own.
    """

    def __init__(self, columns: Mapping[str, Tensor], n: int | None = None) -> None:
        self._columns = dict(columns)
        lengths = {name: len(column) for name, column in self._columns.items()}
        if n is not None:
            lengths["n"] = n
        if len(set(lengths.values())) > 1:
            raise InputError(
                "Index",
                expected="columns of one length",
                got=str(lengths),
                fix="give every row a value in every column",
            )
        self.n = next(iter(lengths.values()), 0)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._columns[name]
        except KeyError:
            raise InputError(
                "Index",
                expected=f"a column {name!r}",
                got=f"columns {sorted(self._columns)}",
                fix=f"let the source or the view generator supply {name!r}, or do not read it",
            ) from None

    def get(self, name: str, default: Any = None) -> Any:
        """The column, or the default; a mapping's own `get` would wait for a KeyError."""
        return self._columns.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """The number of columns, as for any mapping; rows are counted by `n`."""
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Index(n={self.n}, columns={sorted(self._columns)})"

    def map(self, f: Callable[[Tensor], Tensor]) -> Index:
        """The table with a function applied to every column."""
        return Index({name: f(column) for name, column in self._columns.items()})

    def take(self, rows: Any) -> Index:
        """The rows at positions, a slice, or a boolean mask."""
        return self.map(lambda column: column[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Index:
        """The table on a device."""
        return self.map(lambda column: column.to(device, non_blocking=non_blocking))

    def with_columns(self, **columns: Tensor) -> Index:
        """The table with columns added or replaced."""
        return Index({**self._columns, **columns})

    @staticmethod
    def cat(tables: Sequence[Index]) -> Index:
        """The rows of several tables under one another; only columns that all of them have are kept."""
        if not tables:
            return Index({})
        shared = [name for name in tables[0] if all(name in table for table in tables)]
        return Index({name: torch.cat([table[name] for table in tables]) for name in shared})


@dataclass(frozen=True)
class ViewBatch:
    """Views by modality and the table of their rows.

    Attributes:
        views: by modality, a tuple of parts; each part is a tensor with leading axis of rows (or a dict of such, as a
            tokenizer gives). The rows of a modality are those of its parts, one after another.
        index: by modality, the table of its rows. All tables share the identity columns, so that rows of two
            modalities meet by `sample`.
        params: by modality, what was drawn for each part, so that a view can be logged and replayed.
        step: the global step that the batch belongs to.
    """

    views: dict[str, tuple[Any, ...]]
    index: dict[str, Index]
    params: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        for modality, parts in self.views.items():
            rows = sum(rows_of(part) for part in parts)
            if modality not in self.index or self.index[modality].n != rows:
                got = self.index[modality].n if modality in self.index else "no table"
                raise InputError("ViewBatch", expected=f"a table of {rows} rows for {modality!r}", got=str(got))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in the batch."""
        return tuple(self.views)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """The batch on a device; drawn parameters go along."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        return ViewBatch(
            views=tree_map(move, self.views),
            index={name: table.to(device, non_blocking) for name, table in self.index.items()},
            params=tree_map(move, self.params),
            step=self.step,
        )

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory, from which a copy to a GPU need not block."""
        return ViewBatch(
            views=tree_map(Tensor.pin_memory, self.views),
            index={name: table.map(Tensor.pin_memory) for name, table in self.index.items()},
            params=self.params,
            step=self.step,
        )


def rows_of(part: Any) -> int:
    """How many rows a part of a batch has: the leading axis of its first tensor."""
    if isinstance(part, Tensor):
        return part.shape[0]
    if isinstance(part, Mapping):
        return rows_of(next(iter(part.values())))
    return len(part)


def tree_map(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor in nested dicts, tuples and lists; leave the rest as it is."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, Mapping):
        return {name: tree_map(f, branch) for name, branch in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(tree_map(f, branch) for branch in tree)
    return tree
