"""The recipe of BYOL, SimSiam and distillation, in the process of the test, on the bundled drawings."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from inference_cases import image_model
from torch import nn

import mmcon
from mmcon.errors import ConfigError
from mmcon.inference.distillation import with_teacher
from mmcon.sources.base import TensorSource
from mmcon.training.checkpoint import Checkpoints, load_checkpoint

RECIPE = Path(__file__).parents[2] / "recipes" / "image_prediction.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("image_prediction", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the names of annotations there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["byol", "similarity", "regression"])
def test_the_recipe_trains_and_evaluates(recipe, tmp_path, objective):
    teacher = None if objective == "byol" else str(image_model(tmp_path / "teacher"))
    flags = {"tiny": True, "cpu": True, "batch_size": 32, "output_dir": tmp_path / "run", "teacher": teacher}
    batches = 2 if objective == "byol" else 1
    recipe.main(recipe.Config(objective=objective, accumulate=batches, **flags))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < results["linear_probe"]["top1"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    state = load_checkpoint(Checkpoints(tmp_path / "run" / "checkpoints").newest())
    if objective == "byol":
        assert int(state["tracked"]["momentum"]["step"]) == 2  # of 4 batches
    width = mmcon.load(tmp_path / "run").embedding_dim("image", "shared")
    assert width == (mmcon.load(teacher).embedding_dim("image") if objective == "regression" else 128)


def test_a_teacher_goes_with_a_distillation_alone(recipe):
    for flags in ({"objective": "regression"}, {"objective": "byol", "teacher": "timm/resnet18"}):
        with pytest.raises(ConfigError, match="--teacher goes with --objective similarity or regression"):
            recipe.main(recipe.Config(**flags))
    assert len(RECIPE.read_text().splitlines()) <= 200


def test_the_features_of_a_teacher_are_a_column_of_unit_rows(tmp_path):
    images = TensorSource(torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8), labels=torch.arange(7) % 2)
    teacher = mmcon.load(image_model(tmp_path / "teacher"))
    found = with_teacher(images, teacher, batch_size=3)
    expected = nn.functional.normalize(teacher.encode(images, normalize=False, show_progress=False), dim=1)
    torch.testing.assert_close(found.columns["teacher"], expected)
    assert torch.equal(found.ids, images.ids)
    assert not found.columns["teacher"].requires_grad
    view = mmcon.create_view("image/plain", size=16)
    loader = mmcon.ViewLoader(
        found,
        {"image": [view, view]},
        mmcon.create_sampler("sampler/uniform", labels=found.ids, batch_size=4, seed=0),
        seed=0,
    )
    batch = next(iter(loader))
    rows = [found.ids.tolist().index(sample) for sample in batch.index["image"]["sample"].tolist()]
    torch.testing.assert_close(batch.index["image"]["teacher"], expected[rows])
