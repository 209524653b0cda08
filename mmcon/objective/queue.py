"""MoCo queue and memory bank: extra candidates from past embeddings.

The queue holds recent rows, first in, first out; the bank holds one row for every sample.

Both store rows by space and modality, without gradient. They are the same on every rank, since the rows of all ranks
are pushed. Push after the loss: a row that was pushed before would be its own candidate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.batch import IDENTITY, Index, ViewBatch
from mmcon.distributed.collectives import gather
from mmcon.errors import CheckpointError, InputError
from mmcon.objective.pair_blocks import Name

COLUMNS = (*IDENTITY, "label", "labels", "time", "group", "share", "partner_label", "partner_sample")


class _RowStore(ABC):
    """Rows by (space, modality) with their columns, each as a dict of tensors that a checkpoint can hold."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._stores: dict[Name, dict[str, Shaped[Tensor, "..."]]] = {}

    def push(
        self, embeddings: Mapping[str, Mapping[str, Float[Tensor, "_ _"]]], batch: ViewBatch | Mapping[str, Index]
    ) -> None:
        """Store the rows of all ranks."""
        tables = batch.index if isinstance(batch, ViewBatch) else batch
        named = {(s, m): z.detach() for s, rows in embeddings.items() for m, z in rows.items()}
        rows = gather(named, {name: self._selected_columns(tables[name[1]]) for name in named})
        for name in sorted(rows.embeddings):
            self._store(name, rows.embeddings[name], rows.tables[name])

    def state_dict(self) -> dict[str, Any]:
        """All rows, with their columns."""
        stores = {f"{s}\n{m}": dict(store) for (s, m), store in self._stores.items()}
        return {"stores": stores, "size": self._capacity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the capacity must be the same."""
        if state["size"] != self._capacity():
            where = type(self).__name__
            raise CheckpointError(where, expected=f"{self._capacity()} rows", got=str(state["size"]))
        names = (name.split("\n") for name in state["stores"])
        stores = state["stores"].values()
        self._stores = {
            (s, m): {k: v.clone() for k, v in store.items()} for (s, m), store in zip(names, stores, strict=True)
        }

    def to(self, device: torch.device | str) -> _RowStore:
        """Move all rows to a device. Counts stay on the CPU, where reading them does not wait for a device."""
        for store in self._stores.values():
            store |= {key: tensor if key == "pushed" else tensor.to(device) for key, tensor in store.items()}
        return self

    def _selected_columns(self, table: Index) -> Index:
        return Index({name: table[name] for name in self.columns if name in table}, n=table.n)

    @abstractmethod
    def _capacity(self) -> int:
        """The number of rows for each space and modality."""

    @abstractmethod
    def _store(self, name: Name, rows: Float[Tensor, "n d"], table: Index) -> None:
        """Store rows and their columns under a name."""


class Queue(_RowStore):
    """The most recent rows of each space and modality, first in, first out (MoCo; He et al. 2020).

    Args:
        size: the number of rows for each space and modality.
        columns: the columns of their tables to store: those that the affinity reads.

    >>> queue = Queue(size=4)
    >>> table = Index({"label": torch.tensor([0, 1, 2])})
    >>> queue.push({"space": {"image": torch.eye(3)}}, {"image": table})
    >>> queue.rows("space", "image")[1]["label"].tolist()
    [0, 1, 2]
    """

    def __init__(self, *, size: int, columns: Sequence[str] = COLUMNS) -> None:
        super().__init__(columns)
        if size < 1:
            raise InputError("Queue", expected="a size of at least 1", got=str(size))
        self.size = size

    def rows(self, space: str, modality: str) -> tuple[Float[Tensor, "c d"], Index] | None:
        """The rows and their table, or None while there are none."""
        store = self._stores.get((space, modality))
        if store is None or int(store["pushed"]) == 0:
            return None
        filled = min(int(store["pushed"]), self.size)
        columns = {key.removeprefix("column "): v[:filled] for key, v in store.items() if key.startswith("column ")}
        # Copies: a later push must not change what a pending backward pass has saved.
        return store["rows"][:filled].clone(), Index(columns, n=filled).map(torch.clone)

    def _capacity(self) -> int:
        return self.size

    def _store(self, name: Name, rows: Float[Tensor, "n d"], table: Index) -> None:
        store = self._stores.setdefault(name, self._empty(rows, table))
        kept = min(len(rows), self.size)
        pushed = int(store["pushed"])
        # A ring buffer: older rows are overwritten in place, and none is moved.
        slots = (torch.arange(len(rows) - kept, len(rows), device=rows.device) + pushed) % self.size
        for key, values in {"rows": rows, **{f"column {c}": table[c] for c in table}}.items():
            if key not in store:
                raise InputError("Queue", expected="the same columns at every push", got=key)
            store[key][slots] = values[len(rows) - kept :].to(store[key])
        store["pushed"] = torch.tensor(pushed + len(rows))

    def _empty(self, rows: Float[Tensor, "n d"], table: Index) -> dict[str, Shaped[Tensor, "..."]]:
        columns = {f"column {c}": table[c].new_zeros(self.size, *table[c].shape[1:]) for c in table}
        return {"pushed": torch.tensor(0), "rows": rows.new_zeros(self.size, rows.shape[1]), **columns}


class Bank(_RowStore):
    """One row for every sample of the data, in each space and modality (memory bank; Wu et al. 2018).

    Args:
        samples: the ids of all samples, int64, as in the `sample` column.
        momentum: the weight of the stored row when a sample is pushed again; 0 replaces it.
        columns: the columns of the tables to store.
    """

    def __init__(
        self,
        *,
        samples: Int[Tensor, " n"],
        momentum: float = 0.0,
        columns: Sequence[str] = ("sample", "label", "labels", "group"),
    ) -> None:
        super().__init__(columns)
        if not 0 <= momentum < 1:
            raise InputError("Bank", expected="momentum in [0, 1)", got=str(momentum))
        self.samples, self.momentum = torch.unique(samples), momentum

    def rows(self, space: str, modality: str) -> tuple[Float[Tensor, "c d"], Index] | None:
        """The rows of the samples pushed so far and their table, or None while there are none."""
        store = self._stores.get((space, modality))
        if store is None:
            return None
        filled = store["filled"]
        columns = {key.removeprefix("column "): v[filled] for key, v in store.items() if key.startswith("column ")}
        return store["rows"][filled], Index(columns, n=int(filled.sum()))

    def _capacity(self) -> int:
        return len(self.samples)

    def _store(self, name: Name, rows: Float[Tensor, "n d"], table: Index) -> None:
        """Average the views of each sample, scale to unit length, and move the stored row towards the result."""
        if len(rows) == 0:
            return
        pushed, sample_of_row = torch.unique(table["sample"], return_inverse=True)
        slots = self._slots(pushed)
        store = self._stores.setdefault(name, self._empty(rows, table))
        new = rows.new_zeros(len(pushed), rows.shape[1]).index_add_(0, sample_of_row, rows)
        new = torch.nn.functional.normalize(new, dim=1)
        mixed = torch.nn.functional.normalize(self.momentum * store["rows"][slots] + (1 - self.momentum) * new, dim=1)
        store["rows"][slots] = torch.where(store["filled"][slots, None], mixed, new)
        store["filled"][slots] = True
        numbers = torch.arange(len(rows), device=rows.device)
        # The first row of each sample by its number: assignment by repeated indices has no defined order on a GPU.
        first = torch.full_like(pushed, len(rows)).scatter_reduce(0, sample_of_row, numbers, "amin")
        for column in table:
            store[f"column {column}"][slots] = table[column][first]

    def _slots(self, samples: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The positions of samples in the bank."""
        known = self.samples.to(samples)
        slots = torch.searchsorted(known, samples).clamp_max(len(known) - 1)
        if not torch.equal(known[slots], samples):
            unknown = int(samples[known[slots] != samples][0])
            raise InputError("Bank", expected="samples that the bank was built with", got=f"sample {unknown}")
        return slots

    def _empty(self, rows: Float[Tensor, "n d"], table: Index) -> dict[str, Shaped[Tensor, "..."]]:
        n = len(self.samples)
        columns = {f"column {c}": table[c].new_zeros(n, *table[c].shape[1:]) for c in table}
        filled = torch.zeros(n, dtype=torch.bool, device=rows.device)
        return {"filled": filled, "rows": rows.new_zeros(n, rows.shape[1]), **columns}
