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
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from mmcon.errors import MmconError
from mmcon.files import replace_file
from mmcon.random import name_hash, stable_ids
from mmcon.sources.file_states import file_states

# Fewer files are read in a second or two.
RECORDED = 1_000
_RECENT_SECONDS = 2
_log = logging.getLogger(__name__)


class CheckedFiles:
    """The files of a folder that passed a check before, and those that pass it now.

    Args:
        check: what was checked, and how; another check has a record of its own.
        folder: the folder.
        names: the paths of the files below it.
    """

    def __init__(self, check: str, folder: str, names: Sequence[str]) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmcon"
        self.file = cache / f"{name_hash(check) & (1 << 64) - 1:016x}.npy"
        self.began = time.time_ns()
        states = file_states(f"{folder}/{name}" for name in names)
        # The hash of the name, the size and the time of modification.
        self.states: Int64[np.ndarray, "n 3"] = np.column_stack([stable_ids(names).numpy(), states])
        self._recorded = self._read()
        self.known: Bool[np.ndarray, " n"] = _are_among(self.states, self._recorded)
        self.passed: list[int] = []

    def save(self) -> None:
        """Record the files that were known or passed; a folder that cannot be written to is logged."""
        good = self.known.copy()
        good[self.passed] = True
        good &= (self.states[:, 1] >= 0) & (self.states[:, 2] < self.began - _RECENT_SECONDS * 10**9)
        if not self.passed and good.sum() == len(self._recorded):
            return
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


def checked_files(check: str, folder: str, names: Sequence[str]) -> CheckedFiles | None:
    """The record of a check of many files; None for few files, or if it is switched off."""
    off = os.environ.get("MMCON_CACHE", "").lower() in ("off", "0", "no", "false")
    return None if off or len(names) < RECORDED else CheckedFiles(check, folder, names)


def _are_among(rows: Int64[np.ndarray, "n 3"], known: Int64[np.ndarray, "m 3"]) -> Bool[np.ndarray, " n"]:
    """Which rows are among the known ones, whose first numbers are all different."""
    if np.array_equal(rows, known):  # nothing changed since: without a search for each of a million
        return np.ones(len(rows), dtype=bool)
    if not len(known):
        return np.zeros(len(rows), dtype=bool)
    known = known[known[:, 0].argsort()]
    place = known[:, 0].searchsorted(rows[:, 0]).clip(max=len(known) - 1)
    return (known[place] == rows).all(1)
