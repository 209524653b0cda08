"""Fault injection: a small training job is killed at any point, and must resume with identical steps.

`mmcon doctor --chaos` runs all of `FAULTS` on the user's machine, and the tests run the same functions. Every fault
runs in a program of its own (`python -m mmcon.operations.fault_injection`), which forks after imports, to save import
time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import ConfigError
from mmcon.operations.fault_injection_job import CHECKPOINT_EVERY, STEPS, Job, images, train
from mmcon.operations.folder_faults import FOLDER_FAULTS
from mmcon.operations.forked_runs import RecoveryFailed, check, output_of, run_forked, run_whole, signal_at
from mmcon.registry import load_plugins
from mmcon.training import checkpoint
from mmcon.training.checkpoint import Checkpoints
from mmcon.training.run import Run
from mmcon.training.run_lock import RunLock
from mmcon.training.signals import STOPPED, STOPPED_FILE

#: The time within which the other ranks must end after one is killed.
LONGEST_WAIT_SECONDS = 60
#: The time within which a fault and its recovery end, on a busy machine too; alone on two cores, all take as long.
LONGEST_FAULT_SECONDS = 600.0


# --- in the program: forked trainings --------------------------------------------------------------------------------


def killed_at_every_step(folder: Path, job: Job) -> str:
    """Kill at each step, resume, and compare all later steps."""
    whole = run_whole(folder, job)
    for at in range(1, STEPS + 1):
        run = folder / str(at)
        status, before = run_forked(run, job, after_step=signal_at(signal.SIGKILL, at))
        check(status == -signal.SIGKILL and before == whole[:at], f"killed at {at}: {status}")
        status, rest = run_forked(run, replace(job, resume=True))
        first = (at - 1) // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        check(status == 0 and rest == whole[first:], f"killed at {at}: the resumed steps differ")
    return f"killed at each of {STEPS} steps, resumed with identical bits, {job.workers} workers"


def killed_in_a_checkpoint(folder: Path) -> str:
    """Kill while a checkpoint is written: in the state, in the manifest, after each, and before the rename."""
    whole = run_whole(folder)
    write = checkpoint.write_through
    for name in (checkpoint.MANIFEST, "state.pt"):
        for finished in (False, True):

            def killing_write(path: Path, content: Any, name: str = name, finished: bool = finished) -> None:
                if path.parent.name.startswith(".step-000000008") and path.name == name:
                    write(path, content if finished else lambda file: file.write(b"half"))
                    os.kill(os.getpid(), signal.SIGKILL)
                write(path, content)

            run = folder / f"{name}-{finished}"
            checkpoint.write_through = killing_write
            status, _ = run_forked(run, Job())
            checkpoint.write_through = write
            check(status == -signal.SIGKILL, f"killed in {name}: {status}")
            resumed = run_forked(run, Job(resume=True))
            check(resumed == (0, whole[CHECKPOINT_EVERY:]), f"killed in {name}: the resumed steps differ")
    return "killed at four points of the writing of a checkpoint; the previous checkpoint was used"


def stopped_by_signal(folder: Path) -> str:
    """Send SIGTERM and SIGINT after a step between two checkpoints."""
    whole = run_whole(folder)
    for number in (signal.SIGTERM, signal.SIGINT):
        run = folder / str(int(number))
        status, _ = run_forked(run, Job(), after_step=signal_at(number, 5))
        check(status == STOPPED, f"exit status {status}, not {STOPPED}")
        check(run_forked(run, Job(resume=True)) == (0, whole[5:]), "steps were lost")
    return f"SIGTERM and SIGINT: status {STOPPED}, no step lost"


def worker_killed(folder: Path) -> str:
    """Kill the worker process that decodes a certain sample."""
    whole = run_whole(folder)
    sample = whole[2]["samples"][5]
    status, steps = run_forked(folder / "run", Job(workers=2, fatal_sample=sample))
    output = output_of(folder / "run")
    check(status == 0 and f"sample={sample}," in output and "ended the worker process" in output, output[-2000:])
    for expected, step in zip(whole, steps, strict=True):
        pairs = zip(expected["samples"], expected["rows"], strict=True)
        others = [pair for pair in pairs if pair[0] != sample]
        check(others == [*zip(step["samples"], step["rows"], strict=True)], "the views of other samples differ")
    status, _ = run_forked(folder / "alone", Job(fatal_sample=sample))
    check(status == -signal.SIGKILL, f"without workers the run ended with {status}")
    return "a sample killed a worker process; it was named and left out, the views of all others have identical bits"


PROGRAMS: dict[str, Callable[[Path], str]] = {
    "every-step": lambda folder: killed_at_every_step(folder, Job()),
    "every-step-workers": lambda folder: killed_at_every_step(folder, Job(workers=2)),
    "every-step-stateful": lambda folder: killed_at_every_step(folder, Job(stateful=True)),
    "torn-write": killed_in_a_checkpoint,
    "signals": stopped_by_signal,
    "worker-dies": worker_killed,
    **FOLDER_FAULTS,
}


# --- from outside: programs of one or of several ranks ---------------------------------------------------------------


def run_program(
    folder: Path, *words: Any, world_size: int = 1, timeout: float = LONGEST_FAULT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run this module as a program, with torch's launcher if there are several ranks.

    Raises:
        RecoveryFailed: the program does not end in time.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    command = [sys.executable, *(launcher if world_size > 1 else []), "-m", __name__, str(folder), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired as error:
        raise RecoveryFailed(f"no end within {timeout:g} s, and no recovery") from error


def in_program(name: str) -> Callable[[Path], str]:
    """The fault of this name, run in a program of its own."""

    def fault(folder: Path) -> str:
        done = run_program(folder, "--fault", name)
        check(done.returncode == 0, done.stderr[-2000:])
        return done.stdout.strip().splitlines()[-1]

    return fault


def world_size_changed(folder: Path) -> str:
    """Save on two ranks and resume on one, and the reverse."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for name, world_sizes in {"1": [1], "2": [2], "1 to 2": [1, 2], "2 to 1": [2, 1]}.items():
        run = folder / name.replace(" ", "-")
        for number, world_size in enumerate(world_sizes, start=1):
            more = ["--max-steps", 5] if number < len(world_sizes) else []
            done = run_program(run, "--train", "--resume", *more, world_size=world_size)
            check(done.returncode == 0, f"{name}: {done.stderr[-2000:]}")
            traces.setdefault(name, []).extend(_merged_trace(run, world_size))
    worst = 0.0
    for name, lines in traces.items():
        for line, alone in zip(lines, traces["1"], strict=True):
            check(line["views"] == alone["views"], f"{name}: other samples or views at step {line['step']}")
            worst = max(worst, abs(line["loss"] / alone["loss"] - 1))
    check(worst < 1e-10, f"losses differ by {worst:.1e}")
    return f"1 -> 2 and 2 -> 1 ranks: the same samples and views, losses within {worst:.0e} (float64)"


