"""The run folder: choose an unused one, check that all ranks share it, and read the checkpoint to resume from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmcon.distributed.collectives import gather_objects
from mmcon.errors import ConfigError
from mmcon.training.checkpoint import Checkpoints, load_checkpoint
from mmcon.training.config import check_changes

#: How long ranks of other machines wait for the run folder to appear; network file systems show new folders late.
PATIENCE_SECONDS = 30.0


def unused_folder(folder: str | Path, *, resume: bool = False) -> Path:
    """The first of `name`, `name-2`, … that does not exist; with `resume`, the folder itself."""
    folder = Path(folder)
    if resume or not folder.exists():
        return folder
    return next(f for i in range(2, 1_000_000) if not (f := folder.with_name(f"{folder.name}-{i}")).exists())


def open_folder(
    checkpoints: Checkpoints,
    config: Mapping[str, Any],
    *,
    is_main: bool,
    resume: bool,
    force: bool,
    log: Callable[[str], Any],
) -> tuple[str, dict[str, Any] | None]:
    """Create the folder of a run, or read the newest valid checkpoint in it. Every rank must call this.

    Args:
        checkpoints: of the run, in its folder.
        config: the configuration; saved as config.yaml, and on resume compared with the saved one.
        is_main: whether this rank writes.
        resume: continue from the newest checkpoint, or start if there is none.
        force: resume even if changed settings alter the steps.
        log: receives messages.

    Returns:
        The name and the state of the checkpoint; "" and None for a new run.

    Raises:
        ConfigError: the folder holds another run, settings changed, or some ranks do not see the folder.
    """
    folder = checkpoints.folder.parent
    if not resume and checkpoints.all():
        raise ConfigError(
            "--output-dir",
            expected="a new folder, or --resume",
            got=f"{folder}, which holds the checkpoints of another run",
            fix="add --resume to go on from the newest, or choose another folder",
        )
    newest = checkpoints.newest() if resume else None
    config_file = folder / "config.yaml"
    if newest and config and config_file.exists():
        before = yaml.safe_load(config_file.read_text()) or {}
        for name, (was, now) in check_changes(before, dict(config), force=force).items():
            log(f"resume: {name} was {was!r} and is {now!r}")
    name = newest.name if newest else ""
    # Gathered before any rank writes: a checkpoint that only some ranks see is found before the first step.
    names = gather_objects(name)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        config_file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    gather_objects(None)  # a barrier: from here on the folder exists
    check_shared(folder, gather_objects(_appears(config_file)), names)
    return name, load_checkpoint(newest) if newest else None


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
