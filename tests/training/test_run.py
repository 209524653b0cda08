"""Runs: what a step guards, what is left behind, and that a run that was stopped goes on as if it had not been."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from small_run import EPOCHS, STEPS_PER_EPOCH, Crash, train

import mmcon
from mmcon.errors import CheckpointError, ConfigError, NonFiniteError
from mmcon.evaluation.online_knn import OnlineKnn
from mmcon.loading.loader import ViewLoader
from mmcon.training.checkpoint import Checkpoints, load_checkpoint
from mmcon.training.config import RunSettings
from mmcon.training.logging import MetricsLog
from mmcon.training.seeds import seed_model
from mmcon.training.signals import STOPPED, StopSignals

STEPS = EPOCHS * STEPS_PER_EPOCH
PROGRAM = Path(__file__).parents[1] / "small_run.py"


def crash(run):
    raise Crash


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The trace and the folder of a run that nothing disturbed, with a queue and a momentum encoder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(folder, memory=True), folder


def test_a_run_learns_and_leaves_its_folder(uninterrupted):
    trace, folder = uninterrupted
    assert [line["step"] for line in trace] == list(range(1, STEPS + 1))
    lines = MetricsLog(folder / "metrics.jsonl").lines()
    assert [line["step"] for line in lines] == [line["step"] for line in trace]
    assert [line["loss"] for line in lines] == [line["loss"] for line in trace]
    assert {"epoch", "gradient_norm", "learning_rate", "waiting_for_data", "views_per_second"} <= set(lines[0])
    assert [line["epoch"] for line in lines] == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH
    assert [place.name for place in Checkpoints(folder / "checkpoints").all()] == ["step-000000008", "step-000000012"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {}
    assert re.findall(r'<section id="([a-z-]+)"', (folder / "report.html").read_text()) == ["curves", "views", "run"]


@pytest.mark.slow
def test_the_loss_falls(tmp_path):
    trace = train(tmp_path, epochs=6)  # without a queue, whose growing number of candidates raises the loss
    assert sum(t["loss"] for t in trace[-6:]) < 0.96 * sum(t["loss"] for t in trace[:6])


def test_every_epoch_sees_other_samples_and_other_pixels(uninterrupted):
    trace, _ = uninterrupted
    assert len({line["samples"] for line in trace}) == len({line["pixels"] for line in trace}) == STEPS


@pytest.mark.parametrize(
    "at", [5, 11, *(pytest.param(at, marks=pytest.mark.slow) for at in range(1, 13) if at not in (5, 11))]
)
def test_a_crash_at_any_step_changes_nothing(uninterrupted, tmp_path, at):
    """Weights, losses, samples and pixels continue bit by bit from the last checkpoint, every four steps here."""
    trace, _ = uninterrupted
    with pytest.raises(Crash):
        train(tmp_path, memory=True, at=at, act=crash)
    again = train(tmp_path, memory=True, resume=True)
    saved = (at - 1) // 4 * 4
    assert again == trace[saved:]
    lines = MetricsLog(tmp_path / "metrics.jsonl").lines()
    assert [line["loss"] for line in lines] == [line["loss"] for line in trace]


def test_a_run_that_is_done_has_nothing_left_to_do(uninterrupted):
    _, folder = uninterrupted
    assert train(folder, memory=True, resume=True) == []


def test_max_steps_stops_early_and_leaves_the_schedule(uninterrupted, tmp_path):
    trace, _ = uninterrupted
    assert train(tmp_path, memory=True, max_steps=5) == trace[:5]
    assert train(tmp_path, memory=True, resume=True) == trace[5:]


def test_a_torn_newest_checkpoint_is_passed_over(uninterrupted, tmp_path):
    trace, _ = uninterrupted
    train(tmp_path, memory=True, max_steps=8)
    newest = Checkpoints(tmp_path / "checkpoints").newest()
    assert newest is not None
    with (newest / "state.pt").open("r+b") as file:
        file.truncate(100)
    assert train(tmp_path, memory=True, resume=True) == trace[4:]


def test_a_crash_while_a_checkpoint_is_written(uninterrupted, tmp_path, monkeypatch):
    trace, _ = uninterrupted
    from mmcon.training import checkpoint

    write = checkpoint.write_through

    def dies(path, content):
        write(path, content)
        if path.parent.name.startswith(".step-000000008"):
            raise Crash

    monkeypatch.setattr(checkpoint, "write_through", dies)
    with pytest.raises(Crash):
        train(tmp_path, memory=True)
    monkeypatch.undo()
    assert (tmp_path / "checkpoints").joinpath("step-000000004").exists()
    assert train(tmp_path, memory=True, resume=True) == trace[4:]
    assert not list((tmp_path / "checkpoints").glob(".step-*"))


def test_a_full_disk_fails_the_checkpoint_and_says_so(tmp_path, monkeypatch):
    train(tmp_path, max_steps=4)
    from mmcon.training import checkpoint

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_through", full)
    with pytest.raises(CheckpointError, match=r"No space left on device(.|\n)*earlier checkpoints are intact"):
        train(tmp_path, resume=True)
    assert load_checkpoint(tmp_path / "checkpoints" / "step-000000004")["step"] == 4


# --- the finite guard ---


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(uninterrupted, tmp_path):
    states = []
    with pytest.raises(
        NonFiniteError, match=r"step 6: expected a finite loss(.|\n)*got loss nan(.|\n)*--step 6(.|\n)*seed=3, step=5"
    ):
        states.append(train(tmp_path, memory=True, at=5, act="nan"))
    assert train(tmp_path, memory=True, resume=True) == uninterrupted[0][4:]


def test_waiting_for_slow_data_is_told(tmp_path, monkeypatch, capsys):
    """By a clock that only the data move on: on a busy machine a step takes longer than any wait of a test."""
    batches, clock = ViewLoader.each_step, [0.0]

    def slowly(loader):
        for batch in batches(loader):
            clock[0] += 1e6
            yield batch

    monkeypatch.setattr(ViewLoader, "each_step", slowly)
    monkeypatch.setattr("mmcon.training.step_timer.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    train(tmp_path / "run", steps=3, max_steps=3)
    assert "of the time is spent waiting for data, " in capsys.readouterr().out
    assert all(line["waiting_for_data"] > 0.5 for line in MetricsLog(tmp_path / "run" / "metrics.jsonl").lines()[1:])


def test_skipping_leaves_weights_and_schedule_as_they_were(tmp_path):
    trace = train(tmp_path, at=5, act="nan", on_nonfinite="skip")
    assert len(trace) == STEPS
    assert trace[5]["weights"] == trace[4]["weights"] != trace[6]["weights"]
    assert trace[5]["loss"] != trace[5]["loss"]
    assert all(line["loss"] == line["loss"] for line in trace[6:])


def test_skipping_has_a_limit(tmp_path):
    with pytest.raises(NonFiniteError):
        train(tmp_path, at=0, act="nan", on_nonfinite="skip", max_skips=0)


# --- settings ---


def test_another_runs_folder_is_refused(uninterrupted):
    with pytest.raises(ConfigError, match=r"a new folder, or --resume(.|\n)*choose another folder"):
        train(uninterrupted[1])


def test_settings_that_change_the_steps_are_refused_unless_forced(tmp_path, capsys):
    train(tmp_path, max_steps=4, config={"temperature": 0.1, "workers": 0})
    with pytest.raises(ConfigError, match=r"temperature: 0.1 -> 0.5(.|\n)*--force"):
        train(tmp_path, resume=True, config={"temperature": 0.5, "workers": 0})
    train(tmp_path, resume=True, max_steps=5, config={"temperature": 0.1, "workers": 1})
    assert "workers was 0 and is 1" in capsys.readouterr().out
    train(tmp_path, resume=True, max_steps=6, force=True, config={"temperature": 0.5, "workers": 1})


def test_precision_that_is_not_to_be_had_is_refused(tmp_path):
    from mmcon.training.run import Run

    with pytest.raises(ConfigError, match=r"one of \('no', 'bf16', 'fp16'\); got 'fp8'"):
        Run(tmp_path, mixed_precision="fp8", cpu=True)
    with pytest.raises(ConfigError, match="a GPU for fp16; got a CPU"):
        Run(tmp_path, mixed_precision="fp16", cpu=True)


def test_the_checkpoint_that_is_best_by_knn_of_training_rows_stays(uninterrupted, tmp_path):
    """The score is asked for at each checkpoint, and changes nothing of the training."""
    told = []

    def score(model, source, view):
        knn = OnlineKnn(ByHand(model), source, {"image": [mmcon.create_view("image/plain", size=28)]}, samples=60, k=5)

        def asked():
            told.append(knn())
            return [told[-1], 2.0, 1.5, 1.0][len(told) - 1]

        return asked

    trace = train(tmp_path / "run", memory=True, keep=1, checkpoint_every=3, score=score)
    assert trace == uninterrupted[0]
    assert len(told) == 4
    assert all(0.1 < share <= 1 for share in told)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    assert [place.name[-2:] for place in checkpoints.all()] == ["06", "12"]
    assert checkpoints.best().name[-2:] == "06"


class ByHand(torch.nn.Module):
    """The features of the small network, in float32."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def features(self, batch):
        return self.model(batch)["shared"]["image"].float()


