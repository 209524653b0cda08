"""Parts of a batch in several threads, each of which computes with one intra-op thread.

Views are many small operations. With two intra-op threads, each operation would divide its work and wait for both, so
that beside other programs most of the time passes in waiting. Whole parts of a batch wait once, at their end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

from mmcon.portable_math import one_thread

Part = TypeVar("Part")
Result = TypeVar("Result")


def map_parts(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """The results of a function for each part, computed by as many threads as the caller has intra-op threads.

    The function must not use global random states, nor change what two parts share.

    Args:
        function: of one part; it runs in the caller's inference and gradient mode.
        parts: in order; one alone runs in the caller's thread.

    Raises:
        Exception: the error of the first part that fails, after all parts have ended.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        with one_thread():
            return [function(part) for part in parts]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(part: Part) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):  # both belong to a thread
            return function(part)

    futures = [_pool(os.getpid(), threads).submit(run, part) for part in parts]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of a process; a fork has none of those of its parent."""
    pool = ThreadPoolExecutor(threads, "mmcon-views", initializer=_compute_alone)
    # A setting holds for the thread that makes it, and for all that begin later. So all threads of the pool begin here
    # (each waits for the others), and later ones of the process get the caller's number again.
    begun = Barrier(threads)
    list(pool.map(lambda _: begun.wait(), range(threads)))
    torch.set_num_threads(threads)
    return pool


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # at its first use in a thread, torch takes the number that was set last in the process
