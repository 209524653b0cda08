"""Streams: data too large for a disk, shuffled and sharded by keys, whose position is a number.

    stream = Stream.of("owner/name", split="train")         # datasets' streaming; or Stream(open_rows, …)
    loader = StreamLoader(stream, {"image": [view, view]}, batch_size=512, steps_per_epoch=2000, seed=0)

A stream is read in blocks of `buffer` rows; each block is put into an order that is drawn for (seed, epoch, block), and
global batches are cut from the rows in that order. So a batch is a function of its step, the state of a loader is one
integer, a resumed run reads at most one block again, and any number of processes sees every row once: each takes its
part of every global batch. All processes read the stream, since bytes that are not decoded are cheap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError, DataError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.mixing import check_partners
from mmcon.loading.pipeline import Views, group_views
from mmcon.random import keys, stable_id
from mmcon.samplers.base import BatchPlan, BatchSampler, EpochOrder, without_repeats
from mmcon.sources.base import Source
from mmcon.sources.columns import choose_columns, opener
from mmcon.sources.hub import pick_split, readable, undecoded


@dataclass(frozen=True)
class StreamRow:
    """One row of a stream: its name, what opens its media, and its label (None where it has none)."""

    name: str
    media: Any
    label: int | None = None


@final
class Window(Source):
    """Rows of a stream that are at hand, as a source of their own."""

    def __init__(self, rows: Sequence[StreamRow], stream: Stream) -> None:
        self.rows, self.handle = rows, stream.handle
        labels = [row.label for row in rows if row.label is not None]
        super().__init__(
            ids=torch.tensor([stable_id(row.name) for row in rows]),
            modality=stream.modality,
            labels=torch.tensor(labels) if len(labels) == len(rows) else None,
            classes=stream.classes,
            name=stream.name,
        )

    def open(self, rows: Tensor | Sequence[int]) -> list[Any]:
        """A handle for each row."""
        chosen = [self.rows[row] for row in torch.as_tensor(rows).tolist()]
        return [self.handle(row.media, row.name) for row in chosen]


@final
class Stream:
    """Rows that can be read from the start again, and from nowhere else.

    Args:
        open_rows: from a number of rows to skip to the rows after them.
        modality: what the media are.
        classes: the names of the classes.
        handle: from a row's media and name to a handle; by default what the modality has.
        name: what the stream is called in messages.
        notes: what was guessed.
    """

    def __init__(
        self,
        open_rows: Callable[[int], Iterable[StreamRow]],
        *,
        modality: str = "image",
        classes: Sequence[str] = (),
        handle: Callable[[Any, str], Any] | None = None,
        name: str = "stream",
        notes: Sequence[str] = (),
    ) -> None:
        self.open_rows, self.modality, self.classes, self.name = open_rows, modality, tuple(classes), name
        self.handle = handle or opener(modality)
        self.notes = tuple(notes)

    def describe(self) -> str:
        """What it is, and what was guessed, for a person to read before a run."""
        return "\n  ".join([f"{self.name}: a stream of {self.modality} rows", *self.notes])

    def shuffled(self, *, seed: int, epoch: int, buffer: int, start: int = 0) -> Iterator[StreamRow]:
        """The rows of an epoch in keyed order, from the `start`-th on; reads from the block that holds it."""
        block, inside = divmod(start, buffer)
        rows = iter(self.open_rows(block * buffer))
        while held := list(islice(rows, buffer)):
            order = keys(seed=seed, epoch=epoch, sample=block).child("stream").permutation("order", len(held))[0]
            yield from (held[i] for i in order.tolist()[inside:])
            block, inside = block + 1, 0

    @staticmethod
    def of(
        path: str | Path,
        *,
        split: str = "train",
        modality: str = "image",
        config: str | None = None,
        revision: str | None = None,
        media_column: str | None = None,
        label_column: str | None = None,
        id_column: str | None = None,
        classes: Sequence[str] | None = None,
        **options: Any,
    ) -> Stream:
        """What `datasets.load_dataset(..., streaming=True)` reads: hub names, parquet, webdataset shards, ….

        Text labels need `classes`, since a stream cannot be searched for them first. Other arguments as for
        `mmcon.sources.hub.load_table`.
        """
        where = f"stream {str(path)!r}"
        with readable(where):
            from datasets import load_dataset

            tables = load_dataset(str(path), config, revision=revision, streaming=True, **options)
            name, _ = pick_split(where, list(tables), split)
            table = tables[name]
            table = table if table.features else table._resolve_features()
        columns = choose_columns(
            where, list(table.features), modality, media=media_column, label=label_column, id=id_column
        )
        table = undecoded(table, columns.media)
        names = classes or getattr(table.features.get(columns.label), "names", None) or ()
        number = {text: i for i, text in enumerate(names)}

        def label_of(row: Mapping[str, Any]) -> int | None:
            if columns.label is None:
                return None
            value = row[columns.label]
            if isinstance(value, str) and value in number:
                return number[value]
            if not isinstance(value, int):
                fix = "give classes= with the names of all classes in order, or label_column='none'"
                raise DataError(
                    where, expected="labels as whole numbers, or names of classes", got=repr(value), fix=fix
                )
            return value

        def open_rows(skip: int) -> Iterator[StreamRow]:
            for i, row in enumerate(table.skip(skip) if skip else table, start=skip):
                called = f"{name}/{i}" if columns.id is None else str(row[columns.id])
                yield StreamRow(called, row[columns.media], label_of(row))

        return Stream(open_rows, modality=modality, classes=names, name=f"{path} ({split})", notes=columns.notes)


@final
class StreamSampler(BatchSampler):
    """Holds the batch size and the steps of a stream; its samples have no indices, so an epoch has no order ahead."""

    def __init__(self, *, batch_size: int, steps_per_epoch: int, seed: int) -> None:
        self.batch_size, self.seed, self.steps_per_epoch = batch_size, seed, steps_per_epoch

    def epoch_order(self, epoch: int) -> EpochOrder:
        """Raise ConfigError."""
        raise ConfigError("StreamSampler", expected="a source with indices", got="a stream", fix="iterate its loader")


@final
class StreamLoader(ViewLoader):
    """Batches of views from a stream: global batches in keyed order, of which each rank makes its shard.

    It works wherever a ViewLoader does, as in `Run.batches`, but without worker processes.

    Args:
        stream: the samples.
        views: by modality, the generators of its views; the same object twice makes two independent views.
        batch_size: samples in a global batch.
        steps_per_epoch: batches in an epoch, for schedules and checkpoints. A stream that ends before starts again in
            another order; one that would continue is cut.
        seed: the seed of the run.
        buffer: samples in a block, which are shuffled together; at least a batch.
        device: where the batched stage runs.
        rank: the shard of each global batch, of `world_size`.
        world_size: the number of ranks.

    Raises:
        ConfigError: sizes that do not fit together, or views of another modality.
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
        self.source = stream  # pyright: ignore[reportAttributeAccessIssue]  (only its description is read)
        self.sampler = StreamSampler(batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=seed)
        self.batch_size, self.workers = batch_size, 0
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.step = 0
        self.failures: dict[int, str] = {}
        self._batches: Iterator[tuple[int, list[StreamRow]]] | None = None

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved step."""
        self.step, self._batches = int(state["step"]), None

    def __iter__(self) -> Iterator[ViewBatch]:
        """The rest of the epoch."""
        end = (self.epoch + 1) * len(self)
        while self.step < end:
            if self._batches is None:
                self._batches = self._global_batches(self.step)
            key_epoch, rows = next(self._batches)
            fetched = time.perf_counter()
            batch = self._make_shard(rows, key_epoch)
            self.seconds_in_views += time.perf_counter() - fetched
            self.step += 1
            if self.step == end:
                self._batches = None
            yield batch

    def _make_shard(self, rows: list[StreamRow], key_epoch: int) -> ViewBatch:
        window = Window(rows, self.stream)
        plan = BatchPlan(*without_repeats(torch.arange(len(rows))), key_epoch, self.step)
        return self._finish(self.step, self._collate(window, plan, plan.shard_slice(self.rank, self.world_size)))

    def _global_batches(self, step: int) -> Iterator[tuple[int, list[StreamRow]]]:
        """The global batches of an epoch from a step on, each with the epoch of its keys."""
        epoch, step_in_epoch = divmod(step, len(self))
        start, passes = step_in_epoch * self.batch_size, 0
        while True:
            # Further passes over the stream within an epoch have key epochs far above those of any epoch.
            key_epoch = epoch + passes * (1 << 32)
            rows = self.stream.shuffled(seed=self.seed, epoch=key_epoch, buffer=self.buffer, start=start)
            count = 0
            while len(batch := list(islice(rows, self.batch_size))) == self.batch_size:
                count += 1
                yield key_epoch, batch
            passes += 1
            start = self._start_of_next_pass(start, count)

    def _start_of_next_pass(self, start: int, batches: int) -> int:
        """The first row of the next pass: 0, or further on where a resumed run skips whole passes."""
        if batches:
            return 0
        length = sum(1 for _ in self.stream.open_rows(0))
        if length < self.batch_size:
            raise DataError(
                self.stream.name,
                expected=f"at least {self.batch_size} samples, one batch",
                got=f"{length}",
                fix="lower the batch size",
            )
        return start - length // self.batch_size * self.batch_size
