"""The progress of a run: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from jaxtyping import Float
from torch import Tensor


class Progress:
    """Shows the step, the loss and the remaining time.

    Args:
        total: steps of the whole run.
        done: steps that were finished before.
        enabled: False makes all methods do nothing.
        every_seconds: time between two plain lines, without a terminal.
    """

    def __init__(self, total: int, done: int = 0, *, enabled: bool = True, every_seconds: float = 10.0) -> None:
        self.total, self.done, self.enabled = total, done, enabled
        self.every_seconds = every_seconds
        self._start = self._last = time.perf_counter()
        self._first = done
        self._bar = None

    def __enter__(self) -> Progress:
        if self.enabled and sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("step"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TextColumn("loss {task.fields[loss]}"),
                progress.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("train", total=self.total, completed=self.done, loss="–")
            self._bar.start()
        return self

    def advance(self, step: int, loss: Float[Tensor, ""]) -> None:
        """Show a finished step. The loss is read (which waits for the device) only if a line is shown."""
        self.done = step
        now = time.perf_counter()
        if not self.enabled or (now - self._last < (0.2 if self._bar else self.every_seconds) and step != self.total):
            return
        self._last = now
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{float(loss):.4f}")
        else:
            left = (now - self._start) / max(1, step - self._first) * (self.total - step)
            print(f"step {step}/{self.total}  loss {float(loss):.4f}  {left:.0f} s left", flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
