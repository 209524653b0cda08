"""Streams: sequential data sets, too large for a disk, in keyed order and resumable from a sample count.

    stream = Stream.from_hub("owner/name", split="train")     # streaming of `datasets`; or Stream(read_from, ...)
    for sample in stream.shuffled(seed=0, epoch=0, buffer=8192): ...

A stream is read in buffers of a fixed number of samples, and each buffer is shuffled by a key (seed, epoch, buffer). So
the n-th sample of an epoch is a function of (seed, epoch, n), and a resumed run rereads at most one buffer.
`mmcon.loading.streaming.StreamLoader` splits this order into global batches.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch

from mmcon.errors import DataError, MmconError
from mmcon.media.decoding import decoder_errors
from mmcon.random import keys, stable_id
from mmcon.sources.base import Positions, Source
from mmcon.sources.fingerprint import file_sizes, fingerprint_of, text_marks
from mmcon.sources.hub import pick_split, readable, undecoded
from mmcon.sources.listing import TableOptions, handle_opener
from mmcon.sources.tables import choose_columns

#: After so many seconds without a sample, and again after as many, a message says that the run waits for a stream.
SILENT_SECONDS = 60.0
_log = logging.getLogger(__name__)
# So many samples at the beginning of a stream are compared on resume.
_COMPARED = 64
# Larger labels are ids, of which a stream does not know how many there are.
HIGHEST_LABEL = 1_000_000


@dataclass(frozen=True)
class StreamSample:
    """One sample of a stream: its name, its encoded media, and its label or None."""

    name: str
    media: Any
    label: int | None = None


@final
class StreamBuffer(Source):
    """Samples that were read from a stream, as a source."""

    def __init__(self, samples: Sequence[StreamSample], stream: Stream) -> None:
        self.samples, self.handle = samples, stream.handle
        labels = [sample.label for sample in samples if sample.label is not None]
        super().__init__(
            ids=torch.tensor([stable_id(sample.name) for sample in samples]),
            modality=stream.modality,
            labels=torch.tensor(labels) if len(labels) == len(samples) else None,
            # Named here, so that labels mean the same in every buffer: a source would number those of ids.
            classes=stream.classes or tuple(map(str, range(max(labels, default=-1) + 1))),
            name=stream.name,
        )

    def open(self, rows: Positions) -> list[Any]:
        """A handle for each index."""
        handles = []
        for row in torch.as_tensor(rows).tolist():
            with decoder_errors(self.samples[row].name):
                handles.append(self.handle(self.samples[row].media, self.samples[row].name))
        return handles

    def name_of(self, row: int) -> str:
        """The name of the sample in the stream."""
        return f"{self.name}: {self.samples[row].name}"


@final
class Stream:
    """A sequential data set, without random access: it is read from the start, or after a number of skipped samples.

    Args:
        read_from: a function from the number of samples to skip to an iterable of the following samples.
        modality: the modality of the media.
        classes: the names of the classes.
        handle: a function from a sample's media and name to a handle; by default that of the modality.
        name: the name of the stream in messages.
        notes: what was guessed.
    """

    def __init__(
        self,
        read_from: Callable[[int], Iterable[StreamSample]],
        *,
        modality: str = "image",
        classes: Sequence[str] = (),
        handle: Callable[[Any, str], Any] | None = None,
        name: str = "stream",
        notes: Sequence[str] = (),
    ) -> None:
        self.read_from, self.modality, self.classes, self.name = read_from, modality, tuple(classes), name
        self.handle = handle or handle_opener(modality)
        self.notes = tuple(notes)

    def describe(self) -> str:
        """The name and modality of the stream, and the notes on what was guessed."""
        return "\n  ".join([f"{self.name}: a stream of {self.modality} samples", *self.notes])

    def fingerprint(self) -> dict[str, int | str]:
        """As that of a source, of the first samples: what changes after them is not noticed without reading it all."""
        samples = list(islice(self._read(0), _COMPARED))
        labels = [-1 if sample.label is None else sample.label for sample in samples]
        media = [sample.media for sample in samples]
        marks = text_marks(media) if self.modality == "text" else file_sizes(media, Path())
        ids = torch.tensor([stable_id(sample.name) for sample in samples], dtype=torch.int64)
        return fingerprint_of(ids, torch.tensor(labels, dtype=torch.int64), lambda rows: marks)

    def shuffled(self, *, seed: int, epoch: int, buffer: int, start: int = 0) -> Iterator[StreamSample]:
        """The samples of an epoch in keyed order from index `start` on, read from the buffer that contains it."""
        block, inside = divmod(start, buffer)
        samples = self._read(block * buffer)
        while held := list(islice(samples, buffer)):
            order = keys(seed=seed, epoch=epoch, sample=block).child("stream").permutation("order", len(held))[0]
            yield from (held[i] for i in order.tolist()[inside:])
            block, inside = block + 1, 0

    def count(self) -> int:
        """The number of samples, which reads the whole stream."""
        return sum(1 for _ in self._read(0))

    def _read(self, skip: int) -> Iterator[StreamSample]:
        """The samples after the first `skip`; an error of the reader names the stream, and a long silence is logged."""
        count = skip
        with _silence_told(self.name) as waiting_since:
            try:
                reader = iter(self.read_from(skip))
                while True:
                    waiting_since[0] = time.monotonic()
                    sample = next(reader, None)
                    waiting_since[0] = math.inf  # the consumer may take as long as it likes
                    if sample is None:
                        return
                    count += 1
                    yield sample
            except MmconError:
                raise
            except Exception as error:  # readers raise many types
                raise DataError(
                    self.name,
                    expected="a stream that can be read to its end",
                    got=f"{type(error).__name__} after {count:,} samples: {str(error).partition(chr(10))[0]}",
                    fix="check the network and the data; --resume goes on from the last checkpoint",
                ) from error

    @staticmethod
    def from_hub(
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
        """Open a stream with `datasets.load_dataset(..., streaming=True)`: a hub name, parquet or webdataset shards.

        Labels as texts need `classes`, since a stream cannot be scanned for them first. Other arguments are as for
        `mmcon.sources.hub.list_dataset`.
        """
        where = f"stream {str(path)!r}"
        with readable(where):
            from datasets import load_dataset

            tables = load_dataset(str(path), config, revision=revision, streaming=True, **options)
            name, _ = pick_split(where, list(tables), split)
            table = tables[name]
            # A stream without declared features infers them from its first rows.
            table = table if table.features else table._resolve_features()
        named = TableOptions(media_column=media_column, label_column=label_column, id_column=id_column)
        columns = choose_columns(where, list(table.features), modality, named)
        table = undecoded(table, columns.media)
        names = tuple(classes or getattr(table.features.get(columns.label), "names", None) or ())

        def read_from(skip: int) -> Iterator[StreamSample]:
            for i, row in enumerate(table.skip(skip) if skip else table, start=skip):
                called = f"{name}/{i}" if columns.id is None else str(row[columns.id])
                label = None if columns.label is None else _label(where, row[columns.label], names)
                yield StreamSample(called, row[columns.media], label)

        return Stream(read_from, modality=modality, classes=names, name=f"{path} ({split})", notes=columns.notes)


@contextmanager
def _silence_told(name: str) -> Iterator[list[float]]:
    """Log every `SILENT_SECONDS` that a stream has returned no sample: a reader that hangs cannot be interrupted.

    Yields a list with the time since which the stream is waited for.
    """
    waiting_since, done = [math.inf], threading.Event()

    def watch() -> None:
        while not done.wait(SILENT_SECONDS):
            if (silent := time.monotonic() - waiting_since[0]) >= SILENT_SECONDS:
                _log.warning("%s: no sample for %.0f s; the run waits", name, silent)

    threading.Thread(target=watch, name="stream watch", daemon=True).start()
    try:
        yield waiting_since
    finally:
        done.set()


def _label(where: str, value: Any, classes: tuple[str, ...]) -> int:
    if isinstance(value, str) and value in classes:
        return classes.index(value)
    if not isinstance(value, int) or not 0 <= value < HIGHEST_LABEL:
        fix = "give classes= with the names of all classes in order, or label_column='none'"
        expected = f"labels as whole numbers from 0, below {HIGHEST_LABEL:,}, or names of classes"
        raise DataError(where, expected=expected, got=repr(value), fix=fix)
    return value
