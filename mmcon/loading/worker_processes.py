"""The life of worker processes: they outlast signals to their process group, and end with the training process.

On SIGTERM or SIGINT the training process finishes its step and writes a checkpoint, for which it needs its workers. So
these ignore the signals, and watch their parent instead.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _remove_worker_pids

from mmcon.errors import ConfigError
from mmcon.loading.shared_items import ItemReceiver, PackedItem

try:
    import resource
except ImportError:  # Windows
    resource = None

#: Seconds that workers have to end by themselves, before they are killed.
PATIENCE_SECONDS = 4.0
#: The limit of open files from which on tensors of workers are open files, as they are by torch's default.
ENOUGH_FILES = 1024

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_streams: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Delay stop signals while workers start, and block them in the workers until these ignore them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def workers_of_a_failed_start_end() -> Iterator[None]:
    """Kill the workers that were started before another one failed to: multiprocessing would wait for them at exit."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        raise


def share_within_file_limit() -> None:
    """Pass tensors by names in shared memory where the system allows few open files; else each is an open file.

    Files are the better way, since nothing is left of a process that was killed. But where a worker runs out of them,
    the thread that hands them over fails, and the training process would wait without end.
    """
    if resource is not None and resource.getrlimit(resource.RLIMIT_NOFILE)[0] < ENOUGH_FILES:
        torch.multiprocessing.set_sharing_strategy("file_system")


@contextmanager
def limits_explained() -> Iterator[None]:
    """Raise ConfigError where the system refuses another open file, or shared memory for workers."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if it cannot allocate shared memory
        if (explained := _explain_limit(f"{type(error).__name__}: {error}")) is None:
            raise
        raise explained from error


def _explain_limit(reason: str) -> ConfigError | None:
    """The error of a process that lacks shared memory or open files; None for another reason."""
    in_worker = "in DataLoader worker process" in reason  # its own code may write to a full disk
    if "</torch_" in reason or (
        os.strerror(errno.ENOSPC) in reason and not in_worker
    ):  # torch's files in shared memory
        return ConfigError(
            "worker processes",
            expected="enough free shared memory, through which batches pass",
            got=reason,
            fix="enlarge /dev/shm (docker run --shm-size=8g), lower --workers or the batch, or pass --workers 0",
        )
    if os.strerror(errno.EMFILE) not in reason and os.strerror(errno.ENFILE) not in reason:
        return None
    limit = "the" if resource is None else f"a limit of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    return ConfigError(
        "worker processes",
        expected="a limit of open files that suffices for the workers",
        got=f"{limit} open files, all in use",
        fix="raise it by `ulimit -n 4096` before the start, or lower --workers",
    )


@dataclass(frozen=True)
class Unsendable:
    """What a worker sends in place of an item that it could not send.

    Attributes:
        reason: the error.
    """

    reason: str


def _send_reason(queue: multiprocessing.queues.Queue[Any], error: Exception, sent: tuple[int, Any]) -> None:
    """Send the reason why an item could not be sent: without it, the training process would wait for the item forever.

    It replaces a hook of multiprocessing, which prints the error alone.
    """
    queue.put((sent[0], Unsendable(f"{type(error).__name__}: {error}")))


def begin_worker(parent: int, *, by_main_thread: bool) -> None:
    """Set up the current process as a worker of a parent process: ignore stop signals, and end when the parent ends.

    torch's own watch of the parent does not end a worker that waits for a full pipe to be read.

    Args:
        parent: the number of the parent process.
        by_main_thread: whether the parent's main thread started it, which ends with the process.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    share_within_file_limit()  # a worker that was not forked has torch's default
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_reason  # type: ignore[attr-defined]
    if by_main_thread and sys.platform == "linux":
        # Also ends a stopped worker. The system sends it when the thread ends that started the worker.
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


class WorkerStream:
    """The items of a DataLoader with worker processes, which end with this object or with the program.

    torch waits five seconds for each worker and then sends SIGTERM, and multiprocessing waits at exit without a limit.

    Args:
        items: the iterator of the DataLoader.
        receiver: of the workers' items.
    """

    def __init__(self, items: Any, receiver: ItemReceiver) -> None:
        self._items, self._receiver = items, receiver
        self.workers: list[Any] = list(items._workers)
        _streams.add(self)

    def __iter__(self) -> WorkerStream:
        return self

    def __next__(self) -> Any:
        if self._items is None:
            raise StopIteration
        with limits_explained():
            item = next(self._items)
            if isinstance(item, PackedItem):  # else it was pinned, or could not be sent
                return item.unpack()
        if isinstance(item, Unsendable):
            raise _explain_limit(item.reason) or ConfigError(
                "worker processes",
                expected="items that can be sent to the training process",
                got=item.reason,
                fix="let the view return tensors and plain values, or pass --workers 0",
            )
        return item

    def close(self) -> None:
        """End the workers, stopped ones too, within `PATIENCE_SECONDS`."""
        if self._items is None:
            return
        items, self._items = self._items, None
        if items._worker_pids_set:
            # A worker that is killed here is no error, also where another DataLoader's handler looks for lost workers.
            _remove_worker_pids(id(items))
            items._worker_pids_set = False
        for worker in self.workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGCONT)
        killer = threading.Timer(PATIENCE_SECONDS, self._kill)
        killer.daemon = True
        killer.start()
        items.__del__()  # torch's own shutdown under its public name
        killer.cancel()
        self._kill()

    def abandon(self) -> None:
        """Forget the workers, in a process that did not start them."""
        if self._items is not None:
            self._items._shutdown = True  # torch's own mark of workers that have ended
        self._items, self.workers = None, []

    def _kill(self) -> None:
        for worker in self.workers:
            if worker.is_alive():
                worker.kill()

    def __del__(self) -> None:
        self.close()


@atexit.register
def _close_all() -> None:
    for stream in list(_streams):
        stream.close()


def _abandon_all() -> None:
    for stream in list(_streams):
        stream.abandon()


# A fork, such as a worker, has copies of the streams that were open, and torch would try to end their workers in it.
if hasattr(os, "register_at_fork"):
    # Frozen garbage is not collected: a collection in the child, before streams are abandoned, would end them there.
    os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze, after_in_child=_abandon_all)
