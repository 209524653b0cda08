"""What several test files share."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from beartype._check.code import codemain

# Type checks look at a random item of a sequence. They get a generator of their own, so that they do not change the
# global random state, which the laws watch.
codemain.getrandbits = random.Random(0).getrandbits

from mmcon import registry  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    """Two threads at most, one beside other processes of tests (`-n 2`): tensors here are small."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def signals_arrive():
    """Stop signals have their default effect in processes of tests; background jobs of a shell ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


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
