"""The progress of a phase (training, features, a fit): a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

#: Seconds over which the time of a step is averaged for the remaining time.
AVERAGED_SECONDS = 60.0


class Progress:
    """Shows how much of a phase is done, and the remaining time by a moving average of the time of a step.

    A phase inside another one, such as the score of a checkpoint, shows nothing.

    Args:
        phase: the name of what is counted.
        total: of the whole phase; None: unknown.
        done: what was finished before.
        epoch_length: steps in an epoch; None: the phase has no epochs.
        enabled: False makes all methods do nothing, as on ranks other than the main one.
        every_seconds: time between two plain lines, without a terminal. A shorter phase has no line, unless it trains.
    """

    _inside: ClassVar[bool] = False

    def __init__(
        self,
        phase: str,
        total: int | None,
        done: int = 0,
        *,
        epoch_length: int | None = None,
        enabled: bool = True,
        every_seconds: float = 10.0,
    ) -> None:
        self.phase, self.total, self.done, self.epoch_length = phase, total, done, epoch_length
        self.enabled = enabled and not Progress._inside
        self.every_seconds = every_seconds
        self._shown_at = self._counted_at = time.perf_counter()
        self._counted_done: int | None = None
        self._seconds = math.nan
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self.enabled:
            return self
        Progress._inside = True
        if sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[details]}"),
            )
            self._task = self._bar.add_task(self.phase, total=self.total, completed=self.done, details="")
            self._bar.start()
        return self

    def advance(
        self, done: int, loss: Float[Tensor, ""] | None = None, timing: Mapping[str, float] | None = None
    ) -> None:
        """Show what is done. The loss is read (which waits for the device) only if something is shown.

        Args:
            done: in total.
            loss: of the last step.
            timing: `views_per_second`, and `views`, the fraction of the time that they take.
        """
        self.done, now = done, time.perf_counter()
        if self._counted_done is None:  # the first step also compiles, and starts workers: none of the others does
            self._counted_at, self._counted_done = now, done
        passed = now - self._shown_at
        is_last = done == self.total and self.epoch_length is not None
        if not self.enabled or (passed < (0.2 if self._bar is not None else self.every_seconds) and not is_last):
            return
        self._average(now - self._counted_at, done - self._counted_done)
        self._shown_at = self._counted_at = now
        self._counted_done = done
        details = self._details(loss, timing or {})
        if self._bar is not None:
            self._bar.update(self._task, completed=done, details=details)
        else:
            of_total = "" if self.total is None else f"/{self.total}"
            print(f"{self.phase} {done}{of_total}  {details}", flush=True)

    def _average(self, passed: float, steps: int) -> None:
        """Update the moving average of the seconds of a step; a longer time since the last update counts more."""
        if steps > 0:
            seconds, share = passed / steps, 1 - math.exp(-passed / AVERAGED_SECONDS)
            self._seconds = seconds if math.isnan(self._seconds) else self._seconds + share * (seconds - self._seconds)

    def _details(self, loss: Float[Tensor, ""] | None, timing: Mapping[str, float]) -> str:
        cells = []
        if self.epoch_length is not None and self.total is not None:
            epochs = -(-self.total // self.epoch_length)
            cells.append(f"epoch {min(-(-self.done // self.epoch_length), epochs)}/{epochs}")
        if loss is not None:
            cells.append(f"loss {float(loss):.4f}")
        if "views_per_second" in timing:
            cells.append(f"{timing['views_per_second']:,.0f} views/s")
        if "views" in timing:
            cells.append(f"{timing['views']:.0%} in views")
        steps = math.inf if self.total is None else self.total - self.done
        seconds = self._seconds * steps if steps else 0.0
        if math.isfinite(seconds):
            cells.append(f"{_duration(seconds)} left")
        return "  ".join(cells)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            Progress._inside = False
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any: 1:05, 2:03:09."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
