"""Training engines: sharded weights, gradient accumulation, compilation, profiles, and their settings."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from small_run import EPOCHS, STEPS_PER_EPOCH, train
from torch import nn

import mmcon
from mmcon.distributed.fsdp import (
    MIN_SHARDED_PARAMETERS,
    _sharded_modules,
    check_sharding,
    clip_gradients,
    gradient_norm,
)
from mmcon.errors import ConfigError
from mmcon.loading.loader import ViewLoader
from mmcon.objective.baseline_objectives import CrossEntropy
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.training.checkpoint import Checkpoints, load_checkpoint
from mmcon.training.config import RunConfig, RunSettings
from mmcon.training.environment import check_batch_size, check_devices, check_precision, resolve_precision
from mmcon.training.logging import MetricsLog
from mmcon.training.optim import weight_average
from mmcon.training.run import Run
from mmcon.training.step_timer import StepTimer

STEPS = EPOCHS * STEPS_PER_EPOCH
ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parents[1] / "small_run.py"
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def small_run(folder, *words, launch=()):
    """The losses of the small run's steps, from a program of its own, with queue and momentum encoder."""
    trace = folder.parent / f"{folder.name}.json"
    command = [sys.executable, *launch, PROGRAM, folder, "--trace", trace, "--memory", "--no-dropout", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return [line["loss"] for line in json.loads(trace.read_text())]


def weights(folder, step=STEPS):
    return load_checkpoint(folder / "checkpoints" / f"step-{step:09d}")["model"]


# --- sharded weights -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--chunk-size", 5]], ids=["a batch at once", "gradient caching"])
def test_two_ranks_with_sharded_weights_train_as_one(tmp_path, words):
    """The weights of the first layer are sharded on their own, the others with the root."""
    alone = small_run(tmp_path / "alone")
    parts = small_run(tmp_path / "parts", "--engine", "fsdp2", "--shard-weights", 1000, *words, launch=TOGETHER)
    assert parts == pytest.approx(alone, rel=1e-10)
    for name, weight in weights(tmp_path / "alone").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], weight, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_run_goes_on_under_the_other_engine(tmp_path):
    """Checkpoints hold full tensors: from shards to full copies, and back to one rank."""
    alone = small_run(tmp_path / "alone")
    first = small_run(tmp_path / "changed", "--engine", "fsdp2", "--steps", 4, launch=TOGETHER)
    second = small_run(tmp_path / "changed", "--resume", "--steps", 8, launch=TOGETHER)
    third = small_run(tmp_path / "changed", "--resume", "--engine", "fsdp2", launch=TOGETHER)
    assert first + second + third == pytest.approx(alone, rel=1e-10)


@pytest.mark.slow
def test_the_recipe_with_sharded_weights(tmp_path):
    command = [sys.executable, *TOGETHER, "recipes/imagenet_supcon.py", "--tiny", "--cpu", "--engine", "fsdp2"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert 0 < json.loads((tmp_path / "results.json").read_text())["linear_probe"]["top1"] <= 1
    assert mmcon.ContrastiveModel.from_pretrained(tmp_path / "model").modalities_by_space() == {"shared": ["image"]}


def test_large_modules_are_sharded_on_their_own():
    side = int(MIN_SHARDED_PARAMETERS**0.5)
    large, small = nn.Linear(side, side), nn.Linear(4, 4)
    inner = nn.Sequential(small, nn.ReLU())
    model = nn.Sequential(nn.ModuleList([large, inner]), nn.Linear(4, 4))
    assert list(_sharded_modules(model)) == [large]


def test_features_that_need_full_weights_are_refused():
    layer = nn.Linear(4, 4)
    classifier = CrossEntropy(TensorSource(torch.zeros(2, 1), labels=torch.arange(2)))
    check_sharding({})
    for arguments, told in (
        (({"average": weight_average(layer, decay=0.9)},), "--ema-decay"),
        (({}, lambda: 1.0), "--keep-best"),
        (({"objective": classifier},), "CrossEntropy"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_sharding(*arguments)


def test_one_rank_has_full_weights_with_either_engine(tmp_path):
    trace = train(tmp_path / "parts", engine="fsdp2", max_steps=2)
    assert trace == train(tmp_path / "whole", max_steps=2)


def test_norm_and_clipping():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norm = gradient_norm(parameters)
    assert norm == 5
    clip_gradients(parameters, norm, 1.0)
    assert gradient_norm(parameters) == pytest.approx(1.0, abs=1e-5)
    clip_gradients(parameters, gradient_norm(parameters), 10.0)  # below the bound nothing changes
    assert gradient_norm(parameters) == pytest.approx(1.0, abs=1e-5)


# --- gradients of several batches ------------------------------------------------------------------------------------


def test_gradients_of_batches_are_averaged(tmp_path):
    """SGD of rate 1 on w · x, whose gradient is x: the weight moves by the mean of a group's x."""
    source = TensorSource(torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 8, 8) * 40)
    loader = ViewLoader(
        source,
        {"image": [mmcon.create_view("image/plain", size=8)]},
        UniformSampler(source.ids, batch_size=1, seed=0),
        seed=0,
    )
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    run = Run(tmp_path, settings=RunSettings(accumulate=2, checkpoint_every=1, keep=99), cpu=True)
    network, x, found = run.prepare(model, optimizer, schedule), [], []
    for batch in run.batches(loader):
        pixel = batch.views["image"][0].mean().view(1, 1)
        run.step(network(pixel).sum())
        x.append(float(pixel))
        found.append(float(model.weight.detach()))
    run.close()
    assert sorted(x) == pytest.approx([level * 40 / 255 for level in range(1, 6)])
    # Nothing moves after the first batch of a group; the fifth is an incomplete group, which counts by its share.
    moves = [0, (x[0] + x[1]) / 2, 0, (x[2] + x[3]) / 2, x[4] / 2]
    assert found == pytest.approx([-sum(moves[: n + 1]) for n in range(5)])
    assert schedule.last_epoch == 5  # it counts batches, for which recipes make it
    saved = [int(place.name.removeprefix("step-")) for place in Checkpoints(tmp_path / "checkpoints").all()]
    assert saved == [2, 4, 5]  # a checkpoint holds no gradients


def test_it_is_said_that_negatives_stay_those_of_one_batch(tmp_path, capsys):
    train(tmp_path, accumulate=2, max_steps=2)
    told = capsys.readouterr().out
    assert "the negatives are those of one batch" in told
    assert "--chunk-size" in told


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["--engine", "ddp"], ["--engine", "fsdp2"], ["--engine", "fsdp2", "--chunk-size", 5]
], ids=["ddp", "fsdp2", "fsdp2 with gradient caching"])  # fmt: skip
def test_two_processes_accumulate_as_one(tmp_path, words):
    alone = small_run(tmp_path / "alone", "--accumulate", 3)
    two = small_run(tmp_path / "two", "--accumulate", 3, *words, launch=TOGETHER)
    assert two == pytest.approx(alone, rel=1e-10)


