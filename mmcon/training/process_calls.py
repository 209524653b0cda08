"""Calls of a function in several processes, such as the runs of a sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import Any, TypeVar

from mmcon.training.signals import ORPHAN_SECONDS, StopSignals

T = TypeVar("T")


def calls_in_processes(
    function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]], *, processes: int
) -> Iterator[tuple[str, T | BrokenProcessPool]]:
    """Call a function in several processes; yield the name and the result of each call as it ends.

    Each process has its share of the cores, and makes one call after another: the threads of processes that shared all
    cores would wait for each other. A call is handed out when a process is free for it: what waits in a pool is made
    even after a signal has stopped the calls before it. A process ends when this one does, killed or not; a run that it
    trains writes a checkpoint first.

    Args:
        function: of a module that a new process can import.
        arguments: of each call, by its name.
        processes: how many calls are made at a time.

    Yields:
        The name of a call and its result; in place of the result, the error if its process was killed, by a lack of
        memory perhaps. The other calls go on.

    Raises:
        BrokenProcessPool: no process can begin.
        SystemExit: a call was stopped by a signal; those that were at work are yielded first.
        Exception: what a call raised.
    """
    waiting, stopped = iter(arguments.items()), None
    running: dict[Future[T], tuple[str, int]] = {}
    with ExitStack() as stack:
        # A pool of one each: the death of a process breaks its whole pool.
        pools, free = [_pool(stack, cores) for cores in shares_of_cores(processes)], [*range(processes)]
        for begun in [pool.submit(os.getpid) for pool in pools]:
            begun.result()  # what lets no process begin raises here, not as the death of each call
        while True:
            while free and not stopped and (call := next(waiting, None)):
                number = free.pop()
                try:
                    future = pools[number].submit(function, *call[1])
                except BrokenProcessPool:  # killed since its last call
                    pools[number] = _pool(stack, shares_of_cores(processes)[number])
                    future = pools[number].submit(function, *call[1])
                running[future] = call[0], number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, number = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    result, pools[number] = error, _pool(stack, shares_of_cores(processes)[number])
                except SystemExit as error:
                    stopped = error
                    continue
                free.append(number)
                yield name, result
    if stopped:
        raise stopped


def shares_of_cores(count: int) -> list[list[int]]:
    """The cores of this process in parts, of one core at least; empty parts if the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return [[]] * count
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i::count] or [cores[i % len(cores)]] for i in range(count)]


def _pool(stack: ExitStack, cores: list[int]) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks and no threads
    return stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(cores,)))


def _begin(cores: list[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)  # the threads of a run follow it
    threading.Thread(target=_watch, name="parent watch", daemon=True).start()


def _watch() -> None:
    """End this process after its parent: it would hold the folder of its run, and then wait for calls for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # ends the process at once, unless a run records it
    until = time.monotonic() + ORPHAN_SECONDS
    while StopSignals.active and time.monotonic() < until:
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)
