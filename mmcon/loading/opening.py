"""From samples of a batch to handles with drawn parameters; samples that cannot be opened are left out and named.

All samples of a batch are opened and drawn at once. Only after a failure they are opened one by one, and samples that
failed are not tried again. Draws are keyed by sample, so that those of the others do not change.
"""

from __future__ import annotations

import errno
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

#: What the machine or a network disk may lack for a moment.
PASSING = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT, errno.ESTALE}


class Unreadable(NamedTuple):
    """Why a sample was left out.

    Attributes:
        file: the path of its file, or its name in the source.
        reason: the error.
        unopened: whether it could not be opened, whatever its views would be.
    """

    file: str
    reason: str
    unopened: bool = False


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
        left_out: samples that are not opened, by id, since they cannot be, or end their process.
    """

    modality: str
    generator: ViewGenerator
    source: Source
    batch: BatchPlan
    seed: int
    left_out: Mapping[int, Unreadable]

    def open_and_draw(self, slots: Int[Tensor, " n"]) -> OpenedSamples:
        """Open the samples of some slots, and draw the parameters of their views; leave out what cannot be opened.

        If nothing can be opened, there are no handles and no parameters, and the index has no columns.
        """
        source, batch, generator = self.source, self.batch, self.generator
        handles, meta, kept, failures = self._open(batch.indices[slots % len(batch)])
        slots = slots if kept is None else slots[kept]
        if not len(slots):
            return OpenedSamples([], {}, Index({}), keys(seed=self.seed), slots, failures)
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

    def _open(self, indices: Int[Tensor, " n"]) -> tuple[Any, Meta, Int[Tensor, " m"] | None, dict[int, Unreadable]]:
        """Handles, what their headers say, the rows of those that can be opened (None: all), and the failures."""
        kept, failures = None, {}
        samples = self.source.ids[indices].tolist() if self.left_out else []
        if not self.left_out.keys().isdisjoint(samples):
            failures = {sample: self.left_out[sample] for sample in samples if sample in self.left_out}
            kept = torch.tensor([i for i, sample in enumerate(samples) if sample not in failures], dtype=torch.int64)
            if not len(kept):
                return [], {}, kept, failures
        try:
            handles = self.source.open(indices if kept is None else indices[kept])
            return handles, meta_of(handles, self.modality), kept, failures
        except (DataError, OSError):
            pass  # the samples that fail are found and reported below, one by one
        opened = {}
        for row in dict.fromkeys(indices.tolist() if kept is None else indices[kept].tolist()):
            try:
                handle = self.source.open([row])
                meta_of(handle, self.modality)
                opened[row] = handle
            except (DataError, OSError) as error:
                reason = Unreadable(self.source.name_of(row), str(error), unopened=not _passes(error))
                failures[int(self.source.ids[row])] = reason
        kept = torch.tensor([i for i, row in enumerate(indices.tolist()) if row in opened], dtype=torch.int64)
        if not len(kept):
            return [], {}, kept, failures
        rows = indices[kept].tolist()
        stacked = isinstance(opened[rows[0]], Tensor)
        handles = torch.cat([opened[row] for row in rows]) if stacked else [opened[row][0] for row in rows]
        return handles, meta_of(handles, self.modality), kept, failures


def _passes(error: Exception) -> bool:
    """Whether a file may be readable later: the machine or its network lacked something, not the file."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in PASSING
