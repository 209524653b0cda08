"""Calls in processes: one that is killed fails alone, none begins after a stop, and none outlives its parent."""

import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from mmcon.training import process_calls
from mmcon.training.process_calls import calls_in_processes, shares_of_cores


def test_a_killed_process_fails_its_call_alone_and_a_stop_ends_the_calls(tmp_path):
    late = tmp_path / "late"
    calls = {
        "killed": ("__import__('os')._exit(9)",),
        "good": ("6 * 7",),
        "stopped": ("__import__('sys').exit(75)",),
        "late": (f"open({str(late)!r}, 'w').write('made')",),
    }
    made = calls_in_processes(eval, calls, processes=1)
    found = dict([next(made), next(made)])
    with pytest.raises(SystemExit) as stop:
        next(made)
    assert stop.value.code == 75
    assert isinstance(found.pop("killed"), BrokenProcessPool)
    assert found == {"good": 42}
    assert not late.exists()  # a pool would have made the call, although nobody waits for its result


def test_a_process_ends_with_its_parent(tmp_path):
    file = tmp_path / "worker"
    call = f"open({str(file)!r}, 'w').write(str(__import__('os').getpid()) + ' '), __import__('time').sleep(300)"
    code = "from mmcon.training.process_calls import calls_in_processes\n"
    code += f"next(calls_in_processes(eval, {{'sleeps': ({call!r},)}}, processes=1))"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until = time.monotonic() + 200
        while not (file.exists() and file.read_text().endswith(" ")):
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.kill()
    while is_alive(file.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_processes_that_cannot_begin_end_the_calls(monkeypatch):
    monkeypatch.setattr(process_calls, "shares_of_cores", lambda count: [[1_000_000]])  # no such core
    with pytest.raises(BrokenProcessPool):
        next(calls_in_processes(eval, {"call": ("1",)}, processes=1))


def is_alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 7}, raising=False)
    assert shares_of_cores(2) == [[4, 7], [5]]
    assert shares_of_cores(4) == [[4], [5], [7], [4]]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert shares_of_cores(2) == [[], []]
