"""Presets as published: what they say, that each can be built and stepped, and the recipe's further flags."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from mmcon.errors import ConfigError, MmconError
from mmcon.training.config import parse
from mmcon.training.optim import scaled_learning_rate
from mmcon.training.presets import presets_of

RECIPE = Path(__file__).parents[2] / "recipes" / "imagenet_supcon.py"
PRESETS = sorted(presets_of(RECIPE))


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_of_presets", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def read(recipe, *words):
    return parse(recipe.Config, args=list(words), recipe=RECIPE)


def test_published_values(recipe):
    assert PRESETS == ["resnet200-stacked-randaugment", "resnet50-autoaugment", "resnet50-queue"]
    resnet50 = read(recipe, "--preset", "resnet50-autoaugment")
    assert resnet50.learning_rate == pytest.approx(scaled_learning_rate(0.4, resnet50.batch_size))
    assert (resnet50.batch_size, resnet50.epochs, resnet50.warmup_epochs) == (6144, 350, 12)
    assert (resnet50.temperature, resnet50.loss_scale, resnet50.weight_decay) == (0.1, "temperature", 1e-3)
    assert (resnet50.linear.label_smoothing, resnet50.linear.optimizer) == (0.05, "rmsprop")
    resnet200 = read(recipe, "--preset", "resnet200-stacked-randaugment")
    assert resnet200.learning_rate == pytest.approx(scaled_learning_rate(0.2, resnet200.batch_size))
    assert (resnet200.epochs, resnet200.weight_decay, resnet200.strength) == (700, 1e-4, 1.0)
    queue = read(recipe, "--preset", "resnet50-queue")
    assert (queue.queue_size, queue.temperature, queue.batch_size, queue.momentum) == (8192, 0.07, 1024, 0.999)
    assert queue.learning_rate == pytest.approx(scaled_learning_rate(0.03, queue.batch_size))


def test_files_and_flags_stand_over_a_preset(recipe, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nlinear: {epochs: 3}\n")
    chosen = read(recipe, "--preset", "resnet50-autoaugment", "--config", str(file), "--linear.learning-rate", "0.3")
    assert (chosen.epochs, chosen.linear.epochs, chosen.linear.learning_rate) == (7, 3, 0.3)
    assert chosen.linear.decay_factor == 0.97
    assert chosen.batch_size == 6144


def test_presets_that_are_not_there(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"resnet50-queue(.|\n)*did you mean 'resnet50-queue'"):
        read(recipe, "--preset", "resnet50-queu")
    file = tmp_path / "mine.yaml"
    file.write_text("linear: {epoch: 3}\n")
    with pytest.raises(ConfigError, match="keys of LinearStage"):
        read(recipe, "--config", str(file))


def test_a_copied_recipe_brings_its_presets(tmp_path, capsys):
    from mmcon import cli

    assert cli.main(["recipe", "copy", "imagenet_supcon", "--to", str(tmp_path)]) == 0
    copied = presets_of(tmp_path / "imagenet_supcon.py")
    assert sorted(copied) == PRESETS
    assert all(file.is_relative_to(tmp_path) for file in copied.values())
    assert "resnet50-queue" in capsys.readouterr().out
    # A recipe that was copied alone finds those that came with the package.
    (tmp_path / "alone").mkdir()
    assert sorted(presets_of(tmp_path / "alone" / "imagenet_supcon.py")) == PRESETS


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_dry_runs_of_presets(recipe, preset, capfd):
    # At 96 pixels in place of 224, to be quick; everything else is as published.
    recipe.main(read(recipe, "--preset", preset, "--dry-run", "--cpu", "--image-size", "96"))
    said = capfd.readouterr().out
    assert "step 1/1" in said
    assert "bundled images at 96×96 pixels replace ImageNet; the estimate is for its 1,281,167 images" in said
    assert said.count("GPU hours, estimated") == 2
    rows = f"{2 * read(recipe, '--preset', preset).batch_size:,} rows"
    assert rows in said


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


EVERYTHING = {
    "queue_size": 48,
    "momentum": 0.9,
    "ema_decay": 0.8,
    "online_probe": True,
    "sampler": "balanced",
    "batch_size": 40,
    "projection_dim": 16,
    "schedule": "polynomial",
    "optimizer": "lars",
    "learning_rate": 0.5,
    "warmup_epochs": 0.1,
    "loss_scale": "temperature",
    "linear_stage": "published",
    "class_weight_power": 0.5,
    "cpu": True,
    "tiny": True,
}


@pytest.mark.slow
def test_everything_beside_the_model_resumes_exactly(recipe, tmp_path):
    stage = recipe.LinearStage(epochs=1)

    def go(name, **more):
        recipe.main(recipe.Config(output_dir=tmp_path / name, **EVERYTHING, linear=stage, **more))
        return json.loads((tmp_path / name / "results.json").read_text())

    whole = go("whole", max_steps=5, checkpoint_every=2)
    go("parts", max_steps=3, checkpoint_every=2)
    parts = go("parts", max_steps=5, checkpoint_every=2, resume=True)
    told = ("step", "loss", "probe_loss", "probe_top1", "learning_rate")
    assert [[line[name] for name in told] for line in lines(tmp_path / "whole")] == [
        [line[name] for name in told] for line in lines(tmp_path / "parts")
    ]
    assert whole == parts
    assert set(whole["averaged_encoder"]) == {"linear_probe_top1", "knn_top1"}
    assert set(whole["linear_stage"]) == {"top1", "top5"}
    assert len(whole["linear_probe_top1_by_class"]) == 10
    assert "ankle boot" in whole["linear_probe_top1_by_class"]


@pytest.mark.slow
def test_cached_steps_of_a_batch_in_chunks(recipe, tmp_path):
    common = {"tiny": True, "cpu": True, "max_steps": 2, "batch_size": 64}
    recipe.main(recipe.Config(output_dir=tmp_path / "run", chunk_size=32, **common))
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["chunk_size"] == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "cross-entropy", "queue_size": 8}, "--queue-size"),
        ({"objective": "cross-entropy", "chunk_size": 8}, "--chunk-size"),
        ({"encoder": "nobody/nothing", "pretrained": True}, "give the folder as the name"),
        ({"pretrained": True}, "pretrained"),
        ({"sampler": "balanced", "batch_size": 7}, "batch_size"),
    ],
)
def test_flags_that_do_not_go_together(recipe, tmp_path, monkeypatch, settings, message):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MmconError, match=message):
        recipe.main(recipe.Config(output_dir=tmp_path / "run", cpu=True, tiny=True, **settings))
