"""A record of files that were readable, so that the check of a large folder is not repeated at every start.

The record of a folder's split is in `$XDG_CACHE_HOME/mmcon` (by default `~/.cache/mmcon`). A file is not read again
while its path, its size and its time of modification are those of the record. `MMCON_CACHE=off` switches it off.
Unreadable files are never recorded, and neither are files that changed in the seconds before the check, which could
change again unnoticed.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from mmcon.errors import MmconError
from mmcon.files import replace_file
from mmcon.random import name_hash

# Fewer files are read in a second or two.
RECORDED = 1_000
_RECENT_SECONDS = 2
_log = logging.getLogger(__name__)


class CheckedFiles:
    """The files of a folder that passed a check before, and those that pass it now.

    Args:
        check: what was checked, and how; another check has a record of its own.
        paths: the files.
    """

    def __init__(self, check: str, paths: Sequence[str]) -> None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmcon"
        self.file = folder / f"{name_hash(check) & (1 << 64) - 1:016x}.npy"
        self.began = time.time_ns()
        chunks = [paths[start : start + 4096] for start in range(0, len(paths), 4096)]
        with ThreadPoolExecutor(max_workers=16) as pool:
            states = chain.from_iterable(pool.map(lambda chunk: [_state(path) for path in chunk], chunks))
            self.states: Int64[np.ndarray, "n 3"] = np.array(list(states), dtype=np.int64).reshape(-1, 3)
        before = {*map(tuple, self._read().tolist())}
        self.known = [state in before for state in map(tuple, self.states.tolist())]
        self.passed: list[int] = []

    def save(self) -> None:
        """Record the files that were known or passed; a folder that cannot be written to is logged."""
        good = np.array(self.known)
        good[self.passed] = True
        good &= (self.states[:, 1] >= 0) & (self.states[:, 2] < self.began - _RECENT_SECONDS * 10**9)
        content = io.BytesIO()
        np.save(content, self.states[good])
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, content.getvalue())
        except (OSError, MmconError) as error:
            _log.info("the check of files is not recorded: %s", error)

    def _read(self) -> Int64[np.ndarray, "m 3"]:
        if self.file.is_file():
            try:
                rows = np.load(self.file, allow_pickle=False)
                if rows.dtype == np.int64 and rows.ndim == 2 and rows.shape[1] == 3:
                    return rows
                _log.info("%s is no record of checked files, and is written again", self.file)
            except (OSError, ValueError, EOFError) as error:
                _log.info("%s is written again: %s", self.file, error)
        return np.zeros((0, 3), dtype=np.int64)


def checked_files(check: str, paths: Sequence[str]) -> CheckedFiles | None:
    """The record of a check of many files; None for few files, or if it is switched off."""
    off = os.environ.get("MMCON_CACHE", "").lower() in ("off", "0", "no", "false")
    return None if off or len(paths) < RECORDED else CheckedFiles(check, paths)


def _state(path: str) -> tuple[int, int, int]:
    """The hash of the path, the size and the time of modification of a file; a size of -1 if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return name_hash(path), -1, 0
    return name_hash(path), found.st_size, found.st_mtime_ns
