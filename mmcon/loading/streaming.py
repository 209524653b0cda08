"""`StreamLoader`: view batches of sequential data sets, too large for a disk, resumable from a step number.

    stream = Stream.from_hub("owner/name", split="train")         # streaming of `datasets`; or Stream(read_from)
    loader = StreamLoader(stream, {"image": [view, view]}, batch_size=512, steps_per_epoch=2000, seed=0)

A stream is read in buffers of `buffer` samples. Each buffer is shuffled by a key (seed, epoch, buffer), and global
batches are taken from the shuffled samples. So a batch is a function of its step, the state of a loader is one integer,
and a resumed run rereads at most one buffer. Every rank reads the whole stream, since reading without decoding is
cheap, and decodes its shard of each global batch. So a sample is seen by one rank only, for any world size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import final

import torch

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError, DataError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.mixup_partners import check_partners
from mmcon.loading.pipeline import Views, group_views
from mmcon.samplers.base import BatchPlan, BatchSampler, EpochOrder, without_repeats
from mmcon.sources.streaming import Stream, StreamBuffer, StreamSample


@final
class StreamSampler(BatchSampler):
    """The batch size and number of steps of a stream; without indices, the order of an epoch cannot be computed."""

    def __init__(self, *, batch_size: int, steps_per_epoch: int, seed: int) -> None:
        self.batch_size, self.seed, self.steps_per_epoch = batch_size, seed, steps_per_epoch

    def epoch_order(self, epoch: int) -> EpochOrder:
        """Raise ConfigError."""
        raise ConfigError("StreamSampler", expected="a source with indices", got="a stream", fix="iterate its loader")


@final
class StreamLoader(ViewLoader):
    """Batches of views from a stream: global batches in keyed order, of which each rank decodes its shard.

    It replaces a ViewLoader, as in `Run.batches`, but has no worker processes.

    Args:
        stream: the samples.
        views: by modality, the generators of its views; the same object twice makes two independent views.
        batch_size: samples in a global batch.
        steps_per_epoch: batches in an epoch, for schedules and checkpoints. A shorter stream is read again in another
            order; the rest of a longer one is not read.
        seed: the seed of the run.
        buffer: the number of samples that are shuffled together; at least the batch size.
        device: the device of the batched stage and of the batch.
        rank: the rank, which selects a shard of each global batch.
        world_size: the number of ranks.

    Raises:
        ConfigError: sizes are inconsistent, or views are of another modality.
    """

    def __init__(
        self,
        stream: Stream,
        views: Views,
        *,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        buffer: int = 8192,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not world_size <= batch_size <= buffer or steps_per_epoch < 1:
            raise ConfigError(
                "StreamLoader",
                expected=f"{world_size} ranks <= batch_size <= buffer, and steps_per_epoch >= 1",
                got=f"batch_size={batch_size}, buffer={buffer}, steps_per_epoch={steps_per_epoch}",
                fix="raise buffer",
            )
        if set(views) != {stream.modality}:
            raise ConfigError("StreamLoader", expected=f"views for {stream.modality!r}", got=f"for {sorted(views)}")
        check_partners(views[stream.modality], batch_size)
        self.stream, self.view_groups, self.buffer, self.seed = stream, group_views(views), buffer, seed
        self.source = stream  # pyright: ignore[reportAttributeAccessIssue]  (its description, fingerprint and modality are read)
        self.sampler = StreamSampler(batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=seed)
        self.batch_size, self.workers = batch_size, 0
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.step = 0
        self._forget_failures()
        self._batches: Iterator[tuple[int, list[StreamSample]]] | None = None

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved step."""
        self.step, self._batches = int(state["step"]), None

    def each_step(self) -> Iterator[ViewBatch]:
        """The remaining batches of the epoch, one per step: without rows if no sample of the step can be read."""
        end = (self.epoch + 1) * len(self)
        while self.step < end:
            if self._batches is None:
                self._batches = self._global_batches(self.step)
            key_epoch, samples = next(self._batches)
            fetched = time.perf_counter()
            batch = self._make_shard(samples, key_epoch)
            self.seconds_in_views += time.perf_counter() - fetched
            self.step += 1
            if self.step == end:
                self._batches = None
            yield batch

    def _make_shard(self, samples: list[StreamSample], key_epoch: int) -> ViewBatch:
        # The whole global batch as a source: partners for mixing may be in the shard of another rank.
        source = StreamBuffer(samples, self.stream)
        plan = BatchPlan(*without_repeats(torch.arange(len(samples))), key_epoch, self.step)
        return self._apply_batched(self.step, self._collate(source, plan, plan.shard_slice(self.rank, self.world_size)))

    def _global_batches(self, step: int) -> Iterator[tuple[int, list[StreamSample]]]:
        """The global batches of an epoch from a step on, each with the epoch field of its keys."""
        epoch, step_in_epoch = divmod(step, len(self))
        start, passes = step_in_epoch * self.batch_size, 0
        while True:
            # Further passes over the stream within an epoch get an epoch field that no real epoch has.
            key_epoch = epoch + passes * (1 << 32)
            samples = self.stream.shuffled(seed=self.seed, epoch=key_epoch, buffer=self.buffer, start=start)
            count = 0
            while len(batch := list(islice(samples, self.batch_size))) == self.batch_size:
                count += 1
                yield key_epoch, batch
            passes += 1
            start = self._start_of_next_pass(start, count)

    def _start_of_next_pass(self, start: int, batches: int) -> int:
        """The index of the first sample of the next pass: 0, or more if a resumed run skips whole passes."""
        if batches:
            return 0
        length = self.stream.count()
        if length < self.batch_size:
            raise DataError(
                self.stream.name,
                expected=f"at least {self.batch_size} samples, one batch",
                got=f"{length}",
                fix="lower the batch size",
            )
        return start - length // self.batch_size * self.batch_size
