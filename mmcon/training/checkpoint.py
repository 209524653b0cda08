"""Atomic checkpoints: written to a temporary folder, fsynced, then renamed, so each is complete or absent.

A manifest with the sizes and hashes of all files is written last. A damaged checkpoint (a crash, a full disk, a bad
sector) does not match its manifest, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcon.errors import CheckpointError
from mmcon.files import sync_folder, write_through

MANIFEST, STATE = "manifest.json", "state.pt"
#: What the name of a damaged checkpoint begins with, after it was set aside.
DAMAGED = "damaged-"
#: What the name of a checkpoint ends with while a new one of its step takes its place.
REPLACED = ".replaced"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        folder: their folder; the first checkpoint creates it.
        keep: how many of the newest valid ones are kept, besides the best one by `score`.
        log: receives messages.
    """

    folder: Path
    keep: int = 2
    log: Callable[[str], Any] = field(default=print, repr=False, compare=False)
    _checked: dict[Path, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        replaced = temporary.with_name(f"{temporary.name}{REPLACED}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            # Not with its parents: a run folder that was deleted in the run is an error, and not a new folder.
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir()
            write_through(temporary / STATE, lambda file: torch.save(dict(state), file))
            manifest = {"step": step, "score": score, "files": {STATE: _fingerprint(temporary / STATE)}}
            write_through(temporary / MANIFEST, json.dumps(manifest, indent=1))
            sync_folder(temporary)
            if path.exists():  # renamed, since to remove a large one takes seconds, in which a kill would lose both
                path.rename(replaced)
            temporary.rename(path)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self.restore_replaced()
            there = self.folder.parent.exists()
            raise CheckpointError(
                f"checkpoint {path}",
                expected="free space on the disk, and permission to write",
                got=f"{type(error).__name__}: {error}"
                if there
                else f"{self.folder.parent}, which was deleted or moved",
                fix="free space, or choose another --output-dir; earlier checkpoints are intact"
                if there
                else "do not move the folder of a run at work",
            ) from error
        self._checked[path] = _signature(path)
        self._remove_old()
        return path

    def newest(self, *, before: int | None = None) -> Path | None:
        """The newest valid checkpoint (below a step, if given), or None."""
        paths = [path for path in self.all() if before is None or _step(path) < before]
        return next((path for path in reversed(paths) if not self._faults(path)), None)

    def all(self) -> list[Path]:
        """Every finished checkpoint, oldest first, valid or damaged, without those that were set aside."""
        return sorted((path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)), key=_step)

    def last_step(self) -> int:
        """The step of the newest finished checkpoint, valid or damaged; 0 if there is none."""
        return max(map(_step, self.all()), default=0)

    def best(self) -> Path | None:
        """The valid checkpoint with the highest score, or None if no valid checkpoint has one."""
        return next((path for path in self._by_score() if not self._faults(path)), None)

    def lost(self) -> list[str]:
        """The damaged checkpoints with their faults, if there are checkpoints and none is valid; else nothing."""
        paths = [*self.all(), *sorted(self.folder.glob(f"{DAMAGED}*"))]
        return [] if self.newest() else [f"{path.name}: {'; '.join(find_faults(path))}" for path in paths]

    def restore_replaced(self) -> None:
        """Rename checkpoints back that were to be replaced, where the new one of the step is missing: after a kill."""
        for replaced in self.folder.glob(f".step-*{REPLACED}"):
            path = self.folder / replaced.name.split(".")[1]
            if not path.exists():
                with suppress(OSError):  # it stays hidden until the next start
                    replaced.rename(path)

    def set_aside_damaged(self) -> None:
        """Rename damaged checkpoints to `damaged-step-…`, so that they count no longer, and log each."""
        for path in self.all():
            if not (faults := self._faults(path)):
                continue
            names = (f"{DAMAGED}{path.name}{'' if i == 1 else f'-{i}'}" for i in range(1, 1_000_000))
            aside = next(name for name in names if not (self.folder / name).exists())
            path.rename(self.folder / aside)
            self.log(f"checkpoint {path.name} is damaged ({'; '.join(faults)}); it is set aside as {aside}")

    def _faults(self, path: Path) -> list[str]:
        """As `find_faults`; a checkpoint without any that has not changed since is not read again: it may be large."""
        if self._checked.get(path) == (now := _signature(path)):
            return []
        if not (faults := find_faults(path)):
            self._checked[path] = now
        return faults

    def _remove_old(self) -> None:
        self.restore_replaced()
        self.set_aside_damaged()
        paths = self.all()
        kept = {*paths[-self.keep :], *self._by_score()[:1]}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _by_score(self) -> list[Path]:
        """The checkpoints that have a score, best first; of equal scores the newest first."""
        scored = [(score, path) for path in self.all() if (score := _score(path)) is not None]
        return [path for _, path in sorted(scored, reverse=True)]


def load_checkpoint(path: Path, *, checked: bool = False) -> dict[str, Any]:
    """Read the state of a checkpoint onto the CPU.

    Args:
        path: the checkpoint.
        checked: whether its hash was compared before: it may be large, and every rank reads it.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds more than tensors and plain values; the message says which.
    """
    if faults := [] if checked else find_faults(path):
        raise CheckpointError(
            f"checkpoint {path}",
            expected="files as its manifest lists them",
            got="; ".join(faults),
            fix="resume from the one before it, which --resume does",
        )
    try:
        # A pickle could run code; a checkpoint of another source must not.
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise TypeError("no state of a run")
    except Exception as error:  # the reader of another program's files raises errors of any type
        raise CheckpointError(
            f"checkpoint {path}",
            expected="tensors and plain values, as Run.save writes them",
            got=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            fix="use a checkpoint that a run has written; nothing of this one was run",
        ) from error
    return state


def check_readable(where: str, state: Any) -> None:
    """Check that a state can be read again after it was written, before steps are trained that would be lost.

    Args:
        where: what the state is of.
        state: nested dicts, lists and tuples.

    Raises:
        CheckpointError: a value or a key is neither a tensor nor plain; the message has its path.
    """
    if type(state) in (dict, OrderedDict, list, tuple):
        for name, value in state.items() if isinstance(state, dict) else enumerate(state):
            check_readable(f"{where}, key {name!r}", name)
            check_readable(f"{where}.{name}", value)
    elif not isinstance(state, Tensor) and type(state) not in (str, bytes, bool, int, float, type(None)):
        content = io.BytesIO()
        try:
            torch.save(state, content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # any type: of the value's own code too
            raise CheckpointError(
                f"state of {where}",
                expected="tensors and plain values, with which a checkpoint can be read again",
                got=f"{type(state).__module__}.{type(state).__qualname__}",
                fix="let its `state_dict` return tensors, numbers, texts, lists and dicts",
            ) from error


def find_faults(path: Path) -> list[str]:
    """The differences between a checkpoint and its manifest; none if it is valid."""
    try:
        expected = _read_manifest(path)["files"][STATE]
    except (OSError, ValueError, RecursionError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__})"]
    try:
        return [] if _fingerprint(path / STATE, expected["bytes"]) == expected else [f"{STATE} is missing or differs"]
    except OSError:
        return [f"{STATE} is missing or differs"]


def _read_manifest(path: Path) -> dict[str, Any]:
    match json.loads((path / MANIFEST).read_text(encoding="utf-8")):
        case {"files": {"state.pt": {"bytes": int(), "sha256": str()}}} as manifest:
            return manifest
        case _:
            raise ValueError("no size and hash of the state")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _score(path: Path) -> float | None:
    try:
        score = _read_manifest(path).get("score")
    except (OSError, ValueError, RecursionError):
        return None
    return score if isinstance(score, int | float) and math.isfinite(score) else None


def _signature(path: Path) -> tuple[int, ...]:
    """Numbers that change when a file of a checkpoint is written."""
    facts = [(path / name).stat() for name in (STATE, MANIFEST) if (path / name).exists()]
    return tuple(number for fact in facts for number in (fact.st_ino, fact.st_size, fact.st_mtime_ns))


def _fingerprint(path: Path, size: int | None = None) -> dict[str, Any]:
    """Size and hash of a file; a file of another size than the given one is not read."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return {"bytes": actual}
    with path.open("rb") as file:
        return {"bytes": actual, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
