"""How the time of a step divides into waiting for data, views, forward, backward and optimizer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class StepTimer:
    """Measures the steps since the last log line.

    A GPU works asynchronously, so the phases of a step are measured by events in its stream, for the last step alone.
    They are read when a log line is written, which synchronizes with the device anyway.

    Attributes:
        waiting: seconds in which the loop waited for workers or the disk.
        views: seconds in which this process made views itself.
        total: seconds in total.
        rows: rows of data that were used.
    """

    PHASES = ("forward", "backward", "optimizer")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._since = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self.waiting = self.views = self.total = 0.0
        self.rows = 0
        self._seconds: dict[str, float] = dict.fromkeys(self.PHASES, 0.0)
        self._last: Any = None

    def timed(self, loader: Any, items: Iterable[T] | None = None) -> Iterator[T]:
        """Yield the items of a loader, and add up the time to fetch and to use each one.

        Args:
            loader: its attribute `seconds_in_views`, if it has one, is counted as `views`.
            items: its items; by default those of its own iteration.
        """
        stream = iter(loader if items is None else items)
        while True:
            start, views_before = time.perf_counter(), getattr(loader, "seconds_in_views", 0.0)
            self._since = start
            try:
                item = next(stream)
            except StopIteration:
                return
            views = getattr(loader, "seconds_in_views", 0.0) - views_before
            self.views += views
            self.waiting += time.perf_counter() - start - views
            self.mark(None)
            yield item
            self.total += time.perf_counter() - self._since

    def mark(self, phase: str | None) -> None:
        """Record the end of a phase of the step; None: the start of the first."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._last = [event] if phase is None else [*(self._last or ()), event]
            return
        now = time.perf_counter()
        if phase is not None and self._last is not None:
            self._seconds[phase] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Rows per second, and the fractions of the time in waiting, views and phases; then reset."""
        now = time.perf_counter()
        total = max(self.total + now - self._since, 1e-9)  # the current step counts too
        fractions = {name: seconds / total for name, seconds in self._seconds.items()}
        if self.device.type == "cuda":
            fractions = self._last_step_fractions(1 - (self.waiting + self.views) / total)
        fractions = {"waiting_for_data": self.waiting / total, "views": self.views / total, **fractions}
        metrics = {"views_per_second": self.rows / total, **fractions}
        self._reset()
        self._since = now
        return metrics

    def _last_step_fractions(self, rest: float) -> dict[str, float]:
        """The time without waiting, in the proportions of the last step's events."""
        if self._last is None or len(self._last) != len(self.PHASES) + 1:
            return {}
        self._last[-1].synchronize()
        milliseconds = [start.elapsed_time(end) for start, end in itertools.pairwise(self._last)]
        total = max(sum(milliseconds), 1e-9)
        return {name: rest * phase / total for name, phase in zip(self.PHASES, milliseconds, strict=True)}
