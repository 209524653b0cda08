"""The run folder: choose one, lock it, check that all ranks share it, and read the checkpoint to resume from."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmcon.distributed.collectives import from_main_rank, gather_objects
from mmcon.errors import CheckpointError, ConfigError, DataError
from mmcon.files import read_yaml, replace_file
from mmcon.training.checkpoint import STATE, Checkpoints, load_checkpoint
from mmcon.training.config import check_changes
from mmcon.training.run_lock import LOCK, RunLock
from mmcon.training.signals import STOPPED_FILE, report_stop, stop_outside_loop

#: How long ranks of other machines wait for the run folder to appear; network file systems show new folders late.
PATIENCE_SECONDS = 30.0


def unused_folder(folder: str | Path, *, resume: bool = False) -> Path:
    """The first of `name`, `name-2`, … that does not exist; with `resume`, the folder itself."""
    folder = Path(folder)
    if resume or not folder.exists():
        return folder
    return next(f for i in range(2, 1_000_000) if not (f := folder.with_name(f"{folder.name}-{i}")).exists())


def restarted_folder(folder: str | Path) -> Path:
    """The folder itself or, if it has checkpoints of which none is valid, the first such of `name-restart`, … ."""
    folder = Path(folder)
    others = (folder.with_name(f"{folder.name}-restart{'' if i == 1 else f'-{i}'}") for i in range(1, 1_000_000))
    return next(f for f in itertools.chain([folder], others) if not Checkpoints(f / "checkpoints").lost())


class OpenedFolder(NamedTuple):
    """A run folder that this run writes to.

    Attributes:
        checkpoint: the name of the checkpoint to resume from, or "".
        state: its state, or None.
        lock: the lock of the main rank; None on others.
        undo_handlers: restores the signal handlers of the main rank; None on others.
    """

    checkpoint: str = ""
    state: dict[str, Any] | None = None
    lock: RunLock | None = None
    undo_handlers: Callable[[], None] | None = None

    def save(self, checkpoints: Checkpoints, step: int, state: Mapping[str, Any], score: float | None) -> None:
        """Write a checkpoint, if the folder is still that of this run."""
        if self.lock is not None:
            self.lock.check()
        checkpoints.save(step, state, score=score)

    def release(self) -> None:
        """Leave the folder to other runs."""
        if self.undo_handlers is not None:
            self.undo_handlers()
        if self.lock is not None:
            self.lock.release()


def open_folder(
    checkpoints: Checkpoints,
    config: Mapping[str, Any],
    *,
    is_main: bool,
    resume: bool,
    force: bool,
    log: Callable[[str], Any],
) -> OpenedFolder:
    """Lock and create the folder of a run, or read the newest valid checkpoint in it. Every rank must call this.

    Args:
        checkpoints: of the run, in its folder.
        config: the configuration; saved as config.yaml, and on resume compared with the saved one.
        is_main: whether this rank writes.
        resume: continue from the newest checkpoint, or start if there is none.
        force: resume even if changed settings alter the steps.
        log: receives messages.

    Raises:
        ConfigError: the folder holds another run, another run is at work in it, settings changed, or some ranks do not
            see the folder.
        CheckpointError: there are checkpoints, and none is valid.
        StorageError: the folder cannot be written to.
    """
    folder, locks = checkpoints.folder.parent, []

    def begin() -> str:
        is_new = not folder.exists()
        locks.append(RunLock(folder, log=log))
        if is_new:
            atexit.register(_remove_unused, folder, os.getpid())
        _remove_unfinished(folder)
        checkpoints.restore_replaced()
        _check_checkpoints(checkpoints, resume)
        newest = checkpoints.newest() if resume else None
        if newest and config:
            _compare_settings(config_file, config, force=force, log=log)
        return newest.name if newest else ""

    config_file = folder / "config.yaml"
    name = from_main_rank(begin)
    newest = checkpoints.folder / name if name else None
    # Gathered before the settings are written: a checkpoint that only some ranks see is found before the first step.
    names = gather_objects(name if newest is None or (newest / STATE).exists() else "")
    if is_main:
        replace_file(config_file, yaml.safe_dump(dict(config), sort_keys=False))
        (folder / STOPPED_FILE).unlink(missing_ok=True)
    gather_objects(None)  # a barrier: from here on the folder exists
    check_shared(folder, gather_objects(_appears(config_file)), names)
    state = load_checkpoint(newest, checked=True) if newest else None
    if not is_main:
        return OpenedFolder(name, state)

    def stopped(received: list[int]) -> None:
        report_stop(folder, checkpoints.last_step(), received, log)

    return OpenedFolder(name, state, locks[0], stop_outside_loop(stopped))


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed runs have left of features and weights that they were writing, which may be large."""
    for name in ("features", "model"):
        for file in (folder / name).glob(".*.safetensors.*"):
            file.unlink(missing_ok=True)


