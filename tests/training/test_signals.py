"""Stop signals: copies from a launcher, closed terminals, and launchers that are killed."""

import multiprocessing
import os
import pty
import signal
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from mmcon.training import signals
from mmcon.training.signals import StopSignals, find_launcher

BEGIN = "import os, signal, sys, time\nfrom mmcon.training import signals\nfrom mmcon.training.signals import *\n"


def test_a_copy_of_a_signal_from_the_launcher_is_the_same_signal():
    with StopSignals(launcher=os.getppid()) as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.received == [signal.SIGTERM]
    assert StopSignals.active is None


@pytest.mark.slow
def test_what_happens_without_a_launcher_or_late_or_without_the_launcher(python):
    """In forks of one program: a late second signal; nohup; a launcher killed in the loop, in a step, outside."""
    code = """
        def fork(act):
            read, write = os.pipe()
            if child := os.fork():
                os.close(write)
                begin = time.monotonic()
                text = os.read(read, 100).decode()
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                os.read(read, 1)  # until the last process that has the other end is gone
                print(act.__name__, status, text, time.monotonic() - begin < 8, flush=True)
                return
            os.dup2(write, 1)
            os.close(write)
            act()
            os._exit(0)

        def late():
            with StopSignals(launcher=os.getppid()):
                os.kill(os.getpid(), signal.SIGTERM)
                signals.COPY_SECONDS = 0.0
                os.kill(os.getpid(), signal.SIGTERM)

        def nohup():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            with StopSignals() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                print(stop.received, flush=True)

        def orphan(act):
            launcher = os.getpid()
            if os.fork():
                time.sleep(1)
                os._exit(9)
            signals.find_launcher = lambda: launcher
            signals.ORPHAN_SECONDS, signals.LOOK_SECONDS = 1.0, 0.2
            end_with_launcher()
            act()
            time.sleep(100)

        def in_the_loop():
            def act():
                with StopSignals() as stop:
                    while not stop.received:
                        time.sleep(0.1)
                    stop.finishing = True
                    time.sleep(2)  # the checkpoint takes longer than the limit
                    print(stop.received, flush=True)
                    os._exit(0)
            orphan(act)

        def in_a_step_without_end():
            def act():
                with StopSignals():
                    time.sleep(100)
            orphan(act)

        def outside():
            orphan(lambda: time.sleep(100))

        for act in (late, nohup, in_the_loop, in_a_step_without_end, outside):
            fork(act)
    """
    done = python(BEGIN + textwrap.dedent(code))
    found = " ".join(done.stdout.split())
    assert found == (
        "late 143 True nohup 0 [] True in_the_loop 9 [<Signals.SIGTERM: 15>] True"
        " in_a_step_without_end 9 True outside 9 True"
    ), done.stdout + done.stderr


@pytest.mark.slow
def test_a_closed_terminal_stops_the_run_as_other_signals_do():
    """Output to the terminal that is gone raises no error between the signal and the checkpoint."""
    code = textwrap.dedent("""
        with StopSignals() as stop:
            print("begun", flush=True)
            while not stop.received:
                time.sleep(0.1)
        print("more", flush=True)
        sys.exit(STOPPED if stop.received == [signal.SIGHUP] else 1)
    """)
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", BEGIN + code])
    seen = b""
    while b"begun" not in seen:
        seen += os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == signals.STOPPED


def signal_itself():
    signals.stop_outside_loop(lambda received: None)
    os.kill(os.getpid(), signal.SIGTERM)
    return "not reached"


def test_a_process_of_a_pool_passes_the_stop_on():
    """One that ends at once would be for the pool one that was killed, and a sweep would begin the next run."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as pool, pytest.raises(SystemExit) as stop:
        pool.submit(signal_itself).result()
    assert stop.value.code == signals.STOPPED


def test_a_handler_that_was_there_before_is_called_after_the_undo_inside_of_the_loop():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        undo = signals.stop_outside_loop(received.append)
        with StopSignals():
            undo()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/env/bin/python /env/bin/accelerate launch x.py", True),
        ("/env/bin/python -m accelerate.commands.launch x.py", True),
        ("/env/bin/python /env/bin/torchrun x.py", True),
        ("python -m torch.distributed.run --nproc_per_node 2 x.py", True),
        ("bash /home/me/accelerate-tests/run.sh", False),
        ("-bash", False),
    ],
)
def test_launchers_are_known_by_their_command(command, expected):
    assert signals._is_launcher(command.split()) == expected


def test_a_program_without_a_launcher_has_none():
    assert find_launcher() is None


def test_children_that_were_stopped_go_on_after_a_signal():
    """The step waits for its batch, which a stopped worker would never make."""
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.5,), daemon=True)
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        worker.join(5)
    assert worker.exitcode == 0
