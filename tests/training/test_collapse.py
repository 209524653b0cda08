"""The monitor of collapsed embeddings, and the range test of the learning rate."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from launched_recipes import launch
from torch.nn.functional import normalize

import mmcon
from mmcon.affinity import SameLabel
from mmcon.batch import Index
from mmcon.training.collapse import CHECKED_STEPS, CollapseMonitor, embedding_rank, embedding_spread
from mmcon.training.config import RANGE_TEST_STEPS
from mmcon.training.range_test import HIGHEST, LOWEST, range_schedule, range_test_report, suggested_rate


def rows(n=64, d=16, spread=1.0, seed=0):
    """Unit rows around one direction; the larger the spread, the further apart."""
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return normalize(torch.eye(d)[:1] + spread * noise, dim=1)


def test_spread_and_rank_of_known_embeddings():
    assert float(embedding_spread(torch.eye(4)[:1].repeat(8, 1))) == 0
    assert float(embedding_rank(torch.eye(4)[:1].repeat(8, 1))) == 1
    # Four orthogonal rows: the mean has the squared length 4 · (1/4)² = 1/4; all four dimensions are used equally.
    assert float(embedding_spread(torch.eye(4))) == pytest.approx(0.75)
    assert float(embedding_rank(torch.eye(4))) == pytest.approx(4)
    # The mean over all pairs, a row with itself included, of 1 − cosine.
    z = rows()
    assert float(embedding_spread(z)) == pytest.approx(float(1 - (z @ z.T).mean()), abs=1e-5)


def watched(z, labels):
    """A monitor whose objective has computed the loss of the rows, the loss, and what the monitor says."""
    objective, said = mmcon.Objective(affinity=SameLabel(), temperature=0.1), []
    loss = objective(z, Index({"label": labels}))
    return CollapseMonitor(objective, learning_rate=4e-3, log=said.append), loss, said


def test_collapsed_embeddings_are_reported_within_thirty_steps_with_cause_and_flag():
    monitor, loss, said = watched(rows(spread=1e-3), torch.arange(64) % 3)
    assert float(loss) == pytest.approx(math.log(63), rel=1e-3)
    for step in CHECKED_STEPS:
        measured = monitor.measure(step, loss, torch.tensor(5.0 if step == 10 else 1e-3))
        assert measured["embedding_spread"] < 1e-2
    assert CHECKED_STEPS[-1] <= 30
    assert len(said) == 1
    for text in ("step 15", "ln(63)", "norm fell from 5 to 0.001", "--learning-rate 0.0004", "mlp-batch-norm"):
        assert text in said[0]
    assert len(monitor.warnings) == 1


@pytest.mark.parametrize("steps", [(10,), (10, 15)])
def test_one_collapsed_measurement_or_none_is_no_warning(steps):
    monitor, loss, said = watched(rows(spread=1e-3), torch.arange(64) % 3)
    monitor.measure(5, loss, None)
    monitor.objective = watched(rows(), torch.arange(64) % 3)[0].objective
    for step in steps:
        monitor.measure(step, loss, None)
    assert said == monitor.warnings == []


def test_a_recovery_is_recorded():
    monitor, loss, _ = watched(rows(spread=1e-3), torch.arange(64) % 3)
    monitor.measure(10, loss, None)
    monitor.measure(15, loss, None)
    monitor.objective = watched(rows(), torch.arange(64) % 3)[0].objective
    monitor.measure(20, loss, None)
    assert "step 20" in monitor.warnings[1]
    assert "no longer collapsed" in monitor.warnings[1]


def test_a_second_collapse_is_reported_too():
    monitor, loss, said = watched(rows(spread=1e-3), torch.arange(64) % 3)
    collapsed, healthy = monitor.objective, watched(rows(), torch.arange(64) % 3)[0].objective
    for number, state in enumerate("cccHcc", start=2):
        monitor.objective = healthy if state == "H" else collapsed
        monitor.measure(10 * number, loss, None)
    assert [text.partition(":")[0] for text in monitor.warnings] == ["step 30", "step 50", "step 70"]
    assert len(said) == 2


def test_an_objective_without_embeddings_is_not_measured():
    assert CollapseMonitor(object(), learning_rate=1.0, log=print).measure(10, torch.tensor(1.0), None) == {}


def test_the_warning_is_in_the_log_and_in_the_results(tmp_path, capsys):
    """A model whose head is constant collapses: the run says so and goes on."""
    run = mmcon.Run(tmp_path / "run", settings=mmcon.RunSettings(epochs=2, max_steps=16, log_every=10), cpu=True)
    source = mmcon.TensorSource(torch.rand(64, 1, 8, 8), modality="image", labels=torch.arange(64) % 4)
    view = mmcon.create_view("image/crop-flip", size=8)
    sampler = mmcon.create_sampler("sampler/uniform", labels=source.labels, batch_size=8, seed=0)
    loader = run.loader(source, {"image": [view, view]}, sampler)
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", in_channels=1, image_size=8, width=4)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=4)})
    torch.nn.init.zeros_(model.heads["shared"]["image"].layers[2].weight)
    objective = mmcon.Objective(affinity=SameLabel(), temperature=0.1)
    trained = run.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-6), objective=objective)
    for batch in run.batches(loader):
        run.step(objective(trained(batch), batch))
    run.finish({"knn": 0.5})
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "collapsed" in results["warnings"][0]
    assert "ln(15)" in results["warnings"][0]
    assert "warning: step 15: the embeddings" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["embedding_spread"] < 0.01 for line in lines] == [True, True]


def test_the_range_test_rises_evenly_in_the_logarithm():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, seen = range_schedule(optimizer), []
    for _ in range(RANGE_TEST_STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert (seen[0], seen[-1]) == (pytest.approx(2 * LOWEST), pytest.approx(2 * HIGHEST))
    assert seen[50] / seen[49] == pytest.approx(seen[1] / seen[0])


def test_the_range_test_has_its_steps_and_a_temporary_folder():
    flags = mmcon.RunConfig(find_learning_rate=True, accumulate=3, resume=True, epochs=2, output_dir=Path("runs/x"))
    config = flags.apply_tiny(max_steps=4)
    assert (config.max_steps, config.log_every, config.resume) == (99, 1, False)
    assert config.output_dir not in (None, Path("runs/x"))
    assert not config.output_dir.exists()  # created by the main rank, and removed at exit


@pytest.mark.slow
def test_a_recipe_suggests_a_learning_rate_and_leaves_nothing(tmp_path):
    said = launch("--find-learning-rate", "--batch-size", "16", "--output-dir", tmp_path / "run")
    rate = float(re.search(r"suggestion: --learning-rate (\S+)", said).group(1))
    assert 1e-6 < rate < 1e-1
    assert not (tmp_path / "run").exists()


def curve(losses, spreads=None):
    rates = [10.0 ** (k / 10 - 4) for k in range(len(losses))]
    spreads = spreads or [0.5] * len(losses)
    columns = zip(rates, losses, spreads, strict=True)
    return [{"learning_rate": r, "loss": loss, "embedding_spread": s} for r, loss, s in columns]


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_loss():
    falls, rises = [4 - 0.05 * k for k in range(20)], [3 + 0.5 * k for k in range(20)]
    lines = curve(falls + rises)
    rate = suggested_rate(lines)
    # The smoothed loss lags: its minimum is one to five steps after the loss's, which is at index 20.
    assert lines[20]["learning_rate"] / 10 <= rate <= lines[25]["learning_rate"] / 10
    assert f"suggestion: --learning-rate {rate:.1e}" in range_test_report(lines)


def test_collapsed_steps_at_the_end_do_not_count():
    losses = [4.3 - 0.005 * k for k in range(20)] + [4.14] * 20
    healthy = suggested_rate(curve(losses[:20]))
    assert suggested_rate(curve(losses, [0.5] * 20 + [1e-4] * 20)) == healthy
    assert suggested_rate(curve([4.0 + 0.1 * k for k in range(20)])) is None
    assert "no rate lowered the loss" in range_test_report(curve([4.0 + 0.1 * k for k in range(20)]))
