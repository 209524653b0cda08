"""Open the samples of a batch, headers only, and draw the parameters of their views.

Draws are keyed by sample: they do not change if `unreadable_samples` leaves out other samples of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from mmcon.batch import Index
from mmcon.loading.unreadable_samples import Unreadable, open_readable
from mmcon.portable_math import one_thread
from mmcon.random import Keys, keys
from mmcon.samplers.base import BatchPlan
from mmcon.sources.base import Source
from mmcon.views import Params, ViewGenerator, check_params, in_scope


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
        sample_indices = batch.indices[slots % len(batch)]
        handles, meta, kept, failures = open_readable(source, sample_indices, self.modality, self.left_out)
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
        with (
            one_thread()
        ):  # roots of a few numbers by two threads wait for each other, for milliseconds on a busy machine
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
