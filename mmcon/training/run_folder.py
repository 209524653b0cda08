"""How a run begins: its folder, new or gone on with, the same for all processes; and the checkpoint it goes on from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmcon.distributed.collectives import gather_objects
from mmcon.errors import ConfigError
from mmcon.training.checkpoint import Checkpoints, load
from mmcon.training.config import check_changes

#: How long processes of other machines look for the run folder; disks over a network show new ones late.
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
    main: bool,
    resume: bool,
    force: bool,
    tell: Callable[[str], Any],
) -> tuple[str, dict[str, Any] | None]:
    """Begin a run folder, or read the newest whole checkpoint in it where one is asked for.

    Args:
        checkpoints: of the run, in its folder.
        config: what was asked for; written down as config.yaml, and on resume compared with what stands there.
        main: whether this process writes.
        resume: go on from the newest checkpoint, or start where there is none.
        force: resume although settings changed that alter the steps.
        tell: prints, on the main process.

    Returns:
        The checkpoint's name and its state; "" and None at the beginning.

    Raises:
        ConfigError: the folder holds another run, settings changed, or not all processes see the folder.
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
    written = folder / "config.yaml"
    if newest and config and written.exists():
        before = yaml.safe_load(written.read_text()) or {}
        for name, (was, now) in check_changes(before, dict(config), force=force).items():
            tell(f"resume: {name} was {was!r} and is {now!r}")
    name = newest.name if newest else ""
    found = gather_objects(name)
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        written.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    gather_objects(None)  # the folder is there from now on
    check_shared(folder, gather_objects(_sees(written)), found)
    return name, load(newest) if newest else None


def check_shared(folder: Path, seen: list[bool], checkpoints: list[str]) -> None:
    """Refuse a folder that is not the same for all processes, before hours go into it.

    Args:
        folder: of the run.
        seen: by process, whether it sees what the main one wrote.
        checkpoints: by process, the newest checkpoint that it found, "" for none.

    Raises:
        ConfigError: a process lacks the folder, or finds another checkpoint in it.
    """
    if all(seen) and len(set(checkpoints)) == 1:
        return
    blind = [rank for rank, sees in enumerate(seen) if not sees]
    found = [f"process {rank}: {name or 'none'}" for rank, name in enumerate(checkpoints)]
    raise ConfigError(
        "--output-dir",
        expected="a folder that all processes share, on every machine",
        got=f"{folder}, which processes {blind} do not see" if blind else f"checkpoints in {folder} by {found}",
        fix="choose a folder on a disk that all machines mount, by the same absolute path",
    )


def _sees(path: Path) -> bool:
    """Whether a file appears within the patience."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() and time.monotonic() < until:
        if path.parent.exists():
            os.scandir(path.parent).close()  # makes a network's disk look again
        time.sleep(0.1)
    return path.exists()
