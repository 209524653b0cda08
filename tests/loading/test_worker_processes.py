"""Worker processes outlast stop signals, and end with the training process, whatever state they are in."""

import gc
import json
import os
import resource
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data._utils import signal_handling

from mmcon.errors import ConfigError
from mmcon.loading import worker_processes
from mmcon.loading.lost_workers import TrackedDataset, iterate_items

# Each way to end, in a fork: its status, the seconds that it took, and the workers that it left.
PROGRAM = """
import json, os, signal, sys, time
from mmcon.loading.lost_workers import TrackedDataset, iterate_items

class Left(Exception):
    pass

for number, end in json.loads(sys.argv[1]):
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, time.time()]), flush=True)
        continue
    # Items are larger than a pipe, so that workers wait for it to be read.
    stream = iterate_items(TrackedDataset(lambda item: "x" * 300_000, 2), range(100), workers=2)
    next(stream), next(stream)  # one of each worker: both have begun
    for worker in stream.workers:
        os.kill(worker.pid, number)
    print(json.dumps([worker.pid for worker in stream.workers]), time.time(), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    exec(end)
    break
"""
ENDS = {"os.kill(os.getpid(), 9)": -9, "os._exit(3)": 3, "sys.exit(4)": 4, "raise Left": 1, "del stream": 0}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_go_on_after_a_stop_signal(number):
    stream = iterate_items(TrackedDataset(lambda item: item * 2, 2), range(20), workers=2)
    assert next(stream) == 0
    for worker in stream.workers:
        os.kill(worker.pid, number)
    assert list(stream) == list(range(2, 40, 2))


def test_a_worker_that_does_not_end_in_time_is_killed_without_an_error(monkeypatch):
    """Also where a DataLoader of the user has installed torch's handler, which raises if it sees a lost worker."""
    monkeypatch.setattr(worker_processes, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    signal_handling._set_SIGCHLD_handler()
    try:
        stream = iterate_items(TrackedDataset(lambda item: time.sleep(60 * item), 1), range(20), workers=1)
        next(stream)
        stream.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert not any(worker.is_alive() for worker in stream.workers)


def short_of_shared_memory(number):
    """A large item of a process that may not write so large a file, as if /dev/shm were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    return torch.zeros(100_000)


@pytest.mark.parametrize(("item", "expected", "fix"), [
    (short_of_shared_memory, "enough free shared memory", "--shm-size"),
    (lambda number: lambda: number, "items that can be sent", "tensors and plain values"),
])  # fmt: skip
def test_an_item_that_cannot_be_sent_is_one_error_and_no_endless_wait(item, expected, fix):
    stream = iterate_items(TrackedDataset(item, 2), range(20), workers=2)
    with pytest.raises(ConfigError, match=rf"worker processes: expected {expected}(.|\n)*{fix}"):
        next(stream)
    stream.close()


def test_the_handler_of_ended_children_is_restored_after_a_failed_start(monkeypatch):
    before = signal.getsignal(signal.SIGCHLD)

    def fail(*args, **options):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        raise RuntimeError("no more threads")

    monkeypatch.setattr("mmcon.loading.lost_workers.DataLoader", fail)
    with pytest.raises(RuntimeError, match="no more threads"):
        iterate_items(TrackedDataset(abs, 1), range(3), workers=1)
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.slow
def test_workers_end_with_their_program_and_stopped_ones_do_not_hold_it(python):
    """Killed, left at once, left in order, by an error, or after the loader, with workers at work and stopped ones."""
    stopped = [end for end, status in ENDS.items() if sys.platform == "linux" or status in (0, 1, 4)]
    cases = [(int(signal.SIGCONT), end) for end in ENDS] + [(int(signal.SIGSTOP), end) for end in stopped]
    done = python(PROGRAM, json.dumps(cases))
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(cases), done.stdout + done.stderr
    workers = []
    for (number, end), began, ended in zip(cases, lines[::2], lines[1::2], strict=True):
        pids, _, start = began.rpartition(" ")
        status, end_time = json.loads(ended)
        assert status == ENDS[end], (number, end)
        assert end_time - float(start) < 10, (number, end)
        workers += json.loads(pids)
    deadline = time.monotonic() + 5
    while (left := list(filter(alive, workers))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_workers_do_not_end_those_of_a_loader_that_was_open_before(python):
    """A forked worker has copies of the open loaders, and may be the first process that collects them."""
    code = """
        import gc
        from mmcon.loading.lost_workers import TrackedDataset, iterate_items

        def item(number):
            gc.collect()
            return number

        gc.disable()
        unused = [iterate_items(TrackedDataset(abs, 1), range(4), workers=1)]
        unused.append(unused)
        kept = iterate_items(TrackedDataset(abs, 1), range(4), workers=1)
        del unused
        print(list(iterate_items(TrackedDataset(item, 1), range(3), workers=1)), list(kept))
    """
    done = python(textwrap.dedent(code))
    assert done.stdout == "[0, 1, 2] [0, 1, 2, 3]\n", done.stderr
    assert not done.stderr


@pytest.mark.slow
def test_few_open_files_suffice_and_too_few_are_named(python):
    """With 64, tensors pass by names in shared memory; with as many as are open, the limit is in the message."""
    code = """
        import os, resource, torch
        from mmcon.errors import ConfigError
        from mmcon.loading.lost_workers import TrackedDataset, iterate_items

        def limit(files):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, 4096))

        limit(64)
        items = TrackedDataset(lambda item: [torch.full((2,), item)] * 1 + [torch.ones(3) for _ in range(30)], 2)
        stream = iterate_items(items, range(20), workers=2)
        kept = [next(stream) for _ in range(20)]  # 620 tensors at a time
        print(*(int(item[0][0]) for item in kept))
        limit(len(os.listdir("/proc/self/fd")) + 3)
        try:
            iterate_items(items, range(20), workers=8)
        except ConfigError as error:
            limit(64)
            print(error)
    """
    done = python(textwrap.dedent(code))
    lines = done.stdout.splitlines()
    assert lines[0] == " ".join(map(str, range(20))), done.stderr
    assert "worker processes: expected a limit of open files" in lines[1]
    assert "ulimit -n 4096" in lines[2]
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_garbage_of_a_process_is_not_collected_in_its_forks():
    """An ended loader may be in a cycle of references, and its finalizer would end workers of another process."""

    class Ended:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            if os.getpid() != parent:
                os._exit(1)

    parent, was_enabled = os.getpid(), gc.isenabled()
    gc.disable()
    Ended()
    if not (child := os.fork()):
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gc.collect() > 0
    if was_enabled:
        gc.enable()
