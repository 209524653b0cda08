"""Atomic checkpoints: written to a temporary folder, fsynced, then renamed, so each is complete or absent.

A manifest with the sizes and hashes of all files is written last. A damaged checkpoint (a crash, a full disk, a bad
sector) does not match its manifest, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import CheckpointError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        folder: their folder; the first checkpoint creates it.
        keep: how many of the newest are kept, besides the best one by `score`.
    """

    folder: Path
    keep: int = 2

    def save(self, step: int, state: Mapping[str, Any], *, score: float | None = None) -> Path:
        """Write the state of a step, then remove all but the newest `keep` and the best.

        Args:
            step: the number of finished steps.
            state: nested dicts of tensors and plain values.
            score: determines the best checkpoint; higher is better.

        Raises:
            CheckpointError: the checkpoint cannot be written; earlier checkpoints are intact.
        """
        path = self.folder / f"step-{step:09d}"
        temporary = self.folder / f".{path.name}.{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(temporary / "state.pt", lambda file: torch.save(dict(state), file))
            manifest = {"step": step, "score": score, "files": {"state.pt": _fingerprint(temporary / "state.pt")}}
            _write(temporary / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
            _sync_folder(temporary)
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
            _sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {path}",
                expected="free space on the disk, and permission to write",
                got=f"{type(error).__name__}: {error}",
                fix="free space, or choose another --output-dir; earlier checkpoints are intact",
            ) from error
        self._remove_old()
        return path

    def newest(self, *, before: int | None = None) -> Path | None:
        """The newest valid checkpoint (below a step, if given), or None."""
        paths = [path for path in self.all() if before is None or int(path.name.removeprefix("step-")) < before]
        return next((path for path in reversed(paths) if not find_faults(path)), None)

    def all(self) -> list[Path]:
        """Every finished checkpoint, oldest first, valid or damaged."""
        return sorted(self.folder.glob("step-*"))

    def best(self) -> Path | None:
        """The checkpoint with the highest score, or None if no checkpoint has one."""
        scored = [(score, path) for path in self.all() if (score := _score(path)) is not None]
        return max(scored)[1] if scored else None

    def _remove_old(self) -> None:
        paths = self.all()
        kept = {*paths[-self.keep :], self.best()}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint onto the CPU.

    Raises:
        CheckpointError: the checkpoint is damaged; the message lists the files.
    """
    faults = find_faults(path)
    if faults:
        raise CheckpointError(
            f"checkpoint {path}",
            expected="files as its manifest lists them",
            got="; ".join(faults),
            fix="resume from the one before it, which --resume does",
        )
    # A pickle could run code; a checkpoint of another source must not.
    return torch.load(path / "state.pt", map_location="cpu", weights_only=True)


def find_faults(path: Path) -> list[str]:
    """The differences between a checkpoint and its manifest; none if it is valid."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        listed = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__})"]
    return [f"{name} is missing or differs" for name, entry in listed.items() if not _matches(path / name, entry)]


def _matches(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and _fingerprint(path) == dict(entry)


def _score(path: Path) -> float | None:
    try:
        return json.loads((path / MANIFEST).read_text())["score"]
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, write: Any) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is flushed.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
