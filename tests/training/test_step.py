"""A step by itself: groups of batches, the guard, and the gradient scaler of fp16 (which a CPU has too)."""

import json
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_run import EPOCHS, STEPS_PER_EPOCH, train
from torch import nn

from mmcon.errors import ConfigError, NonFiniteError
from mmcon.training.checkpoint import Checkpoints, load_checkpoint
from mmcon.training.config import RunSettings
from mmcon.training.logging import MetricsLog
from mmcon.training.rank_model import _fuse
from mmcon.training.step import AccumulationSchedule, StepLocation, Stepper

STEPS = EPOCHS * STEPS_PER_EPOCH

# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_end_where_they_are_full_and_at_the_end_of_the_run():
    groups = AccumulationSchedule.from_settings(RunSettings(accumulate=3), 8)
    assert [step for step in range(1, 9) if groups.ends_group(step)] == [3, 6, 8]
    assert [groups.accumulated(step) for step in (3, 6, 8)] == [3, 3, 2]
    assert AccumulationSchedule.from_settings(RunSettings(accumulate=3, max_steps=6), 8).last == 6
    assert AccumulationSchedule.from_settings(RunSettings(accumulate=3, max_steps=8), 8).last == 8
    assert AccumulationSchedule.from_settings(RunSettings(max_steps=5), 8).last == 5


@pytest.mark.parametrize(("steps", "fix"), [(4, "--max-steps 3 or 6"), (2, "--max-steps 3")])
def test_a_group_is_not_cut(tmp_path, steps, fix):
    with pytest.raises(ConfigError, match=f"a multiple of --accumulate 3(.|\n)*{fix}$"):
        train(tmp_path, accumulate=3, max_steps=steps)


def test_a_step_tells_whether_the_weights_changed_so_that_their_average_follows_the_optimizer(tmp_path):
    trace = train(tmp_path, accumulate=3, max_steps=6, memory=True)
    assert [a["weights"] == b["weights"] for a, b in pairwise(trace)] == [True, False, True, True, False]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert int(load_checkpoint(checkpoints.newest())["tracked"]["momentum"]["step"]) == 2


def test_a_log_is_json_before_the_optimizer_has_moved(tmp_path):
    def no_number(name):
        raise AssertionError(name)

    train(tmp_path, accumulate=3, max_steps=3)
    lines = [
        json.loads(line, parse_constant=no_number) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert ["gradient_norm" in line for line in lines] == [False, False, True]


# --- fp16 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scaled(tmp_path):
    """Make a stepper of w · x by SGD of rate 1 under a gradient scaler: (stepper, w, schedule, a step)."""
    AcceleratorState._reset_state()

    def make(scale=1024.0, **settings):
        accelerator = Accelerator(cpu=True)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        told = []
        stepper = Stepper(
            accelerator, accelerator.prepare_optimizer(optimizer), schedule, RunSettings(**settings), told.append
        )

        def step(x, loss=None):
            out = layer(torch.tensor([[x]])).sum()
            stepper.backward(out if loss is None else out * loss)
            stepper.optimizer_step(1, StepLocation(tmp_path, 0, 0, 0, None))
            return float(layer.weight.detach())

        return stepper, schedule, step, told

    yield make
    AcceleratorState._reset_state()


def test_norms_are_told_and_clipped_without_the_scale(scaled):
    stepper, schedule, step, _ = scaled(clip_norm=0.5)
    assert step(2.0) == pytest.approx(-0.5, abs=1e-5)
    assert float(stepper.gradient_norm) == pytest.approx(2.0)
    assert schedule.last_epoch == 1
    stepper, _, step, _ = scaled()
    assert step(2.0) == -2.0
    assert float(stepper.gradient_norm) == 2.0


def test_gradients_that_overflow_when_scaled_are_left_to_the_scaler(scaled):
    stepper, schedule, step, told = scaled(scale=2.0**127)
    assert step(4.0) == 0  # 4 · 2^127 is no float32
    assert stepper.accelerator.scaler.get_scale() == 2.0**126
    assert schedule.last_epoch == 0
    assert step(1.0) == -1.0
    assert (schedule.last_epoch, told) == (1, [])


def test_a_loss_that_is_no_number_stops_fp16_too(scaled):
    _, _, step, _ = scaled()
    with pytest.raises(NonFiniteError, match="loss nan"):
        step(1.0, loss=float("nan"))


def test_or_is_skipped_and_the_scaler_goes_on(scaled):
    stepper, schedule, step, told = scaled(on_nonfinite="skip")
    assert step(1.0, loss=float("nan")) == 0
    assert stepper.skipped == 1
    assert "skipped (1 in a row)" in told[0]
    assert step(1.0) == -1.0
    assert (stepper.skipped, schedule.last_epoch) == (0, 1)


def test_gradients_that_are_infinite_without_a_scale_stop_fp16(scaled):
    _, _, step, _ = scaled(scale=0.5)
    with pytest.raises(NonFiniteError, match=r"loss 0\.0, gradient norm inf"):
        step(3e38, loss=3e38)  # w is 0, and so is the loss; its gradient is their product


def test_a_fused_optimizer_makes_the_same_updates_and_keeps_an_explicit_choice():
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 8)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([weight], lr=0.1) for weight in weights]
    _fuse(optimizers[0])
    assert optimizers[0].param_groups[0]["fused"]
    for weight, optimizer in zip(weights, optimizers, strict=True):
        for _ in range(3):
            weight.grad = weight.detach() ** 3
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])
    chosen = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1, foreach=True)
    _fuse(chosen)
    assert not chosen.param_groups[0]["fused"]


