"""Faults of disks, folders and limits: what a run leaves behind them, and how it ends."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcon.operations.fault_injection_job import CHECKPOINT_EVERY, STEPS, Job
from mmcon.operations.forked_runs import (
    check,
    kill,
    output_of,
    run_forked,
    run_whole,
    signal_at,
    signal_group_at,
    start_forked,
)
from mmcon.training.checkpoint import MANIFEST, STATE, Checkpoints
from mmcon.training.logging import REMOVED, MetricsLog
from mmcon.training.signals import STOPPED, STOPPED_FILE

#: Manifests that are no manifests.
MANIFESTS = (
    "",
    "null",
    "[]",
    '{"files": {}}',
    '{"files": null}',
    '{"files": {"state.pt": 3}}',
    "[" * 100_000,
    "{" * 50,
)
#: The time within which a stopped worker process must not hold the end of a run any longer.
LONGEST_END_SECONDS = 10


def group_signaled(folder: Path) -> str:
    """Send each stop signal to the whole process group, as Slurm, Kubernetes and terminals do."""
    whole = run_whole(folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        run = folder / number.name
        status, _ = run_forked(run, Job(workers=2), after_step=signal_group_at(number, 5))
        check(status == STOPPED and (run / STOPPED_FILE).exists(), f"{number.name}: {status}\n{output_of(run)[-1500:]}")
        check(run_forked(run, Job(resume=True)) == (0, whole[5:]), f"{number.name}: steps were lost")
    return f"SIGTERM, SIGINT and SIGHUP to the process group with workers: status {STOPPED}, no step lost"


def worker_stopped(folder: Path) -> str:
    """Stop a worker process (SIGSTOP), then the run."""
    run, began = folder / "run", folder / "began"

    def stop_worker(step: int) -> None:
        if step == 3:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGSTOP)

            def later() -> None:
                began.write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGTERM)

            threading.Timer(1.5, later).start()

    whole = run_whole(folder)
    status, before = run_forked(run, Job(workers=2), after_step=stop_worker)
    seconds = time.time() - float(began.read_text())
    check(status == STOPPED, f"{status}\n{output_of(run)[-1500:]}")
    check(seconds < LONGEST_END_SECONDS, f"the end took {seconds:.0f} s")
    check(run_forked(run, Job(resume=True)) == (0, whole[len(before) :]), "steps were lost")
    return f"a worker was stopped, then the run: it ended within {seconds:.0f} s, no step lost"


def checkpoints_damaged(folder: Path) -> str:
    """Damage the newest checkpoint by odd manifests, then all of them by truncation."""
    run = folder / "whole"
    whole = run_whole(folder)
    checkpoints = Checkpoints(run / "checkpoints", log=lambda text: None)
    newest, good = checkpoints.all()[-1], (checkpoints.all()[-1] / MANIFEST).read_text()
    for text in MANIFESTS:
        (newest / MANIFEST).write_text(text)
        check(checkpoints.newest() == checkpoints.all()[-2], f"a checkpoint with the manifest {text[:30]!r} counts")
    (newest / MANIFEST).write_text(good)
    os.truncate(newest / STATE, 1000)
    status, rest = run_forked(run, Job(resume=True))
    check((status, rest) == (0, whole[STEPS - CHECKPOINT_EVERY :]), "the checkpoint before it was not used")
    for path in checkpoints.all():
        os.truncate(path / STATE, 1000)
    lines = MetricsLog(run / "metrics.jsonl").lines()
    status, _ = run_forked(run, Job(resume=True))
    check(status == 1 and "--restart" in output_of(run), "damaged checkpoints alone were not refused")
    check(MetricsLog(run / "metrics.jsonl").lines() == lines, "the log was shortened")
    check(run_forked(run, Job(resume=True, restart=True)) == (0, whole), "the restart differs")
    check((folder / "whole-restart" / "checkpoints").exists(), "the restart used the damaged folder")
    return f"{len(MANIFESTS)} odd manifests and a truncated state passed over; damaged ones alone refused; restarted"


def folder_in_use(folder: Path) -> str:
    """Start a second run in the folder of a run at work, then kill the first and resume."""
    run = folder / "run"
    whole = run_whole(folder)

    def wait(step: int) -> None:
        if step == 6:
            (folder / "ready").touch()
            time.sleep(600)

    first = start_forked(run, Job(), after_step=wait)
    while not (folder / "ready").exists() and os.waitpid(first, os.WNOHANG) == (0, 0):
        time.sleep(0.05)
    for job in (Job(), Job(resume=True)):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        status, _ = run_forked(run, job)
        check(status == 1 and f"in use by process {first}" in output_of(run), "a second run was not refused")
        check({path: path.read_bytes() for path in before} == before, "a refused run changed the folder")
    kill(first)
    check(run_forked(run, Job(resume=True)) == (0, whole[CHECKPOINT_EVERY:]), "the lock outlived its process")
    kept = [line["step"] for line in MetricsLog(run / REMOVED).lines()]
    check(kept == [5], f"the lines of repeated steps are not beside the log: {kept}")
    return "a second run in the folder was refused, with --resume too; after kill -9 of the first it resumed"


def data_changed(folder: Path) -> str:
    """Resume with a sample less."""
    run = folder / "run"
    run_forked(run, Job(max_steps=5))
    status, _ = run_forked(run, Job(resume=True, left_out=1))
    check(
        status == 1 and "samples instead of" in output_of(run) and "--force" in output_of(run),
        "other data were resumed in silence",
    )
    status, _ = run_forked(run, Job(resume=True, left_out=1, force=True))
    check(status == 0 and "the data changed" in output_of(run), output_of(run)[-1500:])
    return "data with a sample less were refused on resume, and taken with --force"


def disk_full(folder: Path) -> str:
    """Let the system refuse to write more than a part of a checkpoint; afterwards there is space again."""
    run = folder / "run"
    whole = run_whole(folder)

    def fill(step: int) -> None:
        if step == CHECKPOINT_EVERY + 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    status, _ = run_forked(run, Job(), after_step=fill)
    output = output_of(run)
    check(status == 1 and "expected free space on the disk" in output, output[-1500:])
    check(run_forked(run, Job(resume=True)) == (0, whole[CHECKPOINT_EVERY:]), "earlier checkpoints are not intact")
    return "the disk was full in a checkpoint: an error, earlier checkpoints intact, resumed with identical bits"


def folder_gone(folder: Path) -> str:
    """Move the run folder away in a run, and name a folder that cannot be written to."""

    def act(change: Callable[[Path], Any]) -> str:
        run = folder / change.__name__
        status, _ = run_forked(run, Job(), after_step=lambda step: change(run) if step == 5 else None)
        check(status == 1 and not run.exists(), f"{change.__name__}: status {status}")
        return output_of(run)

    def moved(run: Path) -> None:
        run.rename(run.with_name("elsewhere"))

    for change in (shutil.rmtree, moved):
        output = act(change)
        check("deleted or moved" in output and output.count("Fix:") == 1, output[-1500:])
    status, _ = run_forked(folder / "link", Job(), before=lambda: (folder / "link").symlink_to("/proc"))
    check(status == 1 and "can be created and written to" in output_of(folder / "link"), "a read-only folder")
    return "a folder that was deleted, moved or is read-only: one error each"


def few_open_files(folder: Path) -> str:
    """Train with workers under a limit of 64 open files."""
    whole = run_whole(folder)
    limit = 64 + len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 96

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    check(run_forked(folder / "run", Job(workers=2), before=lower) == (0, whole), output_of(folder / "run")[-1500:])
    return f"{limit} open files suffice for two workers, with identical bits"


def signaled_twice(folder: Path) -> str:
    """A second signal ends a run at once; its last checkpoint resumes."""
    whole = run_whole(folder)

    def twice(step: int) -> None:
        if step == 6:
            signal_at(signal.SIGTERM, 6)(step)
            signal_at(signal.SIGTERM, 6)(step)

    status, _ = run_forked(folder / "run", Job(), after_step=twice)
    check(status == 128 + signal.SIGTERM, f"status {status}")
    check(run_forked(folder / "run", Job(resume=True)) == (0, whole[CHECKPOINT_EVERY:]), "the resumed steps differ")
    return f"two signals: status {128 + signal.SIGTERM} at once, resumed from the last checkpoint"


#: By name, functions that inject a fault in an empty folder, in the program of `mmcon.operations.fault_injection`.
FOLDER_FAULTS: dict[str, Callable[[Path], str]] = {
    "signals-to-group": group_signaled,
    "second-signal": signaled_twice,
    "worker-stopped": worker_stopped,
    "damaged-checkpoints": checkpoints_damaged,
    "folder-in-use": folder_in_use,
    "data-changed": data_changed,
    "disk-full": disk_full,
    "folder-gone": folder_gone,
    "few-open-files": few_open_files,
}
