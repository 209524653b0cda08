"""Graceful stop: signals are recorded during a step and handled after it, once for all ranks.

`Run.batches` checks the record after each step, writes a checkpoint, and exits with the status `STOPPED`. From the
opening of the run folder to the first step, and after the last one, SIGTERM and SIGHUP end the run at once with the
same status.

A signal to the whole process group (Slurm, Kubernetes, a closed terminal) reaches a rank up to twice, directly and from
its launcher. So a rank that a launcher started takes a repeated signal for a copy for some seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from mmcon.files import replace_file

#: The exit status after a signal: a checkpoint was written, and `--resume` continues (EX_TEMPFAIL of sysexits.h).
STOPPED = 75
#: The file in a run folder that tells a supervisor the same, since launchers replace the status by their own.
STOPPED_FILE = "stopped"
#: Seconds within which a launcher passes on a signal that its ranks have received too.
COPY_SECONDS = 5.0
#: Seconds from the end of a launcher to that of a rank whose step does not end, and seconds between two looks at it.
ORPHAN_SECONDS, LOOK_SECONDS = 45.0, 1.0

_LAUNCHERS = {"torchrun", "accelerate", "accelerate-launch", "torch.distributed.run", "accelerate.commands.launch"}
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class StopSignals:
    """Records SIGTERM, SIGINT and SIGHUP inside a `with` block; a second signal ends the process at once.

    SIGHUP, which a closed terminal sends, stays ignored under nohup.

    Args:
        launcher: the process number of the launcher, or None.

    Attributes:
        received: the numbers of the recorded signals.
        finishing: whether the loop has seen the record and ends; set by the loop.
    """

    active: ClassVar[StopSignals | None] = None

    def __init__(self, launcher: int | None = None) -> None:
        self.received: list[int] = []
        self.finishing = False
        self._launcher = launcher
        self._first = 0.0
        self._previous: dict[int, Any] = {}
        # Asked now, since a closed terminal is no terminal.
        self._terminals = [handle for handle in (0, 1, 2) if os.isatty(handle)]

    def __enter__(self) -> StopSignals:
        StopSignals.active = self
        for number in _SIGNALS:
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._previous[number] = signal.signal(number, self._record)
            except ValueError:  # only the main thread can set handlers; in another one, its owner handles signals
                break
        return self

    def report(self, folder: Path, step: int, log: Callable[[str], Any]) -> None:
        """As `report_stop`, of the recorded signals."""
        report_stop(folder, step, self.received, log)

    def _record(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.received and not (self._launcher and now - self._first < COPY_SECONDS):
            # Not sys.exit: handlers and a collective in progress could block the exit.
            os._exit(128 + number)
        if not self.received:
            self._first = now
            self.received.append(number)
        if number == getattr(signal, "SIGHUP", None):
            self._detach_from_terminals()
        # The step waits for its batch, and a worker process that was stopped would never make it.
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                with suppress(ProcessLookupError):  # it may end meanwhile
                    os.kill(worker.pid, signal.SIGCONT)

    def _detach_from_terminals(self) -> None:
        """Send the output to nowhere: writing to a closed terminal would raise before the checkpoint."""
        null = os.open(os.devnull, os.O_RDWR)
        for handle in self._terminals:
            os.dup2(null, handle)
        os.close(null)

    def __exit__(self, *exception: object) -> None:
        StopSignals.active = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def report_stop(folder: Path, step: int, received: list[int], log: Callable[[str], Any]) -> None:
    """Write the file `stopped` of a run folder, after the checkpoint of a step, and log that."""
    replace_file(folder / STOPPED_FILE, json.dumps({"step": step, "signals": received}) + "\n")
    log(f"stopped by a signal after step {step}; --resume continues")


def stop_outside_loop(report: Callable[[list[int]], Any]) -> Callable[[], None]:
    """Let SIGTERM and SIGHUP end this process at once with the status `STOPPED`, until `StopSignals` or the undo.

    Before the first step and after the last one there is nothing to save: `--resume` makes the rest again. Ctrl-C
    raises KeyboardInterrupt, as in any program. A process of multiprocessing raises SystemExit instead, which a pool
    passes on to its parent: one that ends at once is for the parent one that was killed.

    Args:
        report: called with the number of the signal, such as to write the file `stopped`.

    Returns:
        A function that restores what was before.
    """
    process: int | None = os.getpid()
    previous: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> Any:
        if os.getpid() != process:  # undone inside of `StopSignals`, or a fork: as if this function had not been called
            if callable(before := previous.get(number)):
                return before(number, frame)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return None
        try:
            report([number])
        finally:
            if multiprocessing.parent_process() is None:  # not sys.exit, which a finalizer or a library could catch
                os._exit(STOPPED)
            raise SystemExit(STOPPED)

    def undo() -> None:
        nonlocal process
        process = None
        for number, handler in previous.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)

    for number in _SIGNALS:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:
            try:
                previous[number] = signal.signal(number, stop)
            except ValueError:  # only the main thread can set handlers; in another one, its owner handles signals
                break
    return undo


def find_launcher() -> int | None:
    """The process number of the launcher (torchrun, accelerate launch) that started this process, or None."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # a system without /proc
        return parent if "TORCHELASTIC_RUN_ID" in os.environ else None
    return parent if _is_launcher(words) else None


def _is_launcher(words: list[str]) -> bool:
    """Whether a command line is that of a launcher."""
    return bool(_LAUNCHERS & {Path(word).name for word in words})


def end_with_launcher() -> int | None:
    """End this process if its launcher is killed: after the step and a checkpoint, or else after some seconds.

    Otherwise the ranks would go on without a supervisor, and hold devices and the run folder.

    Returns:
        The process number of the launcher, or None.
    """
    launcher = find_launcher()
    if launcher is not None:
        _watch_once(os.getpid(), launcher)
    return launcher


@cache
def _watch_once(process: int, launcher: int) -> None:
    """Start the watch of the launcher, once in a process however many runs it has; a fork starts its own."""
    threading.Thread(target=_watch, args=(launcher,), name="launcher watch", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_SECONDS)
    signals = StopSignals.active
    if signals is None:  # not in the loop of steps: nothing to save
        os.kill(os.getpid(), signal.SIGTERM)
    elif not signals.received:
        signals.received.append(signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    if signals is None or not signals.finishing:
        os._exit(128 + signal.SIGTERM)