# --- checks that are read late, as on a GPU --------------------------------------------------------------------------


@pytest.fixture
def fused(tmp_path):
    """Make a stepper of a small layer by a fused optimizer: (stepper, a step, all weights and states)."""
    AcceleratorState._reset_state()

    def make(kind=torch.optim.AdamW, *, checks_late, fused=True, on_nonfinite="stop", **options):
        accelerator = Accelerator(cpu=True)
        layer = nn.Linear(3, 2)
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 0.5)
        optimizer = kind(layer.parameters(), lr=0.1, fused=fused, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        settings = RunSettings(clip_norm=1.0, on_nonfinite=on_nonfinite)
        prepared = accelerator.prepare_optimizer(optimizer)
        stepper = Stepper(accelerator, prepared, schedule, settings, checks_late=checks_late)

        def step(number, factor=1.0, extra=lambda layer: 0.0):
            out = layer(torch.linspace(-1, 1, 3) + number / 8).square().sum()
            stepper.backward(out * factor + extra(layer))
            stepper.optimizer_step(1, StepLocation(tmp_path, 0, number, 0, None))

        def numbers():
            states = [value for state in optimizer.state.values() for value in state.values()]
            return [tensor.detach().clone() for tensor in (*layer.parameters(), *states)]

        return stepper, step, numbers

    yield make
    AcceleratorState._reset_state()


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


FUSED = [(torch.optim.AdamW, {}), (torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9})]


@pytest.mark.parametrize(("kind", "options"), FUSED)
def test_a_late_check_changes_no_bit_of_a_step(fused, kind, options):
    (late, step, numbers), (waiting, other, expected) = (fused(kind, checks_late=c, **options) for c in (True, False))
    for number in range(5):
        step(number)
        other(number)
        assert (late._pending is not None) == (number > 0)  # the first step creates the states
        assert waiting._pending is None
        assert_same_bits(numbers(), expected())
    late.finish_check()
    assert (late.schedule.last_epoch, waiting.schedule.last_epoch) == (5, 5)


@pytest.mark.parametrize(("kind", "options"), FUSED)
@pytest.mark.parametrize("bad", [
    {"factor": float("nan")}, {"extra": lambda layer: (0 * layer.weight).abs().sum().sqrt()},
], ids=["loss", "gradient"])  # fmt: skip
def test_a_step_that_fails_changes_nothing_and_ends_with_the_next(fused, kind, options, bad):
    stepper, step, numbers = fused(kind, checks_late=True, **options)
    for number in range(3):
        step(number)
    before = numbers()
    step(3, **bad)
    assert_same_bits(numbers(), before)
    with pytest.raises(NonFiniteError, match=r"step 4: (.|\n)*gradient norm nan(.|\n)*--step 4(.|\n)*step=3"):
        step(4)
    assert_same_bits(numbers(), before)
    stepper.finish_check()  # an error is raised once


def test_what_the_device_cannot_leave_out_is_checked_at_once(fused):
    stepper, step, numbers = fused(torch.optim.SGD, checks_late=True, momentum=0.9)
    with pytest.raises(NonFiniteError, match="step 1"):
        step(0, float("nan"))
    assert not stepper.optimizer.state
    _, step, numbers = fused(checks_late=True, fused=False)
    step(0)
    before = numbers()
    with pytest.raises(NonFiniteError, match="step 2"):
        step(1, float("nan"))
    assert_same_bits(numbers(), before)
    stepper, step, _ = fused(checks_late=True, on_nonfinite="skip")
    for number, factor in enumerate((1.0, float("nan"), 1.0)):
        step(number, factor)
        assert (stepper.skipped, stepper._pending) == (number % 2, None)
    assert stepper.schedule.last_epoch == 2


@pytest.mark.slow
def test_a_run_with_late_checks_has_the_same_bits_and_saves_and_logs_no_step_that_failed(tmp_path, monkeypatch):
    late = True

    class Checked(Stepper):
        def __init__(self, accelerator, optimizer, *rest):
            _fuse(optimizer)
            super().__init__(accelerator, optimizer, *rest, checks_late=late)

    monkeypatch.setattr("mmcon.training.run.Stepper", Checked)
    found = train(tmp_path / "late", memory=True, log_every=5, max_steps=6)
    for at, every in ((4, 5), (5, 100)):  # a step with a log line, and one with a checkpoint
        folder = tmp_path / f"at-{at}"
        with pytest.raises(NonFiniteError, match=f"step {at + 1}: "):
            train(folder, at=at, act="nan", log_every=every, max_steps=6)
        assert all(line["loss"] == line["loss"] for line in MetricsLog(folder / "metrics.jsonl").lines())
        assert Checkpoints(folder / "checkpoints").newest().name == "step-000000004"
    late = False
    assert train(tmp_path / "waiting", memory=True, log_every=5, max_steps=6) == found
