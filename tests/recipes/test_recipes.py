"""The reference recipe by its real command: it trains, reports, resumes, and refuses bad input with one clear error."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from inference_cases import check_saved_model
from launched_recipes import RECIPE, launch, metrics, page_of
from PIL import Image

import mmcon
from mmcon.evaluation.second_stage import metrics_table
from mmcon.evaluation.statistics import classify
from mmcon.sources.base import Subset

ROOT = Path(__file__).parents[2]


def printed_table(text):
    """The columns and the names of the rows of the table of accuracies in a text."""
    lines = text[text.index("top-1 [95 % interval]") :].splitlines()[1:]
    rows = [line for line in lines if re.match(r"  \S.*\[\d\.\d{3}, \d\.\d{3}\]", line)]
    assert all(re.fullmatch(r"  .{16}(  \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]){2}", row) for row in rows)
    return lines[0].split("  ")[-2:], [row[2:18].strip() for row in rows]


def test_the_readme_shows_the_table_of_the_command():
    metrics = {
        name: dict.fromkeys(("linear_probe", "knn"), classify(torch.eye(4), torch.arange(4), torch.arange(4)))
        for name in ("trained encoder", "random encoder", "raw pixels")
    }
    assert printed_table((ROOT / "README.md").read_text()) == printed_table(metrics_table(metrics, 4))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["supcon", "simclr", "cross-entropy"])
def test_the_recipe_trains_and_leaves_its_figures(tmp_path, objective):
    folder = tmp_path / "run"
    said = launch("--tiny", "--objective", objective, "--output-dir", folder)
    assert str(folder) in said
    assert printed_table(said) == printed_table((ROOT / "README.md").read_text())
    figures = json.loads((folder / "results.json").read_text())
    assert set(figures["linear_probe"]) == set(figures["knn"]) == {"top1", "top5"}
    for name in ("random_encoder", "raw_pixels"):
        assert set(figures[name]) == {"linear_probe_top1", "knn_top1"}
    assert 0.3 < figures["raw_pixels"]["linear_probe_top1"] <= 1
    assert figures["linear_probe"]["top1"] <= figures["linear_probe"]["top5"] <= 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["objective"] == objective
    sections, kinds = page_of(folder)
    assert {"results", "curves", "views", "neighbors", "map", "confusion", "out-of-place", "run"} == sections
    assert kinds == {"picture"}
    assert [line["step"] for line in metrics(folder)] == list(range(1, 8))
    test = mmcon.create_source("samples/fashion", split="test")
    model, tested = check_saved_model(folder, test), Subset(test, range(0, len(test), 10))
    right = [
        label == test.classes[own] for label, own in zip(model.classify(tested).labels, tested.labels, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(figures["linear_probe"]["top1"])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["supcon", "simclr", "cross-entropy"])
def test_the_recipe_mixes_samples(recipe, tmp_path, objective):
    folder = tmp_path / "run"
    settings = {"objective": objective, "mix": "cutmix", "max_steps": 2, "batch_size": 32}
    recipe.main(recipe.Config(output_dir=folder, cpu=True, tiny=True, **settings))
    assert [line["loss"] > 0 for line in metrics(folder)] == [True, True]


@pytest.mark.slow
def test_the_recipe_trains_by_the_other_objectives(recipe, tmp_path, monkeypatch):
    first, others = {}, ("drop-same-class", "triplet", "max-margin")
    data = str(photos(tmp_path / "photos", images=6))
    for settings in (*({"objective": name} for name in others), {"form": "in"}, {}):
        folder = tmp_path / ("-".join(settings.values()) or "supcon")
        monkeypatch.setattr(recipe.dry_run, "temporary_folder", lambda _, folder=folder: folder)
        recipe.main(recipe.Config(data=data, image_size=16, cpu=True, dry_run=True, log_every=1, **settings))
        (line,) = metrics(folder)
        first[folder.name] = line["loss"]
    assert len(set(first.values())) == 5
    assert first["in"] < first["supcon"]  # by Jensen's inequality, on the same rows


def test_a_queue_and_chunks_of_a_loss_without_candidates_are_refused(recipe):
    from mmcon.errors import ConfigError

    for settings in ({"objective": "triplet", "chunk_size": 8}, {"objective": "max-margin", "queue_size": 64}):
        with pytest.raises(ConfigError, match="a contrastive objective"):
            recipe.main(recipe.Config(cpu=True, tiny=True, **settings))


@pytest.mark.slow
def test_flags_reach_the_warp_a_learned_temperature_a_fixed_order_and_diagnostics(recipe, tmp_path):
    settings = {"objective": "simclr", "view": "image/simclr-supcon", "warp": 1.0, "sampler": "fixed-order"}
    more = {"learn_temperature": True, "diagnostics": True, "max_steps": 2, "batch_size": 32}
    recipe.main(recipe.Config(output_dir=tmp_path / "run", cpu=True, tiny=True, **settings, **more))
    first, second = metrics(tmp_path / "run")
    assert first["temperature"] != second["temperature"]
    assert first["positives_per_anchor"] == 1
    assert 0 < second["gradient_on_positives"] < 1


def test_a_warp_for_a_view_without_one_is_refused(recipe):
    from mmcon.errors import InputError

    assert recipe.make_view(recipe.Config(view="image/simclr-supcon", warp=0.0), "image/simclr-supcon")
    config = recipe.Config(warp=0.5)
    with pytest.raises(InputError, match="warp"):
        recipe.make_view(config, config.view)
    assert recipe.make_view(config, config.linear_view)


@pytest.mark.slow
def test_a_stopped_recipe_goes_on_as_if_it_had_not_been(tmp_path):
    steps = "--tiny", "--checkpoint-every", "2", "--batch-size", "64"
    launch(*steps, "--output-dir", tmp_path / "whole")
    launch(*steps, "--output-dir", tmp_path / "parts", "--max-steps", "3")
    launch(*steps, "--output-dir", tmp_path / "parts", "--resume")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert [line["loss"] for line in parts] == [line["loss"] for line in whole]
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")]
    assert results[0] == results[1]


def photos(folder, classes=2, images=12):
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class {c}").mkdir(parents=True)
        for i in range(images):
            size = (int(rng.integers(40, 60)), int(rng.integers(40, 60)), 3)
            Image.fromarray(rng.integers(0, 128 + 64 * c, size, dtype=np.uint8)).save(
                folder / f"class {c}" / f"{i}.png"
            )
    return folder


@pytest.mark.slow
def test_a_folder_of_photos_of_any_size_with_a_broken_one(tmp_path):
    data = photos(tmp_path / "photos")
    (data / "class 0" / "broken.jpg").write_bytes(b"no picture")
    common = "--data", data, "--image-size", 32, "--batch-size", 8, "--epochs", 2, "--workers", 1
    launch(*common, "--output-dir", tmp_path / "run")
    listed = [json.loads(line)["file"] for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [Path(file).name for file in listed] == ["broken.jpg"]
    refused = launch(*common, "--output-dir", tmp_path / "strict", "--max-unreadable", 0.0, fails=True)
    assert "broken.jpg" in refused


@pytest.fixture
def recipe(monkeypatch):
    """The recipe as a module, for what it refuses before it trains."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("recipe_under_test", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "./nowhere"}, "nowhere"),
        ({"encoder": "resnet51"}, "resnet50"),
        ({"view": "image/simcrl"}, "image/simclr"),
        ({"views": 1, "batch_size": 12}, "class-aware"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_one_clear_error_with_the_fix(recipe, tmp_path, settings, message):
    from mmcon.errors import MmconError

    with pytest.raises(MmconError, match=message):
        recipe.main(recipe.Config(output_dir=tmp_path / "run", cpu=True, tiny=True, **settings))


def test_a_folder_with_one_class_is_refused(recipe, tmp_path):
    from mmcon.errors import MmconError

    data = photos(tmp_path / "photos", classes=1)
    with pytest.raises(MmconError, match="class"):
        recipe.main(recipe.Config(data=str(data), output_dir=tmp_path / "run", cpu=True, tiny=True))


def test_an_unknown_key_in_a_config_file_is_refused(recipe, tmp_path):
    from mmcon.errors import ConfigError
    from mmcon.training.config import parse

    file = tmp_path / "config.yaml"
    file.write_text("temprature: 0.2\n")
    with pytest.raises(ConfigError, match="temperature"):
        parse(recipe.Config, args=["--config", str(file)])
    file.write_text("temperature: 0.2\n")
    assert parse(recipe.Config, args=["--config", str(file), "--epochs", "3"]).temperature == 0.2


def test_the_recipe_is_one_file_that_can_be_read():
    assert len(RECIPE.read_text().splitlines()) <= 300
