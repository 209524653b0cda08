"""Candidates beyond the batch: a queue of recent rows, and a bank with a place for every sample.

Both are kept by space and modality, hold no gradient, and are the same in every process, since rows of all processes go
in. They give candidates only; anchors are always of the batch. Push after the loss: a row that was pushed before would
meet itself there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcon.batch import IDENTITY, Index, ViewBatch
from mmcon.distributed.collectives import gather
from mmcon.errors import CheckpointError, InputError

COLUMNS = (*IDENTITY, "label", "labels", "time", "group", "share", "partner_label", "partner_sample")
Name = tuple[str, str]


class _Memory:
    """Rows by (space, modality), with their columns, as one dict of tensors that a checkpoint can hold."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._stores: dict[Name, dict[str, Tensor]] = {}

    def push(self, embeddings: Mapping[str, Mapping[str, Tensor]], batch: ViewBatch | Mapping[str, Index]) -> None:
        """Take in the rows of all processes."""
        tables = batch.index if isinstance(batch, ViewBatch) else batch
        named = {(s, m): z.detach() for s, rows in embeddings.items() for m, z in rows.items()}
        rows = gather(named, {name: self._kept(tables[name[1]]) for name in named})
        for name in sorted(rows.embeddings):
            self._take(name, rows.embeddings[name], rows.tables[name])

    def state_dict(self) -> dict[str, Any]:
        """All rows and positions."""
        return {"stores": {f"{s}\n{m}": dict(store) for (s, m), store in self._stores.items()}, "size": self._size()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; the size must be the same."""
        if state["size"] != self._size():
            where = type(self).__name__
            raise CheckpointError(where, expected=f"{self._size()} places", got=str(state["size"]))
        split = (name.split("\n") for name in state["stores"])
        stores = state["stores"].values()
        self._stores = {
            (s, m): {k: v.clone() for k, v in store.items()} for (s, m), store in zip(split, stores, strict=True)
        }

    def to(self, device: torch.device | str) -> _Memory:
        """Move all rows to a device; counts stay on the CPU, where they are read without waiting for another."""
        for store in self._stores.values():
            store |= {key: tensor if key == "pushed" else tensor.to(device) for key, tensor in store.items()}
        return self

    def _kept(self, table: Index) -> Index:
        return Index({name: table[name] for name in self.columns if name in table}, n=table.n)

    def _size(self) -> int:
        raise NotImplementedError

    def _take(self, name: Name, rows: Tensor, table: Index) -> None:
        raise NotImplementedError


class Queue(_Memory):
    """The newest rows of each space and modality, first in, first out (MoCo; He et al. 2020).

    Args:
        size: how many rows a space and modality may hold.
        columns: what is kept of their tables: what the affinity reads.

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

    def _size(self) -> int:
        return self.size

    def _take(self, name: Name, rows: Tensor, table: Index) -> None:
        store = self._stores.setdefault(name, self._empty(rows, table))
        kept = min(len(rows), self.size)
        pushed = int(store["pushed"])
        places = (torch.arange(len(rows) - kept, len(rows), device=rows.device) + pushed) % self.size
        for key, values in {"rows": rows, **{f"column {c}": table[c] for c in table}}.items():
            if key not in store:
                raise InputError("Queue", expected="the same columns at every push", got=key)
            store[key][places] = values[len(rows) - kept :].to(store[key])
        store["pushed"] = torch.tensor(pushed + len(rows))

    def _empty(self, rows: Tensor, table: Index) -> dict[str, Tensor]:
        columns = {f"column {c}": table[c].new_zeros(self.size, *table[c].shape[1:]) for c in table}
        return {"pushed": torch.tensor(0), "rows": rows.new_zeros(self.size, rows.shape[1]), **columns}

    def rows(self, space: str, modality: str) -> tuple[Tensor, Index] | None:
        """Rows `c d` and their table, or None while there are none."""
        store = self._stores.get((space, modality))
        if store is None or int(store["pushed"]) == 0:
            return None
        filled = min(int(store["pushed"]), self.size)
        columns = {key.removeprefix("column "): v[:filled] for key, v in store.items() if key.startswith("column ")}
        # Copies: a later push must not change what a pending backward pass has saved.
        return store["rows"][:filled].clone(), Index(columns, n=filled).map(torch.clone)


class Bank(_Memory):
    """One place for every sample of the data, in each space and modality (Wu et al. 2018).

    Args:
        samples: all samples' identities, int64 `n`, as in the `sample` column.
        momentum: how much of the old row stays when a sample comes again; 0 replaces it.
        columns: what is kept of the tables.
    """

    def __init__(
        self, *, samples: Tensor, momentum: float = 0.0, columns: Sequence[str] = ("sample", "label", "labels", "group")
    ) -> None:
        super().__init__(columns)
        if not 0 <= momentum < 1:
            raise InputError("Bank", expected="momentum in [0, 1)", got=str(momentum))
        self.samples, self.momentum = torch.unique(samples), momentum

    def _size(self) -> int:
        return len(self.samples)

    def _take(self, name: Name, rows: Tensor, table: Index) -> None:
        """A sample's views in the batch are averaged, brought to the length 1, and moved into its place."""
        if len(rows) == 0:
            return
        known, view_of = torch.unique(table["sample"], return_inverse=True)
        samples = self.samples.to(known)
        places = torch.searchsorted(samples, known).clamp_max(len(samples) - 1)
        if not torch.equal(samples[places], known):
            strange = int(known[samples[places] != known][0])
            raise InputError("Bank", expected="samples that the bank was built with", got=f"sample {strange}")
        store = self._stores.setdefault(name, self._empty(rows, table))
        new = rows.new_zeros(len(known), rows.shape[1]).index_add_(0, view_of, rows)
        new = torch.nn.functional.normalize(new, dim=1)
        seen = store["filled"][places, None]
        mixed = torch.nn.functional.normalize(self.momentum * store["rows"][places] + (1 - self.momentum) * new, dim=1)
        store["rows"][places] = torch.where(seen, mixed, new)
        store["filled"][places] = True
        first = torch.full_like(known, len(view_of)).scatter_reduce(
            0, view_of, torch.arange(len(view_of), device=known.device), "amin"
        )
        for column in table:
            store[f"column {column}"][places] = table[column][first]

    def _empty(self, rows: Tensor, table: Index) -> dict[str, Tensor]:
        n = len(self.samples)
        columns = {f"column {c}": table[c].new_zeros(n, *table[c].shape[1:]) for c in table}
        filled = torch.zeros(n, dtype=torch.bool, device=rows.device)
        return {"filled": filled, "rows": rows.new_zeros(n, rows.shape[1]), **columns}

    def rows(self, space: str, modality: str) -> tuple[Tensor, Index] | None:
        """Rows `c d` of the samples seen so far and their table, or None while there are none."""
        store = self._stores.get((space, modality))
        if store is None:
            return None
        filled = store["filled"]
        columns = {key.removeprefix("column "): v[filled] for key, v in store.items() if key.startswith("column ")}
        return store["rows"][filled], Index(columns, n=int(filled.sum()))
