"""Progress: what a plain line shows, when, and how the remaining time is smoothed."""

import time

import pytest
import torch

from mmcon.training.progress import Progress, _duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_line_has_epoch_loss_throughput_views_and_the_remaining_time(clock, capsys):
    with Progress("step", 40, 10, epoch_length=20, every_seconds=10.0) as progress:
        clock[0] += 9
        progress.advance(11)
        assert capsys.readouterr().out == ""
        clock[0] += 9
        progress.advance(20, torch.tensor(1.25), {"views_per_second": 1234.4, "views": 0.05})
        # Nine steps in nine seconds after the first: twenty are left.
        assert capsys.readouterr().out == "step 20/40  epoch 1/2  loss 1.2500  1,234 views/s  5% in views  0:20 left\n"
        progress.advance(40)  # the last step of a training always has a line
    assert capsys.readouterr().out.startswith("step 40/40  epoch 2/2")


def test_the_first_step_tells_nothing_of_the_others(clock, capsys):
    with Progress("step", 100, epoch_length=100) as progress:
        clock[0] += 60  # it compiles
        progress.advance(1)
        assert capsys.readouterr().out == "step 1/100  epoch 1/1\n"
        clock[0] += 20
        progress.advance(21)
        assert capsys.readouterr().out.endswith("1:19 left\n")


def test_the_remaining_time_is_smoothed(clock):
    progress = Progress("step", 1000, every_seconds=1.0).__enter__()
    for step in range(1, 61):
        clock[0] += 1
        progress.advance(step)
    clock[0] += 10  # one slow step
    progress.advance(61)
    # The share of ten seconds among sixty is 1 − e^(−1/6) = .154: 1 + .154 · 9 = 2.38 s a step.
    assert progress._seconds == pytest.approx(2.38, abs=0.01)
    progress.__exit__(None, None, None)


def test_short_phases_and_inner_phases_show_nothing(clock, capsys):
    with Progress("features", 5) as outer:
        outer.advance(5)
        with Progress("score", 5) as inner:
            clock[0] += 20
            inner.advance(1)
        clock[0] += 20
        outer.advance(5)
    assert capsys.readouterr().out == "features 5/5  0:00 left\n"
    with Progress("features of a model, train", None) as unknown:
        clock[0] += 20
        unknown.advance(7)
    assert capsys.readouterr().out == "features of a model, train 7  \n"


def test_durations():
    assert [_duration(seconds) for seconds in (0.0, 65.0, 3600.0 * 2 + 189)] == ["0:00", "1:05", "2:03:09"]