def _merged_trace(folder: Path, world_size: int) -> list[dict[str, Any]]:
    """The steps of all ranks: the loss, and the sorted hashes of the views of every sample."""
    traces = [json.loads((folder / f"trace.{rank}.json").read_text()) for rank in range(world_size)]
    return [
        {
            "step": lines[0]["step"],
            "loss": lines[0]["loss"],
            "views": sorted(pair for line in lines for pair in zip(line["samples"], line["rows"], strict=True)),
        }
        for lines in zip(*traces, strict=True)
    ]


def rank_killed(folder: Path) -> str:
    """Kill one of two ranks; the other must end instead of waiting for it."""
    began = time.monotonic()
    done = run_program(folder, "--train", "--kill-rank-1-at", 5, world_size=2)
    seconds = time.monotonic() - began
    check(done.returncode != 0 and seconds < LONGEST_WAIT_SECONDS, f"status {done.returncode} after {seconds:.0f} s")
    resumed = run_program(folder, "--train", "--resume", world_size=2)
    check(resumed.returncode == 0 and "from step-000000004" in resumed.stdout, resumed.stderr[-2000:])
    return f"one of two ranks was killed: both ended within {seconds:.0f} s, imports included, and resumed"


def launcher_signaled(folder: Path) -> str:
    """Send SIGTERM to the launcher, to its ranks and to their workers, as a cluster does; the launcher passes it on."""
    done = run_program(folder, "--train", "--terminate-all-at", 5, world_size=2)
    check(done.returncode != 0 and (folder / STOPPED_FILE).exists(), f"{done.returncode}: {done.stderr[-2000:]}")
    resumed = run_program(folder, "--train", "--resume", world_size=2)
    check(resumed.returncode == 0 and "from step-000000005" in resumed.stdout, resumed.stderr[-2000:])
    check(not (folder / STOPPED_FILE).exists(), "the file of the stop outlived the next start")
    return "SIGTERM to the launcher, two ranks and their workers: no step lost, `stopped` written, resumed"


