"""A profile of a few early steps by operation, with torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mmcon.files import replace_by, replace_file

#: Steps before the profile, which compile and allocate, and steps in the profile.
SKIPPED, KEPT = 4, 4


class StepProfiler:
    """Profiles a few steps of a run inside a `with` block, and writes `profile.txt` and `profile.json` to its folder.

    The first is a table of operations, the slowest on top. The second opens in chrome://tracing or Perfetto.

    Args:
        folder: the run folder.
        enabled: False makes all methods do nothing.
        log: receives messages.
    """

    def __init__(self, folder: Path, *, enabled: bool, log: Callable[[str], Any] = print) -> None:
        self.folder, self.enabled, self.log = folder, enabled, log
        self._profiler: profile | None = None
        self._steps = 0

    def __enter__(self) -> StepProfiler:
        return self

    def advance(self) -> None:
        """Count a finished step; the profiler starts and stops between steps."""
        self._steps += 1
        if self.enabled and self._steps == SKIPPED:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True)
            self._profiler.start()
        if self._steps == SKIPPED + KEPT:
            self._stop()

    def _stop(self) -> None:
        """Stop the profiler and write the files, if at least one step was profiled."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if self._steps == SKIPPED:
            return
        replace_by(self.folder / "profile.json", lambda file: profiler.export_chrome_trace(str(file)))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=40)
        replace_file(self.folder / "profile.txt", table + "\n")
        kept, path = self._steps - SKIPPED, self.folder / "profile.txt"
        self.log(f"profile of {kept} step(s): {path}, and a trace beside it, profile.json")

    def __exit__(self, *exception: object) -> None:
        self._stop()
        if self.enabled and self._steps <= SKIPPED:
            self.log(f"no profile: the run ended within its first {SKIPPED} steps, which compile and allocate")
