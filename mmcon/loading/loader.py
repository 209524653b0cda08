"""`ViewLoader`: an iterable data loader of view batches, resumable from its step.

A work item is the batch of one step. All draws are keyed, so a batch does not depend on the worker or on timing, and
the state of a loader is one integer, the step.

A sample that cannot be read is left out of its batch and named at once. So is one that ends its worker process or does
not come to an end: the other samples of that batch are made again, by new workers.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError, DataError, check_whole
from mmcon.loading.lost_workers import (
    DEATH_ERRORS,
    TrackedDataset,
    find_fatal_item,
    is_worker_death,
    iterate_items,
    next_item,
    worker_death_error,
)
from mmcon.loading.mixup_partners import check_partners, mixing_child
from mmcon.loading.pipeline import CollatedGroup, Views, apply_batched_views, collate_group, group_views
from mmcon.loading.unreadable_samples import Unreadable, check_share, log_once, pass_over
from mmcon.loading.worker_processes import WorkerStream
from mmcon.samplers.base import BatchPlan, BatchSampler, EpochOrder, without_repeats
from mmcon.sources.base import Source

_log = logging.getLogger(__name__)

#: How often in a row workers may be killed, without a sample that kills them, before the loader gives up.
LOST_WORKERS = 3


class ViewLoader:
    """Iterates over the batches of an epoch from the current step; its state is the step.

    Args:
        source: samples with stable ids, or a joined source with one member per modality.
        views: by modality, the generators of its views; the same object twice makes two independent views.
        sampler: the sampler of global batches.
        seed: the seed of the run.
        workers: the number of worker processes; 0 loads in the training process.
        device: the device of the batched stage and of the batch.
        rank: the rank, which selects a shard of each global batch.
        world_size: the number of ranks.
        prefetch: batches that each worker prefetches.
        decode_seconds: the longest time that a worker may decode one sample without progress; then it is ended, and the
            sample is left out.

    Attributes:
        seconds_in_views: time that this process, not its workers, spent on drawing, decoding and computing views.
        failures: unreadable samples by id, with the reason.
        files: the paths, or names, of the unreadable samples by id.
        fatal: samples that ended a worker process, by id, and the step from which on they are left out.

    Raises:
        ConfigError: views of a modality that the source lacks, a global batch smaller than the world size, or views
            that need partners with a global batch of one.
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
        decode_seconds: float = 60.0,
    ) -> None:
        missing = sorted(set(views) - set(source.members))
        if missing:
            raise ConfigError("ViewLoader", expected=f"views for {sorted(source.members)}", got=f"views for {missing}")
        if sampler.batch_size < world_size:
            raise ConfigError(
                "ViewLoader",
                expected=f"a global batch of at least {world_size} samples, one per rank",
                got=f"batch_size={sampler.batch_size}",
                fix="raise --batch-size or launch fewer processes",
            )
        check_partners([generator for generators in views.values() for generator in generators], sampler.batch_size)
        self.source, self.sampler, self.seed = source, sampler, seed
        self.view_groups = group_views(views)
        self.workers = check_whole("ViewLoader", "workers", workers, least=0)
        self.prefetch, self.decode_seconds = check_whole("ViewLoader", "prefetch", prefetch, least=1), decode_seconds
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.step = 0
        self._forget_failures()
        self._items: Iterator[tuple[int, Any]] | None = None
        self._tracked: TrackedDataset | None = None

    def _forget_failures(self) -> None:
        self.failures: dict[int, str] = {}
        self.files: dict[int, str] = {}
        self.fatal: dict[int, int] = {}
        self._lost_workers = 0
        self._unopened: dict[str, dict[int, Unreadable]] = {}

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[ViewBatch]:
        """The remaining batches of the epoch that have rows. Workers prefetch across the end of an epoch."""
        return (batch for batch in self.each_step() if batch.modalities)

    def each_step(self) -> Iterator[ViewBatch]:
        """The remaining batches of the epoch, one per step: without rows if no sample of the step can be read."""
        end = (self.epoch + 1) * len(self)
        while self.step < end:
            if self._items is None:
                self._items = self._work_items()
            requested = time.perf_counter()
            step, made = self._next_item()
            fetched = time.perf_counter()
            batch = self._apply_batched(step, made)
            self.seconds_in_views += time.perf_counter() - (fetched if self.workers else requested)
            self.step = step + 1
            yield batch

    @property
    def views(self) -> dict[str, int]:
        """By modality, the number of views of each sample in a batch."""
        return dict(Counter(group.modality for group in self.view_groups for _ in group.views))

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self.step // len(self)

    def state_dict(self) -> dict[str, int]:
        """The next step."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved step."""
        self.step = int(state["step"])
        self._items = None

    def failure_state(self) -> dict[str, Any]:
        """The samples that were left out, for a checkpoint; empty if there are none."""
        found = {"failures": self.failures, "files": self.files, "fatal": self.fatal}
        return {name: dict(values) for name, values in found.items()} if self.failures else {}

    def restore_failures(self, state: Mapping[str, Any]) -> None:
        """Restore samples that were left out, so that a resumed run leaves out the same without trying them again."""
        self.failures |= state.get("failures", {})
        self.files |= state.get("files", {})
        self.fatal |= state.get("fatal", {})

    def stateful_components(self) -> dict[str, Any]:
        """The components with a state to checkpoint: stateful views, and a sampler with a snapshot."""
        found: dict[str, Any] = {"sampler": self.sampler} if hasattr(self.sampler, "state_dict") else {}
        for number, group in enumerate(self.view_groups):
            for name, generator in group.generator.children():
                if hasattr(generator, "state_dict"):
                    found[f"{group.modality}/{number}/{name}"] = generator
        return found

    @property
    def batched_stage_in_worker(self) -> bool:
        """Whether workers also run the batched stage: on a CPU, unless a generator is stateful."""
        # A stateful generator in a worker would have a memory of its own in each worker, and in no checkpoint.
        return self.device.type == "cpu" and not any(group.is_stateful for group in self.view_groups)

    def make(self, step: int) -> list[CollatedGroup] | ViewBatch:
        """The work item of a step: this rank's shard, after collate or, if workers run it, after the batched stage.

        A shard with unreadable samples stays at the stage after collate, since a `ViewBatch` has no `failures`.
        """
        batch = self.sampler.batch(step)
        groups = self._collate(self.source, batch, batch.shard_slice(self.rank, self.world_size))
        if self.batched_stage_in_worker and not any(collated.failures for collated in groups):
            return apply_batched_views(groups, step)
        return groups

    def _collate(self, source: Source, batch: BatchPlan, shard: slice) -> list[CollatedGroup]:
        left_out = {
            sample: Unreadable(self.files[sample], self.failures[sample])
            for sample, first in self.fatal.items()
            if batch.step >= first
        }
        made = []
        for group in self.view_groups:
            unopened = self._unopened.setdefault(group.modality, {})
            options: dict[str, Any] = {"seed": self.seed, "left_out": {**unopened, **left_out}}
            collated = collate_group(group, source.members[group.modality], batch, shard, **options)
            if collated is not None:
                unopened |= {sample: why for sample, why in collated.failures.items() if why.unopened}
                made.append(collated)
        return made

    def _apply_batched(self, step: int, made: list[CollatedGroup] | ViewBatch) -> ViewBatch:
        if isinstance(made, ViewBatch):
            return made.to(self.device, non_blocking=True)
        for collated in made:
            self._record(collated.failures)
        lost = {collated.group.modality: collated.failures for collated in made if collated.samples is None}
        made = [collated for collated in made if collated.group.modality not in lost]
        if lost and not made:
            # A rank cannot pass over a step alone: the others may have read a sample that it could not.
            fails = self.world_size > 1 or len(self.failures) == self._number_of_samples()
            pass_over(step, *next(iter(lost.items())), is_error=fails)
            return ViewBatch({}, {}, step=step)

        def move(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
            return x.to(self.device, non_blocking=True)

        batch = apply_batched_views([collated.map(move) for collated in made], step)
        return batch.to(self.device, non_blocking=True)

    def _work_items(self) -> Iterator[tuple[int, Any]]:
        """An infinite iterator of work items, from the current step on."""
        if self.workers == 0:
            return ((step, self.make(step)) for step in count(self.step))
        self._tracked = TrackedDataset(self._numbered_item, self.workers)
        of_stream: dict[str, Any] = {"prefetch": self.prefetch, "pinned": self.device.type == "cuda"}
        return iterate_items(self._tracked, count(self.step), workers=self.workers, **of_stream)

    def _numbered_item(self, step: int) -> tuple[int, list[CollatedGroup] | ViewBatch]:
        return step, self.make(step)

    def _next_item(self) -> tuple[int, Any]:
        """The next work item. If a worker is lost, new workers make the items again, without the sample that did it."""
        while True:
            assert self._items is not None
            try:
                item = next_item(self._items, self._tracked, self.decode_seconds)
            except DEATH_ERRORS as error:
                if self._tracked is None or not is_worker_death(error):
                    raise
                self._leave_out_fatal(error)
                self._items = self._work_items()
            else:
                self._lost_workers = 0
                return item

    def _leave_out_fatal(self, error: Exception) -> None:
        """Find the samples that end their worker process; raise DataError if workers are lost again without one."""
        assert self._tracked is not None
        steps = self._tracked.unfinished()
        if isinstance(self._items, WorkerStream):
            self._items.close()  # the other workers, before a sample is tried again
        found = [sample for step in steps if (sample := self._fatal_sample(step)) is not None]
        self._lost_workers += not found
        if self._lost_workers >= LOST_WORKERS:
            raise worker_death_error(steps) from error
        if not found:
            _log.warning("a worker process was killed at steps %s, by no sample; new workers make them again", steps)

    def _fatal_sample(self, step: int) -> int | None:
        """The first sample of a step whose loading ends its process or does not end; it is left out from then on."""
        batch = self.sampler.batch(step)
        samples = batch
        if all(mixing_child(group.generator) is None for group in self.view_groups):
            samples = batch.shard(self.rank, self.world_size)
        ids = self.source.ids[samples.indices].tolist()
        samples = samples.take([number for number, sample in enumerate(ids) if sample not in self.fatal])

        def make(number: int) -> None:
            single = samples.take([number])
            for group in self.view_groups:
                try:
                    source = self.source.members[group.modality]
                    collated = collate_group(group, source, single, slice(0, 1), seed=self.seed)
                    if collated is not None and collated.samples is not None and self.batched_stage_in_worker:
                        apply_batched_views([collated], step)
                except DataError:
                    continue

        number, how = find_fatal_item(make, len(samples), self.decode_seconds)
        if number is None:
            return None
        index = int(samples.indices[number])
        sample = int(self.source.ids[index])
        present = ((member, member.present(samples.indices[[number]])) for member in self.source.members.values())
        names = [member.name_of(index) for member, mask in present if mask is None or bool(mask)]
        key = f"seed={self.seed}, epoch={samples.epoch}, step={step}, sample={sample}, index {index}"
        self.fatal[sample] = step
        self._record({sample: Unreadable(", ".join(names), f"its decoding {how} (key: {key})")})
        return sample

    def _record(self, failures: Mapping[int, Unreadable]) -> None:
        """Name new unreadable samples at once; raise DataError if there are too many."""
        for sample, (file, reason, _) in failures.items():
            if sample not in self.failures:
                self.failures[sample], self.files[sample] = reason, file
                log_once(self.source, sample, file, reason)
        check_share(self.source, self.failures, self.files, self._number_of_samples())

    def _number_of_samples(self) -> int:
        """The number of samples of the source; of a stream, the number that was read."""
        return len(self.source) if isinstance(self.source, Source) else (self.step + 1) * self.sampler.batch_size

    def __getstate__(self) -> dict[str, Any]:
        """The pickled state for workers, without the iterator over workers."""
        return {**self.__dict__, "_items": None, "_tracked": None}


def one_pass(
    source: Source,
    views: Views,
    *,
    batch_size: int = 512,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    failures: dict[int, str] | None = None,
) -> Iterator[ViewBatch]:
    """Every sample once, in order, for evaluation: to each rank its shard; why some are left out goes to `failures`."""
    batch_size = max(check_whole("one_pass", "batch_size", batch_size, least=1), world_size)
    sampler = _SequentialSampler(len(source), batch_size)
    loader = ViewLoader(
        source, views, sampler, seed=0, workers=workers, device=device, rank=rank, world_size=world_size
    )
    loader.failures = {} if failures is None else failures
    yield from loader  # without the shard of a short last batch, if it is empty


class _SequentialSampler(BatchSampler):
    """Samples in the order of the source; the last batch may be smaller."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, 0
        self.steps_per_epoch = -(-n // batch_size)

    def epoch_order(self, epoch: int) -> EpochOrder:
        return without_repeats(torch.arange(self.n))
