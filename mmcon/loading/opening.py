"""From samples of a batch to handles with drawn parameters; samples that cannot be opened are left out and named.

All samples of a batch are opened and drawn at once. Only after a failure they are opened one by one. Draws are keyed by
sample, so that those of the others do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import DataError
from mmcon.random import Keys, keys
from mmcon.samplers.base import BatchPlan
from mmcon.sources.base import Source
from mmcon.views import Meta, Params, ViewGenerator, check_params, in_scope, meta_of


class Unreadable(NamedTuple):
    """Why a sample was left out.

    Attributes:
        file: the path of its file, or its name in the source.
        reason: the error.
    """

    file: str
    reason: str


class OpenedSamples(NamedTuple):
    """Undecoded samples with drawn parameters.

    Attributes:
        handles: one handle per view.
        params: the parameters of all children of the generator.
        index: the table of the views.
        keys: the keys that the parameters were drawn from.
        slots: for each view, its position in the global batch plus its view number times the size of the batch.
        failures: samples that cannot be opened, by id; they have no views here.
    """

    handles: Any
    params: Params
    index: Index
    keys: Keys
    slots: Int[Tensor, " n"]
    failures: dict[int, Unreadable]


@dataclass(frozen=True)
class Opening:
    """What samples of a batch are opened for.

    Attributes:
        modality: the modality of the views.
        generator: the generator of the views.
        source: the samples.
        batch: the global batch, of samples that have the modality.
        seed: the seed of the run.
        left_out: samples that are not opened, by id, since they end their process.
    """

    modality: str
    generator: ViewGenerator
    source: Source
    batch: BatchPlan
    seed: int
    left_out: Mapping[int, Unreadable]

    def open_and_draw(self, slots: Int[Tensor, " n"]) -> OpenedSamples:
        """Open the samples of some slots, and draw the parameters of their views; leave out what cannot be opened.

        Raises:
            DataError: no sample can be opened.
        """
        source, batch, generator = self.source, self.batch, self.generator
        handles, meta, kept, failures = self._open(batch.indices[slots % len(batch)])
        slots = slots if kept is None else slots[kept]
        positions = slots % len(batch)
        indices = batch.indices[positions]
        table = keys(
            seed=self.seed,
            epoch=batch.epoch,
            sample=source.ids[indices],
            occurrence=batch.occurrence[positions],
            view=slots // len(batch),
            step=batch.step,
        )
        meta = {**meta, **{name: fact[indices] for name, fact in source.facts.items()}}
        params = generator.draw(in_scope(table, generator.scope), meta)
        check_params(generator.name or self.modality, params, len(table))
        fields = ((1, "epoch"), (2, "sample"), (3, "occurrence"), (4, "view"))
        index = Index(
            {
                **{name: table.fields[:, i] for i, name in fields},
                **{name: column[indices] for name, column in source.columns.items()},
                **generator.columns(meta, params),
            }
        )
        return OpenedSamples(handles, params, index, table, slots, failures)

    def file_of(self, slot: int | Int[Tensor, ""]) -> str:
        """The path of the file of a slot's sample."""
        return self.source.name_of(int(self.batch.indices[slot % len(self.batch)]))

    def nothing_readable(self, failures: Mapping[int, Unreadable]) -> DataError:
        """The error of a batch without a readable sample."""
        file, reason = next(iter(failures.values()))
        return DataError(
            f"views of {self.modality!r}",
            expected="at least one readable sample in the batch",
            got=f"{len(failures)} failures, the first: {file}: {reason}",
            fix="check the data with `mmcon doctor --data PATH`",
        )

    def _open(self, indices: Int[Tensor, " n"]) -> tuple[Any, Meta, Int[Tensor, " m"] | None, dict[int, Unreadable]]:
        """Handles, what their headers say, the rows of those that can be opened (None: all), and the failures."""
        if not self.left_out or self.left_out.keys().isdisjoint(self.source.ids[indices].tolist()):
            try:
                handles = self.source.open(indices)
                return handles, meta_of(handles, self.modality), None, {}
            except (DataError, OSError):
                pass  # the samples that fail are found and reported below, one by one
        opened, failures = {}, {}
        for row in dict.fromkeys(indices.tolist()):
            sample = int(self.source.ids[row])
            if sample in self.left_out:
                failures[sample] = self.left_out[sample]
                continue
            try:
                handle = self.source.open([row])
                meta_of(handle, self.modality)
                opened[row] = handle
            except (DataError, OSError) as error:
                failures[sample] = Unreadable(self.source.name_of(row), str(error))
        kept = [number for number, row in enumerate(indices.tolist()) if row in opened]
        if not kept:
            raise self.nothing_readable(failures)
        rows = indices[kept].tolist()
        stacked = isinstance(opened[rows[0]], Tensor)
        handles = torch.cat([opened[row] for row in rows]) if stacked else [opened[row][0] for row in rows]
        return handles, meta_of(handles, self.modality), torch.tensor(kept), failures
