"""The sizes and times of modification of many files, without opening them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
from jaxtyping import Int64

# A local disk answers in a few microseconds, where threads only wait for each other; a network drive in hundreds.
_SLOW_SECONDS, _PROBED, _CHUNK = 50e-6, 256, 4096


def file_states(paths: Iterable[str]) -> Int64[np.ndarray, "n 2"]:
    """The size in bytes and the time of modification in nanoseconds of each file; -1 and 0 where there is no file.

    Several threads ask if the first files show that each answer is waited for.
    """
    remaining, began = iter(paths), time.perf_counter()
    first = [_state(path) for path in islice(remaining, _PROBED)]
    if time.perf_counter() - began < _SLOW_SECONDS * len(first):
        return _rows(chain(first, map(_state, remaining)))
    chunks = iter(lambda: list(islice(remaining, _CHUNK)), [])
    with ThreadPoolExecutor(max_workers=16) as pool:
        return _rows(chain(first, chain.from_iterable(pool.map(lambda chunk: list(map(_state, chunk)), chunks))))


def _rows(states: Iterable[tuple[int, int]]) -> Int64[np.ndarray, "n 2"]:
    return np.fromiter(chain.from_iterable(states), dtype=np.int64).reshape(-1, 2)


def _state(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in a name of a table
        return -1, 0
    return found.st_size, found.st_mtime_ns
