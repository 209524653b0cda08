"""What a run writes down as it goes: metrics.jsonl, one line a logged step."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Journal:
    """The log of a run, as lines of JSON.

    Attributes:
        path: the file; made by the first line.
    """

    path: Path

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Add a line and return what it holds, tensors as numbers."""
        line = {"step": step, **{name: float(v) if isinstance(v, Tensor) else v for name, v in values.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def lines(self) -> list[dict[str, Any]]:
        """The lines so far; one that was cut off by a crash is passed over."""
        if not self.path.exists():
            return []
        return [line for text in self.path.read_text().splitlines() if (line := _parsed(text)) is not None]

    def cut(self, after: int) -> None:
        """Drop the lines of steps that will be done again, so that the log reads as if nothing had stopped the run."""
        kept = [line for line in self.lines() if line["step"] <= after and after > 0]
        if kept or self.path.exists():
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None


class Clock:
    """Where the time of the steps since the last log line went.

    On a GPU work is queued, so its parts are measured by events in the queue, of the last step alone; they are read
    where a line is written, which waits for the device anyway.

    Attributes:
        waiting: seconds that the loop waited for data that workers or a disk were to bring.
        views: seconds in which this process made views itself.
        total: seconds in all.
        rows: rows of data that were used.
    """

    PARTS = ("forward", "backward", "optimizer")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._since = time.perf_counter()
        self._start()

    def _start(self) -> None:
        self.waiting = self.views = self.total = 0.0
        self.rows = 0
        self._spent: dict[str, float] = dict.fromkeys(self.PARTS, 0.0)
        self._last: Any = None

    def timed(self, loader: Iterable[T]) -> Iterator[T]:
        """The items of a loader, with the time that it took to get each and to use it.

        Args:
            loader: may count `seconds_in_views`.
        """
        stream = iter(loader)
        while True:
            asked, made = time.perf_counter(), getattr(loader, "seconds_in_views", 0.0)
            self._since = asked
            try:
                item = next(stream)
            except StopIteration:
                return
            views = getattr(loader, "seconds_in_views", 0.0) - made
            self.views += views
            self.waiting += time.perf_counter() - asked - views
            self.mark(None)
            yield item
            self.total += time.perf_counter() - self._since

    def mark(self, part: str | None) -> None:
        """A part of a step ends here; None: the first begins."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._last = [event] if part is None else [*(self._last or ()), event]
            return
        now = time.perf_counter()
        if part is not None and self._last is not None:
            self._spent[part] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Rows a second, and the shares of time that went by waiting and in the parts of a step; starts anew."""
        now = time.perf_counter()
        total = max(self.total + now - self._since, 1e-9)  # the step that is under way counts too
        shares = {name: seconds / total for name, seconds in self._spent.items()}
        if self.device.type == "cuda":
            shares = self._of_last_step(1 - (self.waiting + self.views) / total)
        shares = {"waiting_for_data": self.waiting / total, "views": self.views / total, **shares}
        figures = {"views_per_second": self.rows / total, **shares}
        self._start()
        self._since = now
        return figures

    def _of_last_step(self, rest: float) -> dict[str, float]:
        """The time that was not waited, in the proportions of the last step's queue."""
        if self._last is None or len(self._last) != len(self.PARTS) + 1:
            return {}
        self._last[-1].synchronize()
        spent = [a.elapsed_time(b) for a, b in itertools.pairwise(self._last)]
        return {name: rest * of / max(sum(spent), 1e-9) for name, of in zip(self.PARTS, spent, strict=True)}
