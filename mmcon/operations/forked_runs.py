"""Trainings of fault injection in forks of one program, which save the time of imports."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmcon.operations.fault_injection_job import STEPS, Job, train


class RecoveryFailed(AssertionError):
    """A training job did not recover from a fault as it should."""


def check(holds: bool, message: str) -> None:
    """Raise RecoveryFailed if a condition does not hold."""
    if not holds:
        raise RecoveryFailed(message)


def start_forked(
    folder: Path,
    job: Job,
    *,
    before: Callable[[], Any] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> int:
    """Train in a fork with a process group of its own, and return its process number.

    Args:
        folder: the run folder; `output.txt` and `trace.0.json` are written beside it.
        job: the settings.
        before: called in the fork, before the training.
        after_step: called in the fork with the number of each finished step, before its checkpoint.
    """
    trace, output = _beside(folder)
    trace.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        with output.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        if before is not None:
            before()
        train(folder, job, after_step=after_step, trace=folder.with_name(f"{folder.name}.trace.json"))
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish_forked(folder: Path, child: int) -> tuple[int, list[dict[str, Any]]]:
    """Wait for a training; return its exit status (the negated signal number if it was killed) and the trace."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    trace, _ = _beside(folder)
    return status, json.loads(trace.read_text()) if trace.exists() else []


def run_forked(
    folder: Path,
    job: Job,
    *,
    before: Callable[[], Any] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Train in a fork and wait for it; see `start_forked` and `finish_forked`."""
    return finish_forked(folder, start_forked(folder, job, before=before, after_step=after_step))


def run_whole(folder: Path, job: Job | None = None) -> list[dict[str, Any]]:
    """The trace of a training without a fault, in the subfolder `whole`.

    Raises:
        RecoveryFailed: it did not make all steps.
    """
    status, trace = run_forked(folder / "whole", job or Job())
    check(status == 0 and len(trace) == STEPS, f"the run without a fault ended with {status} after {len(trace)} steps")
    return trace


def output_of(folder: Path) -> str:
    """What the trainings in a folder have printed."""
    return _beside(folder)[1].read_text()


def signal_at(number: int, at: int) -> Callable[[int], None]:
    """A function for `after_step` that sends its own process a signal after one step."""
    return lambda step: os.kill(os.getpid(), number) if step == at else None


def signal_group_at(number: int, at: int) -> Callable[[int], None]:
    """A function for `after_step` that sends a signal to its process group, workers included, after one step."""
    return lambda step: os.killpg(os.getpgrp(), number) if step == at else None


def kill(child: int) -> None:
    """Kill a training and wait for it."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f"{folder.name}.trace.0.json"), folder.with_name(f"{folder.name}.output.txt")
