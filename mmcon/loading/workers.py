"""When a worker process dies: which sample it died of.

An exception in a worker arrives in the training process by itself. A worker that is *killed* (a decoder's segmentation
fault, a kernel that is short of memory) leaves nothing behind but the step that it was at. That step's rows are then
tried once more, one by one, in a worker process of their own: where it dies again, that row is at fault.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmcon.errors import DataError

IDLE = -1

DEATHS = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)
"""What may be raised where a worker has died; `is_death` tells which of them was one."""


class Noted(Dataset):
    """Items that note, where every process can read it, which of them each worker is at.

    Args:
        make: the item of a number.
        workers: how many worker processes there are; 0 for none.
    """

    def __init__(self, make: Callable[[int], Any], workers: int) -> None:
        self.make = make
        self.at: Tensor = torch.full((max(1, workers),), IDLE).share_memory_()

    def __getitem__(self, number: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.make(number)
        self.at[worker.id] = number
        made = self.make(number)
        self.at[worker.id] = IDLE
        return made

    def unfinished(self) -> list[int]:
        """The numbers that workers began and did not end."""
        return sorted(number for number in self.at.tolist() if number != IDLE)


def iterate(
    items: Noted, numbers: Iterable[int], *, workers: int, prefetch: int = 2, pinned: bool = False
) -> Iterator[Any]:
    """The items in order, made by worker processes; that one died is told where an item is asked for.

    With `pinned` a thread of the training process puts them into page-locked memory as they come.

    PyTorch would raise from a signal handler, in the middle of whatever the training process happens to do.
    """
    own = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if own else None
    stream = iter(
        DataLoader(
            items,
            sampler=numbers,  # type: ignore[arg-type]  (an iterable of numbers is all that it needs)
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch,
            pin_memory=pinned,
            collate_fn=_as_it_is,
        )
    )
    if own:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return stream


def is_death(error: Exception) -> bool:
    """Whether an error says that a worker process ended.

    PyTorch notices it, or the training process does, when it asks a dead worker for the tensors that it had announced
    and finds nobody at the other end of the socket.
    """
    if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return "in DataLoader worker" not in str(error)
    return "DataLoader worker" in str(error) and ("exited unexpectedly" in str(error) or "killed" in str(error))


def fatal_item(make: Callable[[int], Any], count: int) -> int | None:
    """The first of `count` items that ends a process in which it is made, or None where all can be made."""
    items = Noted(make, 1)
    try:
        for _ in iterate(items, range(count), workers=1):
            pass
    except DEATHS as error:
        if not is_death(error):
            raise
        return next(iter(items.unfinished()), None)
    return None


def death(found: list[str], steps: list[int]) -> DataError:
    """The error that tells of a worker that died.

    Args:
        found: the samples of which a worker died again, described.
        steps: the steps that workers were at.
    """
    at = ", ".join(str(step) for step in steps) or "none"
    if found:
        return DataError(
            "worker process",
            expected="samples that can be decoded",
            got=f"a process that ends without a word at {found[0]}",
            fix="remove that sample or mend it, or look at it with `mmcon doctor --data PATH --all`",
            key=found[0],
        )
    return DataError(
        "worker process",
        expected="one that lives",
        got=f"one that was ended from outside (work on steps {at}); all of its samples can be made when tried again",
        fix="most often memory ran out: lower --workers or the batch; `mmcon doctor` looks at shared memory",
    )


def _as_it_is(item: Any) -> Any:
    return item
