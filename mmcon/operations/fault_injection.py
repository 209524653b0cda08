"""Faults made on purpose: a small real training is killed, starved and split, and must end as if nothing had happened.

`mmcon doctor --chaos` runs all of `FAULTS` on the user's machine, and the tests run the same functions. Every fault
works in a program of its own (`python -m mmcon.operations.fault_injection`), which forks before it computes anything,
so that a training costs its steps and not its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmcon.operations.fault_injection_job import EVERY, STEPS, train
from mmcon.registry import load_plugins
from mmcon.training import checkpoint
from mmcon.training.run import Run
from mmcon.training.signals import STOPPED

#: How soon the other processes end when one has died.
MINUTE = 60


class Survived(AssertionError):
    """What a fault did that it must not do."""


# --- in the program: forked trainings --------------------------------------------------------------------------------


def forked(folder: Path, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """Train in a fork; its exit status (minus the signal's number, if one ended it), and its trace."""
    trace = folder / "trace"
    file = folder / "trace.0.json"
    file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (folder / "output.txt").open("a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            torch.set_num_threads(1)
            train(folder, trace=trace, **options)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(file.read_text()) if file.exists() else []


def kills(number: int, at: int) -> Callable[[int], None]:
    """Send this process a signal after a step."""
    return lambda step: os.kill(os.getpid(), number) if step == at else None


def must(holds: bool, told: str) -> None:
    """Raise where a promise is broken."""
    if not holds:
        raise Survived(told)


def every_step(folder: Path, *, workers: int, stateful: bool) -> str:
    """Kill at each step, resume, and compare all that followed."""
    options = {"workers": workers, "stateful": stateful}
    status, whole = forked(folder / "whole", **options)
    must(status == 0 and len(whole) == STEPS, f"the run itself ended with {status}")
    for at in range(1, STEPS + 1):
        place = folder / str(at)
        status, before = forked(place, after=kills(signal.SIGKILL, at), **options)
        must(status == -signal.SIGKILL and before == whole[:at], f"killed at {at}: {status}")
        status, rest = forked(place, resume=True, **options)
        must(status == 0 and rest == whole[(at - 1) // EVERY * EVERY :], f"killed at {at}: other steps follow")
    return f"killed at each of {STEPS} steps, resumed bit by bit, {workers} workers"


def torn_write(folder: Path) -> str:
    """Kill within the writing of a checkpoint: at the state, at the manifest, and before the rename."""
    _, whole = forked(folder / "whole")
    write = checkpoint._write
    for name in (checkpoint.MANIFEST, "state.pt"):
        for finished in (False, True):

            def dying(path: Path, content: Any, name: str = name, finished: bool = finished) -> None:
                if path.parent.name.startswith(".step-000000008") and path.name == name:
                    write(path, content if finished else lambda file: file.write(b"half"))
                    os.kill(os.getpid(), signal.SIGKILL)
                write(path, content)

            place = folder / f"{name}-{finished}"
            checkpoint._write = dying
            status, _ = forked(place)
            checkpoint._write = write
            must(status == -signal.SIGKILL, f"within {name}: {status}")
            must(forked(place, resume=True) == (0, whole[EVERY:]), f"within {name}: other steps follow")
    return "killed at four points of a checkpoint's writing; the one before was used"


def terminated(folder: Path) -> str:
    """SIGTERM and SIGINT after a step between checkpoints."""
    _, whole = forked(folder / "whole")
    for number in (signal.SIGTERM, signal.SIGINT):
        place = folder / str(int(number))
        status, _ = forked(place, after=kills(number, 5))
        must(status == STOPPED, f"exit status {status}, not {STOPPED}")
        must(forked(place, resume=True) == (0, whole[5:]), "steps were lost")
    return f"SIGTERM and SIGINT: status {STOPPED}, no step lost"


def worker_dies(folder: Path) -> str:
    """A sample that ends the worker process that decodes it."""
    _, whole = forked(folder / "whole")
    sample = whole[2]["samples"][5]
    status, _ = forked(folder / "run", workers=2, fatal=sample)
    told = (folder / "run" / "output.txt").read_text()
    must(status == 1 and f"sample={sample}," in told and "worker process" in told, told[-2000:])
    return "a worker died of a sample, which the error names"


PROGRAMS: dict[str, Callable[[Path], str]] = {
    "every-step": lambda folder: every_step(folder, workers=0, stateful=False),
    "every-step-workers": lambda folder: every_step(folder, workers=2, stateful=False),
    "every-step-stateful": lambda folder: every_step(folder, workers=0, stateful=True),
    "torn-write": torn_write,
    "signals": terminated,
    "worker-dies": worker_dies,
}


# --- from outside: the programs, alone and several together ----------------------------------------------------------


def start(folder: Path, *words: Any, world_size: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the program, by torch's launcher if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    command = [sys.executable, *(launcher if world_size > 1 else []), "-m", __name__, str(folder), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def forks(name: str) -> Callable[[Path], str]:
    """A fault that a program of its own goes through."""

    def fault(folder: Path) -> str:
        done = start(folder, "--fault", name)
        must(done.returncode == 0, done.stderr[-2000:])
        return done.stdout.strip().splitlines()[-1]

    return fault


def elastic(folder: Path) -> str:
    """Save on two processes and go on with one, and the other way round."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for name, lives in {"1": [1], "2": [2], "1 to 2": [1, 2], "2 to 1": [2, 1]}.items():
        place = folder / name.replace(" ", "-")
        for life, world_size in enumerate(lives):
            more = ["--max-steps", 5] if life + 1 < len(lives) else []
            done = start(place, "--train", "--resume", *more, world_size=world_size)
            must(done.returncode == 0, f"{name}: {done.stderr[-2000:]}")
            traces.setdefault(name, []).extend(_together(place, world_size))
    worst = 0.0
    for name, lines in traces.items():
        for line, alone in zip(lines, traces["1"], strict=True):
            must(line["views"] == alone["views"], f"{name}: other samples or views at step {line['step']}")
            worst = max(worst, abs(line["loss"] / alone["loss"] - 1))
    must(worst < 1e-10, f"losses differ by {worst:.1e}")
    return f"1 -> 2 and 2 -> 1 processes: the same samples and views, losses within {worst:.0e} (float64)"


def _together(folder: Path, world_size: int) -> list[dict[str, Any]]:
    """The steps of all processes: the loss, and the views of every sample in any order."""
    own = [json.loads((folder / f"trace.{p}.json").read_text()) for p in range(world_size)]
    return [
        {
            "step": lines[0]["step"],
            "loss": lines[0]["loss"],
            "views": sorted(pair for line in lines for pair in zip(line["samples"], line["rows"], strict=True)),
        }
        for lines in zip(*own, strict=True)
    ]


def process_dies(folder: Path) -> str:
    """One of two processes is killed; the other must not wait for it."""
    began = time.monotonic()
    done = start(folder, "--train", "--die", 5, world_size=2)
    seconds = time.monotonic() - began
    must(done.returncode != 0 and seconds < MINUTE, f"status {done.returncode} after {seconds:.0f} s")
    again = start(folder, "--train", "--resume", world_size=2)
    must(again.returncode == 0 and "from step-000000004" in again.stdout, again.stderr[-2000:])
    return f"a process of two was killed: all ended within {seconds:.0f} s, imports included, and resumed"


#: By name, what makes a fault in an empty folder, and tells how the run came through.
FAULTS: dict[str, Callable[[Path], str]] = {
    **{name: forks(name) for name in PROGRAMS},
    "process-dies": process_dies,
    "elastic": elastic,
}


def main() -> None:
    """Go through a fault, or train as one of several processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fault", choices=list(PROGRAMS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--die", type=int, default=0, help="process 1 is killed after this step")
    options = parser.parse_args()
    if options.fault:
        # What every fork would import again; nothing is computed yet, so that no thread is lost in a fork.
        load_plugins()
        Run(options.folder / "imports", cpu=True).close()
        print(PROGRAMS[options.fault](options.folder))
        return
    die = options.die if os.environ.get("RANK") == "1" else 0
    train(
        options.folder,
        resume=options.resume,
        dropout=0.0,
        max_steps=options.max_steps,
        after=kills(signal.SIGKILL, die),
        trace=options.folder / "trace",
    )


if __name__ == "__main__":
    main()
