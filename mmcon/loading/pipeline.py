"""From rows to views: draw everything at once, decode what was drawn, stack, and run the rest batched.

Rows of a part are view-major. Where a generator mixes samples of the global batch, a process also makes the views that
its rows are mixed with and that another process has: they stand behind its own rows until they have been mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcon.batch import Index, ViewBatch, tree_map
from mmcon.errors import DataError
from mmcon.loading.mixing import beside, meet, mixing_part, unmixed, with_partners
from mmcon.random import Keys, keys
from mmcon.samplers.base import BatchPlan
from mmcon.sources.base import Source
from mmcon.views import ViewGenerator, check_params, collate, in_scope, meta_of, select_samples

Views = Mapping[str, Sequence[ViewGenerator]]


@dataclass(frozen=True)
class Part:
    """Consecutive views of one modality that one generator makes, so that they are drawn and applied together.

    Attributes:
        modality: what it takes.
        generator: what makes the views.
        views: their numbers.
        mixes: whether this or another part of the batch mixes samples, so that all tables tell of it.
    """

    modality: str
    generator: ViewGenerator
    views: tuple[int, ...]
    mixes: bool = False


def parts_of(views: Views) -> tuple[Part, ...]:
    """Group the views of each modality into parts: a generator that stands twice in a row makes one part."""
    parts: list[Part] = []
    mixes = any(mixing_part(generator) for generators in views.values() for generator in generators)
    for modality, generators in views.items():
        previous: ViewGenerator | None = None
        for number, generator in enumerate(generators):
            if generator is previous:
                parts[-1] = replace(parts[-1], views=(*parts[-1].views, number))
            else:
                parts.append(Part(modality, generator, (number,), mixes))
            previous = generator
    return tuple(parts)


@dataclass
class DrawnBatch:
    """One part of a batch between its two stages.

    Attributes:
        part: what makes it.
        samples: the samples after the ragged stage, stacked: this process's rows, then those that are partners alone.
        params: what was drawn for all parts of the generator, for the same rows.
        index: this process's rows, without the columns of later stages.
        partners: for each of this process's rows, the row of `samples` that it is mixed with; None where nothing mixes.
        failures: samples that could not be read, by id, with the reason; their rows are left out.
    """

    part: Part
    samples: Any
    params: dict[str, Any]
    index: Index
    partners: Tensor | None = None
    failures: dict[int, str] = field(default_factory=dict)

    def map(self, f: Any) -> DrawnBatch:
        """The same with a function applied to the samples, and to where their partners stand.

        What was drawn stays on the CPU, where `apply` reads which pictures it changes and in what order; a device would
        have to be waited for.
        """
        return replace(self, samples=tree_map(f, self.samples), partners=tree_map(f, self.partners))

    def pin_memory(self) -> DrawnBatch:
        """The same in page-locked memory, from which a GPU copies beside its work; a loader's thread asks for it."""
        return self.map(Tensor.pin_memory)


class Opened(NamedTuple):
    """Rows whose headers were read and whose parameters were drawn."""

    samples: Any
    params: dict[str, Any]
    index: Index
    table: Keys


