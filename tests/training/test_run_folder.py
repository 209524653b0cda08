"""A run folder: one run at a time, nothing in it is lost, and what is damaged is named."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_run import Crash, train

import mmcon
from mmcon.errors import CheckpointError, ConfigError, StorageError
from mmcon.loading.streaming import StreamLoader
from mmcon.sources.streaming import Stream, StreamSample
from mmcon.training import run_folder
from mmcon.training.checkpoint import Checkpoints
from mmcon.training.logging import QUARANTINE, REMOVED, MetricsLog
from mmcon.training.run import Run, RunSettings
from mmcon.training.run_folder import _remove_unused, restarted_folder
from mmcon.training.run_lock import LOCK, RunLock
from mmcon.training.signals import STOPPED_FILE
from mmcon.training.state import check_data

HERE = Path(__file__)


def crash(run):
    raise Crash


def damage(folder):
    for path in Checkpoints(folder / "checkpoints").all():
        with (path / "state.pt").open("r+b") as file:
            file.truncate(100)


def steps(path):
    return [line["step"] for line in MetricsLog(path).lines()]


# --- damaged checkpoints ---


def test_damaged_checkpoints_alone_are_refused_and_a_flag_starts_anew_elsewhere(tmp_path, capsys):
    folder = tmp_path / "run"
    train(folder, max_steps=8)
    damage(folder)
    before = {path.name for path in folder.iterdir()}
    for _ in range(2):  # once more, when they are set aside
        with pytest.raises(
            CheckpointError, match=r"a valid checkpoint in .*checkpoints; got damaged ones only(.|\n)*--restart"
        ):
            train(folder, resume=True)
    assert {path.name for path in folder.iterdir()} == before
    assert steps(folder / "metrics.jsonl") == list(range(1, 9))
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {f"damaged-step-{n:09d}" for n in (4, 8)}
    # The same command again goes on in the new folder.
    assert [line["step"] for line in train(folder, resume=True, restart=True, max_steps=6)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in train(folder, resume=True, restart=True, max_steps=8)] == [7, 8]
    assert "run-restart: from step-000000006" in capsys.readouterr().out
    assert steps(folder / "metrics.jsonl") == list(range(1, 9))
    assert steps(tmp_path / "run-restart" / "metrics.jsonl") == list(range(1, 9))


def test_a_folder_with_damaged_checkpoints_is_that_of_another_run_without_resume(tmp_path):
    train(tmp_path, max_steps=4)
    damage(tmp_path)
    Checkpoints(tmp_path / "checkpoints").set_aside_damaged()
    with pytest.raises(ConfigError, match="holds the checkpoints of another run"):
        train(tmp_path)


def test_a_new_folder_is_used_itself(tmp_path):
    assert restarted_folder(tmp_path / "new") == tmp_path / "new"
    train(tmp_path / "run", max_steps=4)
    assert restarted_folder(tmp_path / "run") == tmp_path / "run"


# --- the log ---


def test_lines_that_a_resumed_run_repeats_are_kept_beside(tmp_path, capsys):
    with pytest.raises(Crash):
        train(tmp_path, at=7, act=crash)
    first = MetricsLog(tmp_path / "metrics.jsonl").lines()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train(tmp_path, resume=True, max_steps=8)
    assert steps(tmp_path / "metrics.jsonl") == list(range(1, 9))
    kept = [json.loads(line) for line in (tmp_path / REMOVED).read_text().splitlines()]
    assert kept == [*first[4:], {"damaged": '{"step": 7, "lo'}]
    assert (
        f"metrics.jsonl: 2 line(s) of steps after 4, and 1 that were cut off are now in {REMOVED}"
        in capsys.readouterr().out
    )


def test_a_start_in_a_folder_with_a_log_keeps_its_lines_beside(tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, at=2, act=crash)
    train(tmp_path, max_steps=4)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert steps(tmp_path / REMOVED) == [1]


# --- one run at a time ---

HOLD = """
import sys, time
from pathlib import Path
from mmcon.training.run_lock import RunLock
RunLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(100)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process has locked, and the process."""
    folder = tmp_path / "run"
    train(folder, max_steps=4)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield folder, process
        process.kill()


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends(held):
    folder, process = held
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(ConfigError, match=rf"no other run uses(.|\n)*process {process.pid} on .* since 20"):
            train(folder, resume=resume)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [line["step"] for line in train(folder, resume=True, max_steps=6)] == [5, 6]


def test_a_second_run_of_the_same_process_takes_over(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.release()  # does not release that of the second
    second.check()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    second.release()


def test_a_disk_without_locks_is_told_and_its_live_holder_is_still_refused(held, monkeypatch, tmp_path):
    def unsupported(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    folder, process = held
    with pytest.raises(ConfigError, match=f"process {process.pid} on"):
        RunLock(folder)
    told = []
    RunLock(tmp_path / "other", log=told.append).release()
    assert "no file locks" in told[0]


def in_a_fork(act):
    """The exit status of a fork of this process that calls `act`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        act()
        status = 0
    finally:
        os._exit(status)


