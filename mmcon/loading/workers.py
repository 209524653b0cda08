"""Diagnose killed DataLoader workers: find the sample that crashes the decoder.

An exception in a worker is raised in the training process by DataLoader. A worker that is *killed* (a segmentation
fault of a decoder, an out-of-memory kill) leaves only the step that it was loading. The samples of that step are then
loaded again, one by one, in a separate worker process. The sample whose loading kills that process too is reported.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmcon.errors import DataError
from mmcon.loading.worker_processes import WorkerStream, begin_worker, signals_blocked

_IDLE = -1

DEATH_ERRORS = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)
"""The types of errors that a killed worker may cause; `is_worker_death` checks a single error."""


class TrackedDataset(Dataset):
    """A dataset that records, in shared memory, which item each worker is loading.

    Args:
        make: a function from the number of an item to the item.
        workers: the number of worker processes; 0 for none.
    """

    def __init__(self, make: Callable[[int], Any], workers: int) -> None:
        self.make = make
        self.current: Int[Tensor, " w"] = torch.full((max(1, workers),), _IDLE).share_memory_()

    def __getitem__(self, number: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.make(number)
        self.current[worker.id] = number
        made = self.make(number)
        self.current[worker.id] = _IDLE
        return made

    def unfinished(self) -> list[int]:
        """The numbers of items that workers began and did not finish."""
        return sorted(number for number in self.current.tolist() if number != _IDLE)


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
    with signals_blocked():
        stream = iter(
            DataLoader(
                items,
                sampler=numbers,  # type: ignore[arg-type]  (any iterable of numbers works)
                batch_size=None,
                num_workers=workers,
                prefetch_factor=prefetch,
                pin_memory=pinned,
                collate_fn=_unchanged,
                worker_init_fn=partial(_begin_worker, os.getpid()),
            )
        )
    if in_main:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return WorkerStream(stream)


def is_worker_death(error: Exception) -> bool:
    """Whether an error was caused by a killed worker process.

    Either PyTorch detects it, or the training process fails to fetch tensors from the killed worker over a socket that
    is closed.
    """
    if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return "in DataLoader worker" not in str(error)
    return "DataLoader worker" in str(error) and ("exited unexpectedly" in str(error) or "killed" in str(error))


def find_crashing_item(make: Callable[[int], Any], count: int) -> int | None:
    """The first of `count` items whose loading kills its process, or None."""
    items = TrackedDataset(make, 1)
    try:
        for _ in iterate_items(items, range(count), workers=1):
            pass
    except DEATH_ERRORS as error:
        if not is_worker_death(error):
            raise
        return next(iter(items.unfinished()), None)
    return None


def worker_death_error(fatal: list[str], steps: list[int]) -> DataError:
    """The error to raise for a killed worker.

    Args:
        fatal: descriptions of the samples that killed the second worker too.
        steps: the steps that workers were loading.
    """
    if fatal:
        return DataError(
            "worker process",
            expected="samples that can be decoded",
            got=f"a process that ends without an exception at {fatal[0]}",
            fix="remove or repair that sample, or examine it with `mmcon doctor --data PATH --all`",
            key=fatal[0],
        )
    at = ", ".join(str(step) for step in steps) or "none"
    return DataError(
        "worker process",
        expected="a running process",
        got=f"one that was killed (at work on steps {at}); all of its samples can be made on a second try",
        fix="most often memory ran out: lower --workers or the batch; `mmcon doctor` checks shared memory",
    )


def _begin_worker(parent: int, worker: int) -> None:
    begin_worker(parent)


def _unchanged(item: Any) -> Any:
    return item
