"""Batches of views, step by step.

One item of work is one step. Since every draw is keyed, it does not matter which worker does it, nor when: a loader's
position is one integer, the step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError, DataError
from mmcon.loading.mixing import check_partners, mixing_part
from mmcon.loading.pipeline import DrawnBatch, Views, draw_part, finish, parts_of
from mmcon.loading.workers import DEATHS, Noted, death, fatal_item, is_death, iterate
from mmcon.samplers.base import BatchSampler, EpochOrder, without_repeats
from mmcon.sources.base import Source


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
        rank: which part of each global batch is this process's, of `world_size`.
        prefetch: batches that each worker makes ahead.

    Attributes:
        seconds_in_views: how long this process has drawn, decoded and made views; what workers do is not counted.
    """

    seconds_in_views: float = 0.0

    def __init__(
        self,
        source: Source,
        views: Views,
        sampler: BatchSampler,
        *,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
    ) -> None:
        missing = sorted(set(views) - set(source.members))
        if missing:
            raise ConfigError("ViewLoader", expected=f"views for {sorted(source.members)}", got=f"views for {missing}")
        if sampler.batch_size < world_size:
            raise ConfigError(
                "ViewLoader",
                expected=f"a global batch of at least {world_size} rows, one a process",
                got=f"batch_size={sampler.batch_size}",
                fix="raise --batch-size or launch fewer processes",
            )
        check_partners([generator for generators in views.values() for generator in generators], sampler.batch_size)
        self.source, self.sampler, self.seed = source, sampler, seed
        self.parts = parts_of(views)
        self.workers, self.prefetch = workers, prefetch
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
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
        stateful = any(g.scope == "stateful" for part in self.parts for _, g in part.generator.children())
        return self.device.type == "cpu" and not stateful

    def make(self, step: int) -> list[DrawnBatch] | ViewBatch:
        """This process's work for a step, as far as a worker takes it."""
        batch = self.sampler.batch(step)
        own = batch.shard_slice(self.rank, self.world_size)
        made = [draw_part(p, self.source.members[p.modality], batch, own, seed=self.seed) for p in self.parts]
        drawn = [one for one in made if one is not None]
        return finish(drawn, step) if self.finishes_in_worker and not self._fails(drawn) else drawn

    @staticmethod
    def _fails(drawn: Sequence[DrawnBatch]) -> bool:
        return any(one.failures for one in drawn)

    def _complete(self, step: int, made: list[DrawnBatch] | ViewBatch) -> ViewBatch:
        if isinstance(made, ViewBatch):
            return made.to(self.device, non_blocking=True)
        for one in made:
            self.failures |= one.failures

        def move(x: Tensor) -> Tensor:
            return x.to(self.device, non_blocking=True)

        batch = finish([one.map(move) for one in made], step)
        return batch.to(self.device, non_blocking=True)

    def _steps(self) -> Iterator[tuple[int, Any]]:
        if self.workers == 0:
            return ((step, self.make(step)) for step in _From(self.step))
        self._items = Noted(self._numbered, self.workers)
        pinned = self.device.type == "cuda"
        return iterate(self._items, _From(self.step), workers=self.workers, prefetch=self.prefetch, pinned=pinned)

    def _numbered(self, step: int) -> tuple[int, list[DrawnBatch] | ViewBatch]:
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
        rows = self.sampler.batch(step)
        if all(mixing_part(part.generator) is None for part in self.parts):
            rows = rows.shard(self.rank, self.world_size)

        def make(number: int) -> None:
            alone = rows.take([number])
            for part in self.parts:
                try:
                    drawn = draw_part(part, self.source.members[part.modality], alone, slice(0, 1), seed=self.seed)
                    if drawn is not None and self.finishes_in_worker:
                        finish([drawn], step)
                except DataError:
                    continue

        number = fatal_item(make, len(rows))
        if number is None:
            return ""
        sample = int(self.source.ids[rows.indices[number]])
        return f"seed={self.seed}, epoch={rows.epoch}, step={step}, sample={sample}, row {int(rows.indices[number])}"

    def memories(self) -> dict[str, Any]:
        """What remembers earlier batches and belongs to a checkpoint: stateful views, and a sampler's snapshot."""
        found: dict[str, Any] = {"sampler": self.sampler} if hasattr(self.sampler, "state_dict") else {}
        for number, part in enumerate(self.parts):
            for name, generator in part.generator.children():
                if hasattr(generator, "state_dict"):
                    found[f"{part.modality}/{number}/{name}"] = generator
        return found

    def __iter__(self) -> Iterator[ViewBatch]:
        """The rest of the epoch; the stream of steps goes on across epochs, so that workers never idle at a border."""
        end = (self.epoch + 1) * len(self)
        while self.step < end:
            if self._stream is None:
                self._stream = self._steps()
            asked = time.perf_counter()
            step, made = self._next()
            fetched = time.perf_counter()
            batch = self._complete(step, made)
            self.seconds_in_views += time.perf_counter() - (fetched if self.workers else asked)
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
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[ViewBatch]:
    """Every row of a source once, in order, for evaluation; of several processes each gets its part."""
    sampler = _InOrder(len(source), max(batch_size, world_size))
    yield from ViewLoader(
        source, views, sampler, seed=0, workers=workers, device=device, rank=rank, world_size=world_size
    )


class _InOrder(BatchSampler):
    """Rows as they stand; the last batch holds what is left."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, 0
        self.steps_per_epoch = -(-n // batch_size)

    def epoch_order(self, epoch: int) -> EpochOrder:
        return without_repeats(torch.arange(self.n))
