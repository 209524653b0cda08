"""`ViewLoader`: an iterable data loader of view batches, resumable from its step.

A work item is the batch of one step. All draws are keyed, so a batch does not depend on the worker or on timing, and
the state of a loader is one integer, the step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError, DataError
from mmcon.loading.mixup_partners import check_partners, mixing_child
from mmcon.loading.pipeline import CollatedGroup, Views, apply_batched_views, collate_group, group_views
from mmcon.loading.workers import (
    DEATH_ERRORS,
    TrackedDataset,
    find_crashing_item,
    is_worker_death,
    iterate_items,
    worker_death_error,
)
from mmcon.samplers.base import BatchPlan, BatchSampler, EpochOrder, without_repeats
from mmcon.sources.base import Source


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

    Attributes:
        seconds_in_views: time that this process, not its workers, spent on drawing, decoding and computing views.
        failures: unreadable samples by id, with the reason.

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
        self.workers, self.prefetch = workers, prefetch
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.step = 0
        self.failures: dict[int, str] = {}
        self._items: Iterator[tuple[int, Any]] | None = None
        self._tracked: TrackedDataset | None = None

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[ViewBatch]:
        """The remaining batches of the epoch. Workers prefetch across the end of an epoch."""
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
        children = (child for group in self.view_groups for _, child in group.generator.children())
        return self.device.type == "cpu" and not any(child.scope == "stateful" for child in children)

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
        collated = (
            collate_group(group, source.members[group.modality], batch, shard, seed=self.seed)
            for group in self.view_groups
        )
        return [group for group in collated if group is not None]

    def _apply_batched(self, step: int, made: list[CollatedGroup] | ViewBatch) -> ViewBatch:
        if isinstance(made, ViewBatch):
            return made.to(self.device, non_blocking=True)
        for collated in made:
            self.failures |= collated.failures

        def move(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
            return x.to(self.device, non_blocking=True)

        batch = apply_batched_views([collated.map(move) for collated in made], step)
        return batch.to(self.device, non_blocking=True)

    def _work_items(self) -> Iterator[tuple[int, Any]]:
        """An infinite iterator of work items, from the current step on."""
        if self.workers == 0:
            return ((step, self.make(step)) for step in count(self.step))
        self._tracked = TrackedDataset(self._numbered_item, self.workers)
        pinned = self.device.type == "cuda"
        return iterate_items(
            self._tracked, count(self.step), workers=self.workers, prefetch=self.prefetch, pinned=pinned
        )

    def _numbered_item(self, step: int) -> tuple[int, list[CollatedGroup] | ViewBatch]:
        return step, self.make(step)

    def _next_item(self) -> tuple[int, Any]:
        """The next work item; if a worker was killed, raise an error that names the sample that crashes the decoder."""
        assert self._items is not None
        try:
            return next(self._items)
        except DEATH_ERRORS as error:
            if self._tracked is None or not is_worker_death(error):
                raise
            steps = self._tracked.unfinished()
            fatal = [description for step in steps if (description := self._crashing_sample(step))]
            raise worker_death_error(fatal, steps) from error

    def _crashing_sample(self, step: int) -> str:
        """Describe the sample of a step whose loading kills its process, or return an empty string."""
        samples = self.sampler.batch(step)
        if all(mixing_child(group.generator) is None for group in self.view_groups):
            samples = samples.shard(self.rank, self.world_size)

        def make(number: int) -> None:
            single = samples.take([number])
            for group in self.view_groups:
                try:
                    source = self.source.members[group.modality]
                    collated = collate_group(group, source, single, slice(0, 1), seed=self.seed)
                    if collated is not None and self.batched_stage_in_worker:
                        apply_batched_views([collated], step)
                except DataError:
                    continue

        number = find_crashing_item(make, len(samples))
        if number is None:
            return ""
        index = int(samples.indices[number])
        sample = int(self.source.ids[index])
        return f"seed={self.seed}, epoch={samples.epoch}, step={step}, sample={sample}, index {index}"

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
) -> Iterator[ViewBatch]:
    """Iterate over every sample of a source once, in order, for evaluation; each rank gets its shard of every batch."""
    sampler = _SequentialSampler(len(source), max(batch_size, world_size))
    loader = ViewLoader(
        source, views, sampler, seed=0, workers=workers, device=device, rank=rank, world_size=world_size
    )
    # The shard of a short last batch may be empty.
    yield from (batch for batch in loader if batch.modalities)


class _SequentialSampler(BatchSampler):
    """Samples in the order of the source; the last batch may be smaller."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, 0
        self.steps_per_epoch = -(-n // batch_size)

    def epoch_order(self, epoch: int) -> EpochOrder:
        return without_repeats(torch.arange(self.n))
