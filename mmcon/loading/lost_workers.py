"""Lost DataLoader workers: end those that hang, and find the sample that crashes or hangs the decoder.

An exception in a worker is raised in the training process by DataLoader. A worker that is *killed* (a segmentation
fault of a decoder, an out-of-memory kill) leaves only the step that it was loading. The samples of that step are then
loaded again, one by one, in a separate worker process, to find the one whose loading kills that process too. A worker
that decodes one sample for too long is killed by the training process, and then handled in the same way.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmcon.errors import DataError
from mmcon.loading.shared_items import ItemPacker, ItemReceiver
from mmcon.loading.worker_processes import (
    Unsendable,
    WorkerStream,
    begin_worker,
    limits_explained,
    share_within_file_limit,
    signals_blocked,
    workers_of_a_failed_start_end,
)
from mmcon.media.decoding import record_decoding

#: How often the training process looks whether a worker hangs.
POLL_SECONDS = 5.0

_IDLE = -1
# That of a worker process.
_packer: ItemPacker | None = None

DEATH_ERRORS = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)
"""The types of errors that a killed worker may cause; `is_worker_death` checks a single error."""


class TrackedDataset(Dataset):
    """A dataset that records, in shared memory, which item each worker is loading.

    Args:
        make: a function from the number of an item to the item.
        workers: the number of worker processes; 0 for none.

    Attributes:
        hung: the number of workers that were ended since they took too long.
    """

    def __init__(self, make: Callable[[int], Any], workers: int) -> None:
        self.make = make
        with limits_explained():
            self.current: Int[Tensor, " w"] = torch.full((max(1, workers),), _IDLE).share_memory_()
            self.processes: Int[Tensor, " w"] = torch.zeros(max(1, workers), dtype=torch.int64).share_memory_()
            self.began: Float64[Tensor, " w"] = torch.zeros(max(1, workers), dtype=torch.float64).share_memory_()
        self.hung = 0

    def __getitem__(self, number: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.make(number)
        if not self.processes[worker.id]:
            record_decoding(self.began.numpy()[worker.id : worker.id + 1])
            self.processes[worker.id] = os.getpid()
        self.current[worker.id] = number
        made = self.make(number)
        self.current[worker.id] = _IDLE
        return made

    def unfinished(self) -> list[int]:
        """The numbers of items that workers began and did not finish."""
        return sorted(number for number in self.current.tolist() if number != _IDLE)

    def end_hung_workers(self, seconds: float) -> None:
        """Kill the workers whose decoding of one sample has made no progress for a number of seconds."""
        for worker, began in enumerate(self.began.tolist()):
            if began and time.monotonic() - began > seconds:
                self.hung += 1
                self.began[worker] = 0.0
                with suppress(ProcessLookupError):
                    os.kill(int(self.processes[worker]), signal.SIGKILL)


def iterate_items(
    items: TrackedDataset, numbers: Iterable[int], *, workers: int, prefetch: int = 2, pinned: bool = False
) -> WorkerStream:
    """Load items in order by worker processes. A killed worker raises on the next fetch.

    Args:
        items: the dataset.
        numbers: the numbers of the items, possibly infinite.
        workers: the number of worker processes, at least one.
        prefetch: items that each worker prefetches.
        pinned: copy items into page-locked memory, in a thread of the training process.
    """
    # DataLoader installs a SIGCHLD handler that raises at an arbitrary point of the training process. The previous
    # handler is restored.
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if in_main else None
    share_within_file_limit()
    try:
        with signals_blocked(), workers_of_a_failed_start_end(), limits_explained():
            receiver = ItemReceiver(workers)
            stream = iter(
                DataLoader(
                    items,
                    sampler=numbers,  # type: ignore[arg-type]  (any iterable of numbers works)
                    batch_size=None,
                    num_workers=workers,
                    prefetch_factor=prefetch,
                    pin_memory=pinned,
                    timeout=POLL_SECONDS,
                    collate_fn=_packed,
                    worker_init_fn=partial(_begin_worker, os.getpid(), in_main, receiver.number, receiver.in_use),
                )
            )
    finally:
        if in_main:
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return WorkerStream(stream, receiver)


def next_item(stream: Iterator[Any], items: TrackedDataset | None, decode_seconds: float) -> Any:
    """The next item of a stream; meanwhile, workers that take too long for one sample are ended.

    Args:
        stream: the items, by workers or not.
        items: the dataset of `iterate_items`; None without workers.
        decode_seconds: the longest time without progress.
    """
    while True:
        try:
            return next(stream)
        except RuntimeError as error:
            if items is None or not str(error).startswith("DataLoader timed out"):
                raise
            items.end_hung_workers(decode_seconds)


def is_worker_death(error: Exception) -> bool:
    """Whether an error was caused by a killed worker process.

    Either PyTorch detects it, or the training process fails to fetch tensors from the killed worker over a socket that
    is closed.
    """
    if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return "in DataLoader worker" not in str(error)
    return "DataLoader worker" in str(error) and ("exited unexpectedly" in str(error) or "killed" in str(error))


def find_fatal_item(make: Callable[[int], Any], count: int, decode_seconds: float) -> tuple[int | None, str]:
    """The first of `count` items whose loading kills its process or does not end, and which of the two; or None."""
    items = TrackedDataset(make, 1)
    stream = iterate_items(items, range(count), workers=1)
    try:
        for _ in range(count):
            next_item(stream, items, decode_seconds)
    except DEATH_ERRORS as error:
        if not is_worker_death(error):
            raise
        how = f"made no progress for {decode_seconds:g} s" if items.hung else "ended the worker process"
        return next(iter(items.unfinished()), None), how
    finally:
        stream.close()
    return None, ""


def worker_death_error(steps: list[int]) -> DataError:
    """The error to raise for workers that are killed again and again, but by no sample.

    Args:
        steps: the steps that workers were loading.
    """
    at = ", ".join(str(step) for step in steps) or "none"
    return DataError(
        "worker process",
        expected="a running process",
        got=f"one that was killed (at work on steps {at}); all of its samples can be made on a second try",
        fix="most often memory ran out: lower --workers or the batch; `mmcon doctor` checks shared memory",
    )


def _begin_worker(
    parent: int, by_main_thread: bool, receiver: int, in_use: Int[Tensor, "workers blocks"], worker: int
) -> None:
    global _packer
    begin_worker(parent, by_main_thread=by_main_thread)
    _packer = ItemPacker(receiver, in_use, worker)


def _packed(item: Any) -> Any:
    """The message of a worker's item, or the reason why there is none: an error here is not one of the item's data."""
    assert _packer is not None
    try:
        return _packer.pack(item)
    except Exception as error:  # any type: `__reduce__` of a view's values may be the user's
        return Unsendable(f"{type(error).__name__}: {error}")
