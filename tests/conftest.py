"""What several test files share."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


def take_own_cores():
    """Give a process of `pytest -n` its share of the cores: more threads than cores would wait for each other."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count] or cores)


take_own_cores()  # before torch starts its threads

import torch  # noqa: E402
from beartype._check.code import codemain  # noqa: E402

# Type checks look at a random item of a sequence. They get a generator of their own, so that they do not change the
# global random state, which the laws watch.
codemain.getrandbits = random.Random(0).getrandbits

from mmcon import registry  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    """Two threads at most: tensors here are small, and test processes often share their cores."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def signals_arrive():
    """Stop signals have their default effect in processes of tests; background jobs of a shell ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_names():
    """What a test registers from its own module is forgotten after it: other tests count and list names."""
    before = {*registry._entries}
    yield
    for key in {*registry._entries} - before:
        if registry._entries[key].origin.startswith("test_"):
            del registry._entries[key]


@pytest.fixture
def own_registry():
    """Whatever a test registers is forgotten after it."""
    registry.load_plugins()
    before = dict(registry._entries)
    yield
    registry._entries.clear()
    registry._entries.update(before)


@pytest.fixture
def python():
    """Run a program in a process of its own: `python(code, *args, path=..., env=...)` gives the finished process."""

    def run(code, *args, path=(), env=None, timeout=120):
        paths = os.pathsep.join([*map(str, path), str(HERE)])
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def locked_elsewhere():
    """`with locked_elsewhere(folder) as pid`: another process has the lock of a run folder."""
    from mmcon.training.run_lock import RunLock

    @contextmanager
    def locked(folder):
        read, write = os.pipe()
        if not (other := os.fork()):
            try:
                RunLock(folder)
                os.write(write, b"locked")
                time.sleep(100)
            finally:
                os._exit(1)
        os.close(write)  # so that a process that fails ends the wait
        try:
            assert os.read(read, 6) == b"locked"
            yield other
        finally:
            os.close(read)
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)

    return locked
