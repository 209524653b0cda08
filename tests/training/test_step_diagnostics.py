"""What a log line says of the loss: learned temperatures, the loss of each block, and diagnostics on request."""

import math

import pytest
import torch

from mmcon.affinity import SameLabel
from mmcon.batch import Index
from mmcon.errors import ConfigError
from mmcon.losses import LearnableTemperature, presets
from mmcon.objective.objective import Block, Objective
from mmcon.objective.queue import Queue
from mmcon.training.config import RunConfig, parse
from mmcon.training.run import Run, RunSettings

TABLE = Index({"sample": torch.arange(6).repeat(2), "label": torch.arange(6).repeat(2) // 2})


def rows(seed=0, n=12):
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=1)


def test_a_learned_temperature_is_logged_and_a_fixed_one_is_not():
    objective = Objective(affinity=SameLabel(), temperature=LearnableTemperature(initial=0.2).double())
    objective(rows(), TABLE)
    assert objective.log_values() == {"temperature": pytest.approx(0.2)}
    fixed = Objective(affinity=SameLabel(), temperature=0.2)
    fixed(rows(), TABLE)
    assert fixed.log_values() == {}


def test_the_loss_of_each_of_several_blocks_is_logged():
    objective = Objective(affinity=SameLabel(), temperature=0.2, blocks=[Block("a"), Block("b"), Block("a", "b")])
    loss = objective({"space": {"a": rows(), "b": rows(1)}}, {"a": TABLE, "b": TABLE})
    logged = objective.log_values()
    assert set(logged) == {"loss/space/a", "loss/space/b", "loss/space/a>b"}
    assert sum(logged.values()) == pytest.approx(float(loss))


def test_the_diagnostics_of_a_step_have_the_bound_where_it_holds():
    objective = Objective(**presets.simclr(temperature=0.2))
    objective.records = {}
    loss = float(objective(rows(), TABLE))
    logged = objective.log_values(independent_negatives=True)
    assert logged["bound"] == pytest.approx(math.log(11) - loss)  # log K - loss: 10 negatives and the positive
    assert logged["positives_per_anchor"] == 1
    assert 0 < logged["gradient_on_positives"] < 1
    assert "bound" not in objective.log_values()  # batches that are not uniform
    assert set(objective.records) == {"space/rows"}
    queue = Queue(size=4)
    queue.push({"space": {"rows": rows(2, 4)}}, {"rows": Index({"sample": torch.arange(90, 94)})})
    queued = Objective(**presets.moco(temperature=0.2, queue=queue))
    queued.records = {}
    queued({"space": {"rows": rows()}}, {"rows": Index({"sample": TABLE["sample"]})})
    assert "bound" not in queued.log_values(independent_negatives=True)


def test_diagnostics_need_a_contrastive_objective(tmp_path):
    run = Run(tmp_path / "run", settings=RunSettings(diagnostics=True), cpu=True)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="contrastive objective"):
        run.prepare(model, optimizer, objective=torch.nn.CrossEntropyLoss())
    objective = Objective(affinity=SameLabel(), temperature=0.2)
    run.prepare(model, optimizer, objective=objective)
    assert objective.records == {}
    run.close()


def test_trackers_have_the_name_of_transformers_too():
    assert parse(RunConfig, args=["--report-to", "tensorboard"]).trackers == ("tensorboard",)
    assert parse(RunConfig, args=["--trackers", "tensorboard", "wandb"]).trackers == ("tensorboard", "wandb")
