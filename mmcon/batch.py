"""The batch that a loader returns: views by modality, and an index table with one row per view.

The rows of a modality are *view-major*: the first view of all samples, then the second view of all samples. Consecutive
views of one generator form a *view group*, which is one stacked tensor. So views of different shapes (multi-crop) share
one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.errors import InputError

IDENTITY = ("epoch", "sample", "occurrence", "view")
"""The columns that identify a row."""

Column = Shaped[Tensor, "n ..."]
Numbers = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."] | Sequence[Any]
"""What `as_column` converts: a tensor, a NumPy array, or a list of numbers."""


def as_column(where: str, values: Any) -> Shaped[Tensor, "..."]:
    """A tensor of numbers from a tensor, which is unchanged, a NumPy array, or a list; texts are refused.

    Args:
        where: what takes the numbers, for messages.
        values: the numbers.

    Raises:
        InputError: the values are texts, or lists of different lengths.
    """
    if isinstance(values, Tensor):
        return values
    try:
        if isinstance(values, list | tuple) and not any(isinstance(value, str) for value in values):
            return torch.tensor(values)
        array = np.array(values)  # a copy, since torch warns about an array that cannot be written to
        if array.dtype.kind in "biuf" and array.ndim:
            # Files in the format of MNIST hold big-endian numbers, which torch does not take.
            return torch.from_numpy(
                array.astype(np.int64 if array.dtype.kind == "u" else array.dtype.newbyteorder("="))
            )
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    first = values if isinstance(values, str) or not np.iterable(values) else next(iter(values), None)
    raise InputError(
        where,
        expected="numbers in a tensor, an array or a list",
        got=f"{type(values).__name__} of {type(first).__name__}, such as {first!r}",
        fix="number texts: names = sorted(set(texts)); torch.tensor([names.index(text) for text in texts])",
    )


class Index(Mapping[str, Tensor]):
    """A table: named columns, each a tensor with leading axis `n`.

    Known columns are `epoch`, `sample`, `occurrence`, `view` (the identity), `label`, `time` (seconds), `group` and
    `length`. A source or a view generator may add others.

    Args:
        columns: the columns by name.
        n: the expected number of rows; by default that of the columns.

    Raises:
        InputError: columns differ in length.
    """

    def __init__(self, columns: Mapping[str, Column], n: int | None = None) -> None:
        self._columns = dict(columns)
        lengths = {name: len(column) for name, column in self._columns.items()}
        if n is not None:
            lengths["n"] = n
        if len(set(lengths.values())) > 1:
            raise InputError(
                "Index",
                expected="columns of one length",
                got=str(lengths),
                fix="give every column one entry per row",
            )
        self.n = next(iter(lengths.values()), 0)

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            raise InputError(
                "Index",
                expected=f"a column {name!r}",
                got=f"columns {sorted(self._columns)}",
                fix=f"supply {name!r} in the source or the view generator",
            ) from None

    def get(self, name: str, default: Any = None) -> Any:
        """The column, or the default. `Mapping.get` expects a KeyError, which `__getitem__` does not raise."""
        return self._columns.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """The number of columns, as of any mapping; `n` is the number of rows."""
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Index(n={self.n}, columns={sorted(self._columns)})"

    def map(self, f: Callable[[Shaped[Tensor, "n ..."]], Shaped[Tensor, "m ..."]]) -> Index:
        """The table with a function applied to every column."""
        return Index({name: f(column) for name, column in self._columns.items()})

    def take(self, rows: Any) -> Index:
        """Select rows by indices, slice or mask."""
        return self.map(lambda column: column[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Index:
        """The table on a device."""
        return self.map(lambda column: column.to(device, non_blocking=non_blocking))

    def with_columns(self, **columns: Column) -> Index:
        """The table with columns added or replaced."""
        return Index({**self._columns, **columns})

    @staticmethod
    def cat(tables: Sequence[Index]) -> Index:
        """The rows of several tables, one table after another, with the columns that all of them have."""
        if not tables:
            return Index({})
        shared = [name for name in tables[0] if all(name in table for table in tables)]
        return Index({name: torch.cat([table[name] for table in tables]) for name in shared})


@dataclass(frozen=True)
class ViewBatch:
    """Views by modality and the index tables of their rows.

    Attributes:
        views: by modality, a tuple of view groups; each is a tensor with a leading axis of rows, or a dict of such
            tensors, as of a tokenizer. The rows of a modality are those of its view groups, one after another.
        index: by modality, the table of its rows. All tables have the identity columns, so that rows of two modalities
            are matched by `sample`.
        params: by modality, the drawn parameters of each view group, so that a view can be logged and replayed.
        step: the global step of the batch.

    Raises:
        InputError: a modality has no table, or one with another number of rows.
    """

    views: dict[str, tuple[Any, ...]]
    index: dict[str, Index]
    params: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        for modality, groups in self.views.items():
            rows = sum(count_rows(group) for group in groups)
            if modality not in self.index or self.index[modality].n != rows:
                got = self.index[modality].n if modality in self.index else "no table"
                raise InputError("ViewBatch", expected=f"a table of {rows} rows for {modality!r}", got=str(got))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the batch."""
        return tuple(self.views)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """The batch on a device, with its parameters."""

        def move(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
            return x.to(device, non_blocking=non_blocking)

        return ViewBatch(
            views=tree_map(move, self.views),
            index={name: table.to(device, non_blocking) for name, table in self.index.items()},
            params=tree_map(move, self.params),
            step=self.step,
        )

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory, from which a copy to a GPU does not block; parameters are unchanged."""
        return ViewBatch(
            views=tree_map(Tensor.pin_memory, self.views),
            index={name: table.map(Tensor.pin_memory) for name, table in self.index.items()},
            params=self.params,
            step=self.step,
        )


def count_rows(group: Any) -> int:
    """The number of rows of a view group: the length of the leading axis of its first tensor."""
    if isinstance(group, Tensor):
        return group.shape[0]
    if isinstance(group, Mapping):
        return count_rows(next(iter(group.values())))
    return len(group)


def tree_map(f: Callable[[Shaped[Tensor, "..."]], Shaped[Tensor, "..."]], tree: Any) -> Any:
    """Apply a function to every tensor in nested dicts, tuples and lists; other leaves are unchanged."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, Mapping):
        return {name: tree_map(f, branch) for name, branch in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(tree_map(f, branch) for branch in tree)
    return tree
