"""Checkpoints as transactions: a checkpoint is there whole, or it is not there.

A checkpoint is written into a folder beside its place, every file is flushed to the disk, a manifest with sizes and
hashes is written last, and the folder is renamed. A torn checkpoint (a crash in the middle, a full disk, a bad sector)
fails its manifest and is passed over for the one before it.
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
        folder: where they are; made when the first is written.
        keep: how many of the newest stay; the best one (by `score`) stays besides.
    """

    folder: Path
    keep: int = 2

    def save(self, step: int, state: Mapping[str, Any], *, score: float | None = None) -> Path:
        """Write the state of a step, then drop what is older than the newest `keep`.

        Args:
            step: the number of finished steps.
            state: nested dicts of tensors and plain values.
            score: a figure of merit by which the best checkpoint is kept, higher being better.

        Raises:
            CheckpointError: the disk refused; earlier checkpoints are untouched.
        """
        place = self.folder / f"step-{step:09d}"
        beside = self.folder / f".{place.name}.{os.getpid()}"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            _write(beside / "state.pt", lambda file: torch.save(dict(state), file))
            manifest = {"step": step, "score": score, "files": {"state.pt": _fingerprint(beside / "state.pt")}}
            _write(beside / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
            _sync_folder(beside)
            if place.exists():
                shutil.rmtree(place)
            beside.rename(place)
            _sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {place}",
                expected="room on the disk and the right to write",
                got=f"{type(error).__name__}: {error}",
                fix="make room, or choose another --output-dir; the checkpoints before this one are whole",
            ) from error
        self._retire()
        return place

    def newest(self, *, before: int | None = None) -> Path | None:
        """The newest checkpoint that is whole (of those before a step, if given), or None where there is none."""
        places = [place for place in self.all() if before is None or int(place.name.removeprefix("step-")) < before]
        return next((place for place in reversed(places) if not faults(place)), None)

    def all(self) -> list[Path]:
        """Every finished checkpoint, oldest first, whole or torn."""
        return sorted(self.folder.glob("step-*"))

    def best(self) -> Path | None:
        """The whole checkpoint of the highest score, or None where none has one."""
        scored = [(score, place) for place in self.all() if (score := _score(place)) is not None]
        return max(scored)[1] if scored else None

    def _retire(self) -> None:
        places = self.all()
        kept = {*places[-self.keep :], self.best()}
        for place in places:
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def load(place: Path) -> dict[str, Any]:
    """Read a checkpoint's state onto the CPU.

    Raises:
        CheckpointError: the checkpoint is torn; the message names the file and what is wrong with it.
    """
    wrong = faults(place)
    if wrong:
        raise CheckpointError(
            f"checkpoint {place}",
            expected="files as its manifest lists them",
            got="; ".join(wrong),
            fix="resume from the one before it, which --resume does by itself",
        )
    return torch.load(place / "state.pt", map_location="cpu", weights_only=True)


def faults(place: Path) -> list[str]:
    """What is wrong with a checkpoint: nothing, where it is whole."""
    try:
        manifest = json.loads((place / MANIFEST).read_text())
        listed = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__})"]
    return [f"{name} is missing or differs" for name, was in listed.items() if not _matches(place / name, was)]


def _matches(path: Path, was: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == was["bytes"] and _fingerprint(path) == dict(was)


def _score(place: Path) -> float | None:
    try:
        return json.loads((place / MANIFEST).read_text())["score"]
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, write: Any) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
