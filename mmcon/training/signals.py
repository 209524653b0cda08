"""An orderly end: signals are noted while a step runs, and obeyed when it is done."""

from __future__ import annotations

import os
import signal
from typing import Any

#: The exit status after SIGTERM or SIGINT: everything is saved, and `--resume` goes on (EX_TEMPFAIL of sysexits.h).
STOPPED = 75


class Signals:
    """Notes SIGTERM and SIGINT inside a `with` block; a second one ends the process at once.

    Attributes:
        received: the numbers that came.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs the loop there handles signals
                break
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received.append(number)
        if len(self.received) > 1:
            os._exit(128 + number)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