def draw_part(part: Part, source: Source, batch: BatchPlan, own: slice, *, seed: int) -> DrawnBatch | None:
    """The ragged stage of a part for this process's rows of a global batch: draw everything, decode, and stack.

    Samples that raise DataError are left out and reported. None where no row has the modality.
    """
    batch, own = _present(source, batch, own)
    count = own.stop - own.start
    if not count:
        return None
    places = torch.arange(own.start, own.stop).repeat(len(part.views))
    views = torch.tensor(part.views).repeat_interleave(count)
    opened = _open(part, source, batch, places, views, seed)
    mixing = mixing_part(part.generator)
    if mixing is None:
        return _decode(part, opened, len(places), None)
    there = mixing.generator.partners(mixing.of(opened.params), places, len(batch))
    every, partners = with_partners(places + views * len(batch), there + views * len(batch))
    if len(every) > len(places):
        opened = _open(part, source, batch, every % len(batch), every // len(batch), seed)
    return _decode(part, opened, len(places), partners)


def _present(source: Source, batch: BatchPlan, own: slice) -> tuple[BatchPlan, slice]:
    """The global batch without the rows that lack the modality, and where this process's stand in it."""
    there = source.present(batch.indices)
    if there is None:
        return batch, own
    return batch.take(there), slice(int(there[: own.start].sum()), int(there[: own.stop].sum()))


def _open(part: Part, source: Source, batch: BatchPlan, places: Tensor, views: Tensor, seed: int) -> Opened:
    positions = batch.indices[places]
    samples = source.open(positions)
    table = keys(
        seed=seed,
        epoch=batch.epoch,
        sample=source.ids[positions],
        occurrence=batch.occurrence[places],
        view=views,
        step=batch.step,
    )
    meta = {**meta_of(samples, part.modality), **{k: v[positions] for k, v in source.facts.items()}}
    params = part.generator.draw(in_scope(table, part.generator.scope), meta)
    check_params(part.generator.name or part.modality, params, len(table))
    index = Index(
        {
            **{name: table.fields[:, i] for i, name in ((1, "epoch"), (2, "sample"), (3, "occurrence"), (4, "view"))},
            **{name: column[positions] for name, column in source.columns.items()},
            **part.generator.columns(meta, params),
        }
    )
    return Opened(samples, params, index, table)


def _decode(part: Part, opened: Opened, own: int, partners: Tensor | None) -> DrawnBatch:
    """The ragged stage over all rows; where one fails, row by row, so that only the faulty samples are lost."""
    try:
        samples = collate(part.generator.apply_ragged(opened.samples, opened.params))
    except DataError:
        return _decode_singly(part, opened, own, partners)
    index = opened.index if partners is None else beside(opened.index, partners)
    return DrawnBatch(part, samples, opened.params, index, partners)


def _decode_singly(part: Part, opened: Opened, own: int, partners: Tensor | None) -> DrawnBatch:
    done: dict[int, Any] = {}
    failures: dict[int, str] = {}
    for row in range(len(opened.table)):
        params = select_samples(opened.params, slice(row, row + 1))
        try:
            done[row] = collate(part.generator.apply_ragged([opened.samples[row]], params))
        except DataError as error:
            if row < own:  # what is a partner alone is counted by the process whose it is
                failures[int(opened.table.fields[row, 2])] = f"{error} (key: {opened.table.describe(row)})"
    # A sample that failed in one view is left out of all, so that no lone view counts as a sample; it may be a partner.
    kept = [row for row in done if row < own and int(opened.table.fields[row, 2]) not in failures]
    if not kept:
        raise DataError(
            f"views of {part.modality!r}",
            expected="at least one readable sample in the batch",
            got=f"{len(failures)} failures, the first: {next(iter(failures.values()))}",
            fix="check the data with `mmcon doctor --data PATH`",
        )
    own_rows = set(kept)
    rows = kept if partners is None else kept + [row for row in done if row not in own_rows]
    samples, params, index = (
        _cat([done[row] for row in rows]),
        select_samples(opened.params, rows),
        opened.index.take(rows),
    )
    if partners is not None:
        at = {row: place for place, row in enumerate(rows)}
        # Whose partner cannot be read is mixed with itself: it stays as it is, on any number of processes.
        partners = torch.tensor([at.get(int(partners[row]), at[row]) for row in kept])
        index = beside(index, partners)
    return DrawnBatch(part, samples, params, index, partners, failures)


def _cat(batches: list[Any]) -> Any:
    if isinstance(batches[0], Mapping):
        return {name: _cat([b[name] for b in batches]) for name in batches[0]}
    return torch.cat(batches)


def finish(drawn: Sequence[DrawnBatch], step: int) -> ViewBatch:
    """The batched stage of every part, where the samples now are, and the batch that they make."""
    views: dict[str, tuple[Any, ...]] = {}
    tables: dict[str, list[Index]] = {}
    params: dict[str, tuple[Any, ...]] = {}
    for one in drawn:
        modality, generator, own = one.part.modality, one.part.generator, one.params
        if one.partners is None:
            made = generator.apply_batched(one.samples, one.params)
        else:
            made = meet(generator, one.samples, one.params, one.partners)
            own = select_samples(one.params, slice(len(one.partners)))
        views[modality] = (*views.get(modality, ()), made)
        params[modality] = (*params.get(modality, ()), own)
        tables.setdefault(modality, []).append(
            unmixed(one.index) if one.part.mixes and one.partners is None else one.index
        )
    return ViewBatch(views, {name: Index.cat(t) for name, t in tables.items()}, params, step)
