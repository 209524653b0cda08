"""From rows to a batch of views.

One item of work is one step: read the headers of its rows, draw the parameters of every view at once, decode what was
drawn, run the ragged part of each chain sample by sample, stack, and run the rest batched. Since every draw is keyed,
it does not matter which worker does it, nor when: a loader's position is one integer, the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmcon.batch import Index, ViewBatch, tree_map
from mmcon.data.samplers import BatchSampler, Rows
from mmcon.data.source import Source
from mmcon.data.workers import DEATHS, Noted, death, fatal_item, is_death, iterate
from mmcon.errors import ConfigError, DataError
from mmcon.random import Keys, keys
from mmcon.view import ViewGenerator, check_params, in_scope, meta_of, stack, take_rows

Views = Mapping[str, Sequence[ViewGenerator]]


@dataclass(frozen=True)
class Part:
    """Consecutive views of one modality that one generator makes, so that they are drawn and applied together."""

    modality: str
    generator: ViewGenerator
    views: tuple[int, ...]


def parts_of(views: Views) -> tuple[Part, ...]:
    """Group the views of each modality into parts: a generator that stands twice in a row makes one part."""
    parts: list[Part] = []
    for modality, generators in views.items():
        previous: ViewGenerator | None = None
        for number, generator in enumerate(generators):
            if generator is previous:
                parts[-1] = replace(parts[-1], views=(*parts[-1].views, number))
            else:
                parts.append(Part(modality, generator, (number,)))
            previous = generator
    return tuple(parts)


@dataclass
class Drawn:
    """One part of a batch between its two stages.

    Attributes:
        part: what makes it.
        samples: the samples after the ragged stage, stacked.
        params: what was drawn for all parts of the generator.
        index: the rows, without the columns of later stages.
        failures: samples that could not be read, by id, with the reason; their rows are left out.
    """

    part: Part
    samples: Any
    params: dict[str, Any]
    index: Index
    failures: dict[int, str] = field(default_factory=dict)

    def pin_memory(self) -> Drawn:
        """The same in page-locked memory, from which a GPU copies beside its work; a loader's thread asks for it."""

        def pin(x: Tensor) -> Tensor:
            return x.pin_memory()

        return replace(self, samples=tree_map(pin, self.samples), params=tree_map(pin, self.params))