def test_a_lock_that_was_dropped_is_taken_again_or_refused(tmp_path, locked_elsewhere):
    """The system drops a lock when its process closes any handle of the file, as after a copy of the folder."""
    lock = RunLock(tmp_path)
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    lock.check()
    assert in_a_fork(lambda: RunLock(tmp_path)) == 1
    (tmp_path / LOCK).read_bytes()
    with locked_elsewhere(tmp_path), pytest.raises(ConfigError, match="no other run uses"):
        lock.check()
    lock.release()
    RunLock(tmp_path).release()


def test_a_file_server_that_is_away_for_a_while_does_not_end_the_run(tmp_path, monkeypatch):
    """No other run has the lock then; at the start of a run it is an error of the disk."""

    def fails(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    told = []
    lock = RunLock(tmp_path / "run", log=told.append)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "lockf", fails)
        lock.check()
        with pytest.raises(StorageError, match="Input/output error"):
            RunLock(tmp_path / "other")
    lock.check()
    lock.release()
    assert [line.rpartition(": ")[2] for line in told] == ["[Errno 5] Input/output error"]


def test_a_lock_file_that_was_removed_is_made_again(tmp_path):
    lock = RunLock(tmp_path)
    (tmp_path / LOCK).unlink()
    lock.check()
    assert (tmp_path / LOCK).exists()
    lock.release()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_run_folder_that_is_gone_in_a_run_ends_it_with_one_error(tmp_path, how):
    folder = tmp_path / "run"

    def remove(run):
        shutil.rmtree(folder) if how == "deleted" else folder.rename(tmp_path / "moved")
        if how == "replaced":
            shutil.copytree(tmp_path / "moved", folder)

    with pytest.raises(StorageError, match=r"run(.|\n)*(deleted or moved|another run)(.|\n)*Fix: do not"):
        train(folder, at=3, act=remove)
    assert folder.exists() == (how == "replaced")


# --- the disk ---


def test_a_folder_that_cannot_be_created_is_named():
    with pytest.raises(
        StorageError, match=r"run folder /proc/run: expected a folder that can be created(.|\n)*--output-dir"
    ):
        Run("/proc/run", cpu=True)


def test_a_full_disk_at_the_start_leaves_the_files_of_the_run(tmp_path):
    """The limit on the size of files stands for a full disk."""
    settings = {"note": "x" * 5000}
    train(tmp_path, max_steps=4, config=settings)
    before = (tmp_path / "config.yaml").read_bytes()
    handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(StorageError, match=r"config\.yaml(.|\n)*free space(.|\n)*too large"):
            train(tmp_path, resume=True, config=settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert [line["step"] for line in train(tmp_path, resume=True, max_steps=5, config=settings)] == [5]


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "a: &a [*a]\n", "!!python/name:os.system\n", "note: [", "\udcff\x00"]
)
def test_settings_that_cannot_be_read_are_refused_unless_forced(tmp_path, text, capsys):
    Checkpoints(tmp_path / "checkpoints").save(4, {"step": 4})
    (tmp_path / "config.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match="--force"):
        Run(tmp_path, config={"note": 1}, resume=True, cpu=True)
    Run(tmp_path, config={"note": 1}, resume=True, settings=RunSettings(force=True), cpu=True).close()
    assert "resume: " in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"note": 1}


def test_a_rank_that_does_not_see_the_folder_raises_with_all_others(tmp_path, monkeypatch):
    """On resume: the settings are compared by the main rank, whose errors reach all."""
    monkeypatch.setattr(run_folder, "from_main_rank", lambda act: "step-000000004")
    monkeypatch.setattr(run_folder, "gather_objects", lambda value: [True if value is False else "other", value])
    monkeypatch.setattr(run_folder, "PATIENCE_SECONDS", 0)
    options = {"is_main": False, "resume": True, "force": False, "log": print}
    with pytest.raises(ConfigError, match="a folder that all ranks share"):
        run_folder.open_folder(Checkpoints(tmp_path / "gone" / "checkpoints"), {"seed": 1}, **options)