def launcher_killed(folder: Path) -> str:
    """Kill the launcher of two ranks, which would train for minutes."""
    began = time.monotonic()
    done = run_program(folder, "--train", "--kill-launcher-at", 5, world_size=2)
    lock = None
    while lock is None and time.monotonic() - began < 2 * LONGEST_WAIT_SECONDS:
        time.sleep(0.2)
        with suppress(ConfigError):
            lock = RunLock(folder)
    check(lock is not None and done.returncode == -signal.SIGKILL, f"status {done.returncode}; the ranks go on")
    check((folder / STOPPED_FILE).exists(), done.stdout[-2000:])
    step = json.loads((folder / STOPPED_FILE).read_text())["step"]
    newest = Checkpoints(folder / "checkpoints").newest()
    check(newest is not None and newest.name == f"step-{step:09d}" and step < STEPS, f"{newest}, stopped at {step}")
    return f"the launcher was killed: its ranks wrote a checkpoint after step {step} and ended"


#: By name: a function that injects a fault in an empty folder, and returns how the run recovered.
FAULTS: dict[str, Callable[[Path], str]] = {
    **{name: in_program(name) for name in PROGRAMS},
    "process-dies": rank_killed,
    "launcher-signaled": launcher_signaled,
    "launcher-killed": launcher_killed,
    "elastic": world_size_changed,
}


def main() -> None:
    """Run a fault of `PROGRAMS`, or train as one of several ranks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fault", choices=list(PROGRAMS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--kill-rank-1-at", type=int, default=0, help="rank 1 is killed after this step")
    parser.add_argument("--terminate-all-at", type=int, default=0, help="ranks, workers and launcher get SIGTERM")
    parser.add_argument("--kill-launcher-at", type=int, default=0, help="the launcher is killed; steps take long then")
    options = parser.parse_args()
    if options.fault:
        # Imports and decoding that every fork would repeat, with one thread: a fork loses the threads of its parent.
        load_plugins()
        Run(options.folder / "imports", cpu=True).close()
        torch.set_num_threads(1)
        images()
        print(PROGRAMS[options.fault](options.folder))
        return
    train(
        options.folder,
        Job(resume=options.resume, max_steps=options.max_steps, dropout=0.0, workers=int(options.terminate_all_at > 0)),
        after_step=lambda step: _act(options, step),
        trace=options.folder / "trace",
    )


def _act(options: argparse.Namespace, step: int) -> None:
    rank, launcher = os.environ.get("RANK"), os.getppid()
    if step == options.kill_rank_1_at and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if step == options.terminate_all_at:
        for process in [process.pid for process in multiprocessing.active_children()]:
            os.kill(process or 0, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        if rank == "0":
            os.kill(launcher, signal.SIGTERM)
    if step == options.kill_launcher_at and rank == "0":
        os.kill(launcher, signal.SIGKILL)
    if options.kill_launcher_at and step >= options.kill_launcher_at:
        time.sleep(1.5)


if __name__ == "__main__":
    main()
