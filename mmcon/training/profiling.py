"""Where the time of a step goes, operation by operation: a few early steps under torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

#: Steps that are passed over, since they compile and allocate, and steps that are kept.
SKIPPED, KEPT = 4, 4


class Profile:
    """Profiles a few steps of a run inside a `with` block; `profile.txt` and `profile.json` in its folder.

    The first is a table of operations, the longest on top. The second opens in chrome://tracing or Perfetto.

    Args:
        folder: the run folder.
        on: whether anything is done.
        tell: says where the files are.
    """

    def __init__(self, folder: Path, *, on: bool, tell: Callable[[str], Any] = print) -> None:
        self.folder, self.on, self.tell = folder, on, tell
        self._profiler: profile | None = None
        self._steps = 0

    def __enter__(self) -> Profile:
        return self

    def advance(self) -> None:
        """A step is done; the profiler starts and ends between steps."""
        self._steps += 1
        if self.on and self._steps == SKIPPED:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True)
            self._profiler.start()
        if self._steps == SKIPPED + KEPT:
            self._end()

    def _end(self) -> None:
        """Stop, and write what was seen; of a run that ends earlier, what there is."""
        if self._profiler is None:
            return
        done, self._profiler = self._profiler, None
        done.stop()
        if self._steps == SKIPPED:
            return
        done.export_chrome_trace(str(self.folder / "profile.json"))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=40)
        (self.folder / "profile.txt").write_text(table + "\n")
        kept, place = self._steps - SKIPPED, self.folder / "profile.txt"
        self.tell(f"profile of {kept} step(s): {place}, and a trace beside it, profile.json")

    def __exit__(self, *exception: object) -> None:
        self._end()
        if self.on and self._steps <= SKIPPED:
            self.tell(f"no profile: the run ended within its first {SKIPPED} steps, which compile and allocate")