def draw_part(part: Part, source: Source, rows: Rows, *, seed: int) -> Drawn | None:
    """The ragged stage of a part for some rows of a source: draw everything, decode, and stack.

    The rows of the result are view-major. Samples that raise DataError are left out and reported. None where no row has
    the modality.
    """
    present = source.present(rows.positions)
    rows = rows if present is None else rows.take(present)
    if not len(rows):
        return None
    repeats = len(part.views)
    positions = rows.positions.repeat(repeats)
    samples = source.open(positions)
    table = keys(
        seed=seed,
        epoch=rows.epoch,
        sample=source.ids[positions],
        occurrence=rows.occurrence.repeat(repeats),
        view=torch.tensor(part.views).repeat_interleave(len(rows)),
        step=rows.step,
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
    return _decode(part, samples, params, index, table)


def _decode(part: Part, samples: Any, params: dict[str, Any], index: Index, table: Keys) -> Drawn:
    """The ragged stage over all rows; where one fails, row by row, so that only the faulty samples are lost."""
    try:
        return Drawn(part, stack(part.generator.apply_ragged(samples, params)), params, index)
    except DataError:
        pass
    done, kept, failures = [], [], {}
    for row in range(len(table)):
        sample = int(table.fields[row, 2])
        try:
            one = stack(part.generator.apply_ragged([samples[row]], take_rows(params, slice(row, row + 1))))
        except DataError as error:
            failures[sample] = f"{error} (key: {table.describe(row)})"
            continue
        done.append(one)
        kept.append(row)
    # A sample that failed in one view is left out of all, so that no lone view counts as a sample.
    whole = [i for i, row in enumerate(kept) if int(table.fields[row, 2]) not in failures]
    if not whole:
        raise DataError(
            f"views of {part.modality!r}",
            expected="at least one readable sample in the batch",
            got=f"{len(failures)} failures, the first: {next(iter(failures.values()))}",
            fix="check the data with `mmcon doctor --data PATH`",
        )
    rows = [kept[i] for i in whole]
    joined = _cat([done[i] for i in whole])
    return Drawn(part, joined, take_rows(params, rows), index.take(rows), failures)


def _cat(batches: list[Any]) -> Any:
    if isinstance(batches[0], Mapping):
        return {name: _cat([b[name] for b in batches]) for name in batches[0]}
    return torch.cat(batches)


def finish(drawn: Sequence[Drawn], step: int) -> ViewBatch:
    """The batched stage of every part, where the samples now are, and the batch that they make."""
    views: dict[str, tuple[Any, ...]] = {}
    tables: dict[str, list[Index]] = {}
    params: dict[str, tuple[Any, ...]] = {}
    for one in drawn:
        modality = one.part.modality
        views[modality] = (*views.get(modality, ()), one.part.generator.apply_batched(one.samples, one.params))
        params[modality] = (*params.get(modality, ()), one.params)
        tables.setdefault(modality, []).append(one.index)
    return ViewBatch(views, {name: Index.cat(t) for name, t in tables.items()}, params, step)


class _From:
    """Steps without end, from the one that the loader stands at."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


class ViewLoader:
    """Iterates over the batches of an epoch from where it stands; its state is the step.

    Args:
        source: rows with stable ids, or a joined source with one member a modality.
        views: by modality, the generators of its views; the same object twice makes two independent views.
        sampler: plans global batches.
        seed: the run's seed.
        workers: worker processes; 0 works in the training process.
        device: where the batched stage runs and the batch ends up.
        process: which part of each global batch is this process's, of `processes`.
        prefetch: batches that each worker makes ahead.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        sampler: BatchSampler,
        *,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
        process: int = 0,
        processes: int = 1,
        prefetch: int = 2,
    ) -> None:
        missing = sorted(set(views) - set(source.members))
        if missing:
            raise ConfigError("ViewLoader", expected=f"views for {sorted(source.members)}", got=f"views for {missing}")
        if sampler.batch_size < processes:
            raise ConfigError(
                "ViewLoader",
                expected=f"a global batch of at least {processes} rows, one a process",
                got=f"batch_size={sampler.batch_size}",
                fix="raise --batch-size or launch fewer processes",
            )
        self.source, self.sampler, self.seed = source, sampler, seed
        self.parts = parts_of(views)
        self.workers, self.prefetch = workers, prefetch
        self.device = torch.device(device)
        self.process, self.processes = process, processes
        self.step = 0
        self.failures: dict[int, str] = {}
        self._stream: Iterator[tuple[int, Any]] | None = None
        self._items: Noted | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.sampler.steps_per_epoch

    @property
    def views(self) -> dict[str, int]:
        """By modality, how many views a batch holds of each sample."""
        return dict(Counter(part.modality for part in self.parts for _ in part.views))

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self.step // len(self)

    def state_dict(self) -> dict[str, int]:
        """The position: the next step."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a position."""
        self.step = int(state["step"])
        self._stream = None

    @property
    def finishes_in_worker(self) -> bool:
        """Whether workers run the batched stage too: on a CPU, unless a generator has a memory."""
        stateful = any(g.scope == "stateful" for part in self.parts for _, g in part.generator.parts())
        return self.device.type == "cpu" and not stateful

    def make(self, step: int) -> list[Drawn] | ViewBatch:
        """This process's work for a step, as far as a worker takes it."""
        rows = self.sampler.batch(step).shard(self.process, self.processes)
        made = [draw_part(p, self.source.members[p.modality], rows, seed=self.seed) for p in self.parts]
        drawn = [one for one in made if one is not None]
        return finish(drawn, step) if self.finishes_in_worker and not self._fails(drawn) else drawn

    @staticmethod
    def _fails(drawn: Sequence[Drawn]) -> bool:
        return any(one.failures for one in drawn)

    def _complete(self, step: int, made: list[Drawn] | ViewBatch) -> ViewBatch:
        if isinstance(made, ViewBatch):
            return made.to(self.device, non_blocking=True)
        for one in made:
            self.failures |= one.failures

        def move(x: Tensor) -> Tensor:
            return x.to(self.device, non_blocking=True)

        on_device = [
            replace(one, samples=tree_map(move, one.samples), params=tree_map(move, one.params)) for one in made
        ]
        batch = finish(on_device, step)
        return batch.to(self.device, non_blocking=True)

    def _steps(self) -> Iterator[tuple[int, Any]]:
        if self.workers == 0:
            return ((step, self.make(step)) for step in _From(self.step))
        self._items = Noted(self._numbered, self.workers)
        pinned = self.device.type == "cuda"
        return iterate(self._items, _From(self.step), workers=self.workers, prefetch=self.prefetch, pinned=pinned)

    def _numbered(self, step: int) -> tuple[int, list[Drawn] | ViewBatch]:
        return step, self.make(step)

    def _next(self) -> tuple[int, Any]:
        """What workers made next; of one that died, the sample at fault is looked for."""
        assert self._stream is not None
        try:
            return next(self._stream)
        except DEATHS as error:
            if self._items is None or not is_death(error):
                raise
            steps = self._items.unfinished()
            raise death([told for step in steps if (told := self._fatal(step))], steps) from error

    def _fatal(self, step: int) -> str:
        """The sample of a step that ends the process in which its views are made, or nothing."""
        rows = self.sampler.batch(step).shard(self.process, self.processes)

        def make(number: int) -> None:
            for part in self.parts:
                try:
                    drawn = draw_part(part, self.source.members[part.modality], rows.take([number]), seed=self.seed)
                    if drawn is not None and self.finishes_in_worker:
                        finish([drawn], step)
                except DataError:
                    continue

        number = fatal_item(make, len(rows))
        if number is None:
            return ""
        sample = int(self.source.ids[rows.positions[number]])
        return f"seed={self.seed}, epoch={rows.epoch}, step={step}, sample={sample}, row {int(rows.positions[number])}"

    def memories(self) -> dict[str, Any]:
        """What remembers earlier batches and belongs to a checkpoint: stateful views, and a sampler's snapshot."""
        found: dict[str, Any] = {"sampler": self.sampler} if hasattr(self.sampler, "state_dict") else {}
        for number, part in enumerate(self.parts):
            for name, generator in part.generator.parts():
                if hasattr(generator, "state_dict"):
                    found[f"{part.modality}/{number}/{name}"] = generator
        return found

    def __iter__(self) -> Iterator[ViewBatch]:
        """The rest of the epoch; the stream of steps goes on across epochs, so that workers never idle at a border."""
        end = (self.epoch + 1) * len(self)
        while self.step < end:
            if self._stream is None:
                self._stream = self._steps()
            step, made = self._next()
            batch = self._complete(step, made)
            self.step = step + 1
            yield batch

    def __getstate__(self) -> dict[str, Any]:
        """Workers get everything but the stream that they are part of."""
        return {**self.__dict__, "_stream": None, "_items": None}


def one_pass(
    source: Source,
    views: Views,
    *,
    batch_size: int = 512,
    workers: int = 0,
    device: torch.device | str = "cpu",
    process: int = 0,
    processes: int = 1,
) -> Iterator[ViewBatch]:
    """Every row of a source once, in order, for evaluation; of several processes each gets its part."""
    sampler = _InOrder(len(source), max(batch_size, processes))
    yield from ViewLoader(
        source, views, sampler, seed=0, workers=workers, device=device, process=process, processes=processes
    )


class _InOrder(BatchSampler):
    """Rows as they stand; the last batch holds what is left."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n // self.batch_size)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        return torch.arange(self.n), torch.zeros(self.n, dtype=torch.int64)