def _check_checkpoints(checkpoints: Checkpoints, resume: bool) -> None:
    """Refuse the folder of another run and one without a valid checkpoint; set damaged ones aside on resume."""
    folder = checkpoints.folder.parent
    if not resume and (checkpoints.all() or checkpoints.lost()):
        raise ConfigError(
            "--output-dir",
            expected="a new folder, or --resume",
            got=f"{folder}, which holds the checkpoints of another run",
            fix="add --resume to go on from the newest, or choose another folder",
        )
    if resume:
        checkpoints.set_aside_damaged()
    if resume and (lost := checkpoints.lost()):
        raise CheckpointError(
            "--resume",
            expected=f"a valid checkpoint in {checkpoints.folder}",
            got="damaged ones only:\n    " + "\n    ".join(lost),
            fix="copy a checkpoint back from a backup; or add --restart, which starts anew in the folder"
            f" {restarted_folder(folder)}, or choose another --output-dir; this one stays as it is",
        )


def _compare_settings(file: Path, config: Mapping[str, Any], *, force: bool, log: Callable[[str], Any]) -> None:
    """Log the settings that changed, and refuse those that change what a step computes."""
    try:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(str(file), expected="the settings of the run", got=str(error)) from error
        before = read_yaml(text, where=str(file)) or {}
        if not isinstance(before, dict):
            raise DataError(str(file), expected="settings by name", got=type(before).__name__)
    except DataError as error:
        if not force:
            raise ConfigError(
                error.where, expected=error.expected, got=error.got, fix="repair the file, or add --force"
            ) from error
        log(f"resume: the settings of the run are unknown, and those of now are taken: {error}")
        return
    for name, (was, now) in check_changes(before, dict(config), force=force).items():
        log(f"resume: {name} was {was!r} and is {now!r}")


def _remove_unused(folder: Path, process: int) -> None:
    """Remove the folder of a run that failed before its first step, and wrote no more than its settings."""
    if os.getpid() == process and folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK, "config.yaml"}:
        shutil.rmtree(folder, ignore_errors=True)


def check_shared(folder: Path, visible: list[bool], checkpoints: list[str]) -> None:
    """Check that all ranks see the same folder, before a long training starts.

    Args:
        folder: the run folder.
        visible: by rank, whether the rank sees the file that the main rank wrote.
        checkpoints: by rank, the newest checkpoint that the rank found, "" for none.

    Raises:
        ConfigError: a rank does not see the folder, or finds another checkpoint in it.
    """
    if all(visible) and len(set(checkpoints)) == 1:
        return
    missing = [rank for rank, sees in enumerate(visible) if not sees]
    found = [f"rank {rank}: {name or 'none'}" for rank, name in enumerate(checkpoints)]
    raise ConfigError(
        "--output-dir",
        expected="a folder that all ranks share, on every machine",
        got=f"{folder}, which ranks {missing} do not see" if missing else f"checkpoints in {folder} by {found}",
        fix="choose a folder on a disk that all machines mount, by the same absolute path",
    )


def _appears(path: Path) -> bool:
    """Whether a file appears within `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        if path.parent.exists():
            os.scandir(path.parent).close()  # makes a network file system refresh its listing
        time.sleep(0.1)
    return path.exists()