def test_a_loop_without_a_step_is_told(tmp_path):
    from mmcon.loading.loader import ViewLoader
    from mmcon.samplers.uniform import UniformSampler
    from mmcon.sources.base import TensorSource
    from mmcon.training.run import Run
    from mmcon.views import Identity

    source = TensorSource(torch.zeros(8, 1, 4, 4), labels=torch.arange(8))
    loader = ViewLoader(source, {"image": [Identity()]}, UniformSampler(source.labels, batch_size=4, seed=0), seed=0)
    run = Run(tmp_path, seed=0, settings=RunSettings(epochs=1), cpu=True)
    with pytest.raises(RuntimeError, match=r"calls run.step\(loss\) once a batch"):
        for _ in run.batches(loader):
            pass


def test_randomness_inside_models_follows_seed_step_and_process():
    def drawn(*names):
        seed_model(*names)
        return torch.rand(()).item()

    state = torch.get_rng_state()
    try:
        assert drawn(0, "step", 5, 0) == drawn(0, "step", 5, 0)
        assert (
            len({drawn(0, "step", 5, 0), drawn(0, "step", 6, 0), drawn(0, "step", 5, 1), drawn(1, "step", 5, 0)}) == 4
        )
    finally:
        torch.set_rng_state(state)


def test_signals_are_noted_and_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_at_once(python):
    twice = "os.kill(os.getpid(), 15); os.kill(os.getpid(), 15); print('still here')"
    code = f"import os\nfrom mmcon.training.signals import StopSignals\nwith StopSignals():\n    {twice}"
    run = python(code)
    assert (run.returncode, run.stdout) == (128 + 15, ""), run.stderr


