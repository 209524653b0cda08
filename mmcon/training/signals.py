"""Graceful stop: SIGTERM and SIGINT are recorded during a step and handled after it.

`Run.batches` checks the flag after each step, writes a checkpoint, and exits with the status `STOPPED`.
"""

from __future__ import annotations

import os
import signal
from typing import Any

#: The exit status after SIGTERM or SIGINT: a checkpoint was written, and `--resume` continues (EX_TEMPFAIL of
#: sysexits.h).
STOPPED = 75


class StopSignals:
    """Records SIGTERM and SIGINT inside a `with` block; a second signal ends the process at once.

    Attributes:
        received: the numbers of the recorded signals.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._record)
            except ValueError:  # only the main thread can set handlers; in another one, its owner handles signals
                break
        return self

    def _record(self, number: int, frame: Any) -> None:
        self.received.append(number)
        if len(self.received) > 1:
            # Not sys.exit: handlers and a collective in progress could block the exit.
            os._exit(128 + number)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