def test_a_run_with_accumulation_resumes_where_the_optimizer_had_moved(tmp_path):
    whole = train(tmp_path / "whole", accumulate=3, memory=True)
    train(tmp_path / "cut", accumulate=3, memory=True, max_steps=6)
    rest = train(tmp_path / "cut", accumulate=3, memory=True, resume=True)
    assert rest == whole[6:]


# --- compiled, profiled, timed ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_a_compiled_model_trains_alike_and_keeps_its_names(tmp_path):
    plain = train(tmp_path / "plain", max_steps=3, checkpoint_every=3)
    compiled = train(tmp_path / "compiled", max_steps=3, checkpoint_every=3, compile=True, dropout=True)
    assert len(compiled) == len(plain)
    assert list(weights(tmp_path / "compiled", 3)) == list(weights(tmp_path / "plain", 3))
    quiet = [
        [line["loss"] for line in train(tmp_path / name, max_steps=3, dropout=False, compile=name == "c")]
        for name in ("p", "c")
    ]
    assert quiet[1] == pytest.approx(quiet[0], rel=1e-9)


def test_a_profile_is_a_table_and_a_trace(tmp_path, capsys):
    train(tmp_path, profile=True)
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    assert json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    assert "profile of 4 step(s)" in capsys.readouterr().out


def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys):
    train(tmp_path / "short", profile=True, max_steps=4)
    assert "no profile: the run ended within its first 4 steps" in capsys.readouterr().out
    assert not (tmp_path / "short" / "profile.txt").exists()
    train(tmp_path / "longer", profile=True, max_steps=6)
    assert "profile of 2 step(s)" in capsys.readouterr().out


def test_the_log_tells_where_the_time_went(tmp_path):
    train(tmp_path, max_steps=3)
    for line in MetricsLog(tmp_path / "metrics.jsonl").lines():
        shares = [line[name] for name in ("waiting_for_data", "views", *StepTimer.PHASES)]
        assert all(share >= 0 for share in shares)
        assert line["views"] > 10 * line["waiting_for_data"]  # there are no workers to wait for
        assert sum(shares) <= 1 + 1e-6


# --- flags, and what is refused --------------------------------------------------------------------------------------


def test_settings_are_those_of_a_configuration():
    @dataclass(frozen=True, kw_only=True)
    class Config(RunConfig):
        epochs: int = 7
        learning_rate: float = 0.1

    settings = Config(engine="fsdp2", accumulate=4)
    assert isinstance(settings, RunSettings)
    assert (settings.epochs, settings.engine, settings.accumulate, settings.log_every) == (7, "fsdp2", 4, 10)


def test_the_precision_of_a_launch_file_counts_where_no_flag_says_another(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert (resolve_precision("no"), resolve_precision("fp16")) == ("bf16", "fp16")
    AcceleratorState._reset_state()
    run = Run(tmp_path, config={"mixed_precision": "no"}, cpu=True)
    run.close()
    assert run.accelerator.mixed_precision == "bf16"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"mixed_precision": "bf16"}
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="a GPU for fp16"):
        Run(tmp_path, cpu=True)


def test_an_unknown_engine_is_refused(python):
    # In a process of its own, since the type checks of the tests would refuse the value first.
    run = python("from mmcon.training.config import RunSettings; RunSettings(engine='fsdp')")
    assert "ConfigError: --engine: expected ddp or fsdp2; got 'fsdp'" in run.stderr


def test_mistakes_are_told_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match="1 batch or more"):
        RunSettings(accumulate=0)
    check_batch_size(16, 2)
    with pytest.raises(ConfigError, match="--batch-size 15 or 18"):
        check_batch_size(16, 3)
    with pytest.raises(ConfigError, match=r"--batch-size 3$"):
        check_batch_size(2, 3)
    check_devices(["cuda"] * 2)
    with pytest.raises(ConfigError, match="rank 1 on cpu"):
        check_devices(["cuda", "cpu"])
    with pytest.raises(ConfigError, match="a GPU for fp16"):
        check_precision("fp16", cpu=True)


@pytest.mark.slow
def test_a_batch_that_processes_do_not_divide_is_refused_by_the_recipe(tmp_path):
    command = [sys.executable, *TOGETHER, "recipes/imagenet_supcon.py", "--tiny", "--cpu", "--batch-size", "33"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "expected a global batch size that is divisible by 2 ranks" in done.stderr
    assert "--batch-size 32 or 34" in done.stderr
