"""What a run writes down as it goes: metrics.jsonl, one line a logged step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

    Attributes:
        waiting: seconds that the loop waited for data.
        total: seconds in all.
        rows: rows of data that were used.
    """

    def __init__(self) -> None:
        self.waiting = self.total = 0.0
        self.rows = 0

    def timed(self, stream: Iterator[T]) -> Iterator[T]:
        """The items of a stream, with the time that it took to get each and to use it."""
        while True:
            asked = time.perf_counter()
            try:
                item = next(stream)
            except StopIteration:
                return
            self.waiting += time.perf_counter() - asked
            yield item
            self.total += time.perf_counter() - asked

    def read(self) -> dict[str, float]:
        """Rows a second and the share of time spent waiting; starts anew."""
        total = max(self.total, 1e-9)
        figures = {"views_per_second": self.rows / total, "waiting_for_data": self.waiting / total}
        self.waiting = self.total = 0.0
        self.rows = 0
        return figures