# --- real processes ---


def program(*arguments, launch=(), timeout=200):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_killed_three_times_and_resumed_with_workers(uninterrupted, tmp_path):
    """kill -9 in both epochs, with other numbers of workers in between; the last life ends with the same weights."""
    trace, _ = uninterrupted
    out, traced = tmp_path / "run", tmp_path / "trace.json"
    for at, workers in ((3, 0), (6, 2), (10, 1)):
        killed = program(
            out, "--trace", traced, "--resume", "--memory", "--workers", workers, "--at", at, "--signal", 9
        )
        assert killed.returncode == -9, killed.stderr
    done = program(out, "--trace", traced, "--resume", "--memory", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(traced.read_text()) == trace[8:]
    assert [line["loss"] for line in MetricsLog(out / "metrics.jsonl").lines()] == [line["loss"] for line in trace]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_exits(uninterrupted, tmp_path, number):
    trace, _ = uninterrupted
    out, traced = tmp_path / "run", tmp_path / "trace.json"
    stopped = program(out, "--trace", traced, "--memory", "--at", 5, "--signal", int(number))
    assert stopped.returncode == STOPPED == 75, stopped.stderr
    assert "stopped by a signal after step 5" in stopped.stdout
    done = program(out, "--trace", traced, "--memory", "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(traced.read_text()) == trace[5:]  # not one step was lost


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_stops_both_before_the_optimizer(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--tee", "3")
    stopped = program(tmp_path / "run", "--trace", tmp_path / "t.json", "--at", 3, "--nan", launch=launcher)
    assert stopped.returncode != 0
    told = [line for line in (stopped.stdout + stopped.stderr).splitlines() if "NonFiniteError: step 4" in line]
    assert {line.split(":")[0] for line in told} == {"[default0]", "[default1]"}
    assert len(MetricsLog(tmp_path / "run" / "metrics.jsonl").lines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("norm", [[], ["--batch-norm"]], ids=["group norm", "synchronised batch norm"])
def test_two_processes_train_as_one(tmp_path, norm):
    """Same samples, same losses, same weights."""
    alone, together = tmp_path / "one.json", tmp_path / "two.json"
    one = program(tmp_path / "one", "--trace", alone, "--no-dropout", *norm)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = program(tmp_path / "two", "--trace", together, "--no-dropout", *norm, launch=launcher)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert "2 process(es)" in two.stdout
    losses = [[line["loss"] for line in json.loads(path.read_text())] for path in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    # What is saved has the names that one process uses, so that either can go on with it.
    folders = [tmp_path / name / "checkpoints" / f"step-{STEPS:09d}" for name in ("one", "two")]
    weights = [load_checkpoint(folder)["model"] for folder in folders]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-9, atol=1e-12)