def test_missing_settings_are_refused_unless_forced(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(4, {"step": 4})
    with pytest.raises(ConfigError, match=r"config\.yaml(.|\n)*No such file(.|\n)*--force"):
        Run(tmp_path, config={"note": 1}, resume=True, cpu=True)
    Run(tmp_path, config={"note": 1}, resume=True, settings=RunSettings(force=True), cpu=True).close()


def test_a_start_that_fails_leaves_no_folder(python, tmp_path):
    code = (
        "import sys\nfrom mmcon.training.run import Run\nRun(sys.argv[1], cpu=True)\nraise ValueError('no such data')"
    )
    assert "no such data" in python(code, tmp_path / "runs" / "failed").stderr
    assert not (tmp_path / "runs" / "failed").exists()


@pytest.mark.parametrize("written", ["metrics.jsonl", "quarantine.jsonl", "checkpoints"])
def test_a_folder_with_anything_of_use_stays(tmp_path, written):
    for name in ("config.yaml", LOCK, written):
        (tmp_path / name).touch()
    _remove_unused(tmp_path, os.getpid())
    assert (tmp_path / written).exists()


# --- other data ---


def test_data_that_changed_are_refused_unless_forced(tmp_path, monkeypatch, capsys):
    import small_run

    train(tmp_path, max_steps=4)
    subset = small_run.Subset
    monkeypatch.setattr(small_run, "Subset", lambda source, rows: subset(source, list(rows)[1:]))
    with pytest.raises(ConfigError, match=r"99 samples instead of 100(.|\n)*other batches|others than(.|\n)*--force"):
        train(tmp_path, resume=True)
    train(tmp_path, resume=True, max_steps=5, force=True)
    assert "resume: the data changed (99 samples instead of 100" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="100 samples instead of 99"):
        train(tmp_path, resume=True)


def test_a_checkpoint_without_a_fingerprint_of_its_data_is_resumed(tmp_path):
    train(tmp_path, max_steps=4)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = torch.load(checkpoints.newest() / "state.pt")
    del state["data"]
    checkpoints.save(4, state)
    assert [line["step"] for line in train(tmp_path, resume=True, max_steps=5)] == [5]


def test_another_stream_is_refused(tmp_path):
    def loader(*names):
        stream = Stream(lambda skip: [StreamSample(name, b"x") for name in names[skip:]])
        views = {"image": [mmcon.create_view("image/plain", size=4)]}
        return StreamLoader(stream, views, batch_size=1, steps_per_epoch=1, seed=0)

    saved = {"data": check_data(loader("a", "b"), None, force=False, log=print)}
    assert check_data(loader("a", "b"), saved, force=False, log=print) == saved["data"]
    for others in (("a", "c"), ("a", "b", "c")):
        with pytest.raises(ConfigError, match="other samples or another order"):
            check_data(loader(*others), saved, force=False, log=print)


# --- the end ---


def test_the_file_stopped_tells_a_supervisor_and_goes_with_the_next_start(tmp_path):
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, at=3, act=lambda run: os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == 75
    assert json.loads((tmp_path / STOPPED_FILE).read_text()) == {"step": 3, "signals": [15]}
    train(tmp_path, resume=True, max_steps=4)
    assert not (tmp_path / STOPPED_FILE).exists()
    assert time.time() - (tmp_path / "run.json").stat().st_mtime < 100


def test_settings_of_a_run_reach_the_lock_only_on_the_main_rank(tmp_path):
    run = Run(tmp_path / "run", settings=RunSettings(), cpu=True)
    assert (tmp_path / "run" / LOCK).exists()
    run.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"  # a closed run has released its folder
        other.kill()


def end_by(number, folder, **options):
    run = Run(folder, cpu=True, **options)
    os.kill(os.getpid(), number)
    run.close()  # not reached


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [0, 4])
def test_a_signal_outside_of_the_loop_of_steps_ends_the_run_with_the_same_status(tmp_path, number, step):
    """At the start (0), and in the evaluation after the last step, where there is nothing to save."""
    if step:
        Checkpoints(tmp_path / "checkpoints").save(step, {"step": step})
    assert in_a_fork(lambda: end_by(number, tmp_path, resume=True)) == 75
    assert json.loads((tmp_path / STOPPED_FILE).read_text()) == {"step": step, "signals": [number]}


def test_signals_have_their_effect_again_after_a_run_and_in_its_forks(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = Run(tmp_path, cpu=True)
    assert signal.getsignal(signal.SIGTERM) is not before
    assert in_a_fork(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
    run.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / STOPPED_FILE).exists()


def test_what_a_killed_run_left_of_unfinished_features_is_removed(tmp_path):
    names = {"features": "trained-train.safetensors", "model": "model.safetensors"}
    for folder, name in names.items():
        (tmp_path / folder).mkdir()
        for file in (f".{name}.1234", name):
            (tmp_path / folder / file).write_bytes(b"half")
    Run(tmp_path, cpu=True).close()
    assert {folder: [path.name for path in (tmp_path / folder).iterdir()] for folder in names} == {
        folder: [name] for folder, name in names.items()
    }


def test_damaged_lines_of_a_quarantine_file_stay(tmp_path):
    lines = ['{"file": "a", "reason": "cut"}', '{"file": "b", "found": "in training"}', '{"file": "c", "rea']
    (tmp_path / QUARANTINE).write_text("\n".join(lines))
    Run(tmp_path, cpu=True).close()
    assert (tmp_path / QUARANTINE).read_text().splitlines() == [lines[0], lines[2]]
