"""Recipes of shared spaces by their real commands, and a modality that the package does not know, from docs/."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from inference_cases import check_saved_model
from launched_recipes import launch, metrics, page_of

import mmcon
from mmcon.errors import ConfigError, DataError, InputError, MmconError
from mmcon.loading.loader import one_pass
from mmcon.losses import presets
from mmcon.sources.base import Subset

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
PAGE, PACKAGE = ROOT / "docs" / "new-modality.md", ROOT / "docs" / "new-modality"


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def check_ways(found):
    """Retrieval both ways, with what chance would give beside it."""
    for way in ("first_to_second", "second_to_first"):
        assert found[way]["queries"] > 100
        assert 0 < found[way]["chance_at_1"] < 0.02
        recalls = [found[way][f"recall_at_{k}"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert 0 < found[way]["mean_average_precision"] < 1
    assert 0 < found["alignment"] < 4
    assert 0 < found["gap"] < 2


# --- by one command each ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--channels", "luminance", "chroma", "edges", "--objective", "supcon")])
def test_channels_of_a_picture(tmp_path, more):
    folder = tmp_path / "run"
    launch("--tiny", *more, "--output-dir", folder, recipe=RECIPES / "image_cmc.py")
    found = results_of(folder)
    beside = ["random_encoders", "raw_pixels", "trained_luminance_alone", "trained_chroma_alone"]
    for figures in (found, *(found[name] for name in beside)):
        assert 0.2 < figures["linear_probe"] <= 1
        assert 0.2 < figures["knn"] <= 1
    assert ("trained_edges_alone" in found) == bool(more)
    assert metrics(folder)[-1]["step"] == 6
    test = mmcon.create_source("samples/emoji", split="test")
    model = check_saved_model(folder, test, "trained")
    assert model.classes == test.classes


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["clip", "class-aware", "graded", "cwcl"])
def test_pictures_and_texts(tmp_path, objective):
    folder = tmp_path / "run"
    said = launch("--tiny", "--objective", objective, "--output-dir", folder, recipe=RECIPES / "image_text.py")
    assert "held out, another vendor" in said
    found = results_of(folder)
    for figures in (found, found["random_towers"]):
        for part in ("training_pairs", "another_vendor", "held_out", "held_out_another_vendor"):
            check_ways(figures[part])
            assert 0 <= figures["zero_shot"][part] < 0.2  # of 96 classes, hardly trained
        assert all(value < 0 for value in figures["uniformity"].values())
    assert page_of(folder)[1] == {"picture", "text"}
    losses = [line["loss"] for line in metrics(folder)]
    assert losses[-1] < losses[0]
    model = mmcon.load(folder)
    assert model.encode("red apple", space="shared").shape == model.encode(torch.rand(3, 28, 28), space="shared").shape
    assert model.temperature == pytest.approx(metrics(folder)[-1]["temperature"], rel=0.05)


@pytest.mark.slow
def test_frozen_towers_are_run_once_and_a_table_of_ones_own_serves(tmp_path):
    from PIL import Image

    rows = ["picture,text,topic,split"]
    for i in range(40):
        Image.new("RGB", (36 + i % 3, 40), (6 * i, 90, 250 - 6 * i)).save(tmp_path / f"{i}.png")
        rows += [f"{i}.png,a thing of shade {i},{'dark' if i < 20 else 'light'},{'train' if i % 4 else 'test'}"] * 2
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(rows) + "\n")
    columns = "--image-column", "picture", "--label-column", "topic", "--image-size", 32
    frozen = "--image-tuning", "frozen", "--text-tuning", "frozen", "--precompute"
    common = "--tiny", "--batch-size", 16, "--output-dir", tmp_path / "run"
    launch("--data", table, *columns, *frozen, *common, recipe=RECIPES / "image_text.py")
    found = results_of(tmp_path / "run")
    assert found["held_out"]["first_to_second"]["queries"] == 10
    assert set(found["zero_shot"]) == {"training_pairs", "held_out"}
    towers, random = (
        mmcon.ContrastiveModel.from_pretrained(tmp_path / "run" / "model").encoders,
        found["random_towers"],
    )
    assert random["held_out"] != found["held_out"]  # heads learned
    assert set(towers) == {"image", "text"}


@pytest.mark.slow
def test_three_modalities_some_missing_and_a_pair_that_never_met(tmp_path):
    folder = tmp_path / "run"
    said = launch("--tiny", "--output-dir", folder, recipe=RECIPES / "multimodal.py")
    assert "image-audio" in said
    assert "not paired in training" in said
    assert "audio: 855 of 1,270 samples" in said
    found = results_of(folder)
    for figures in (found, found["random_encoders"]):
        for part in ("training_samples", "held_out"):
            for pair in ("image-text", "image-audio", "text-audio"):
                check_ways(figures[part][pair])
            assert set(figures[part]["uniformity"]) == {"image", "text", "audio"}
        assert set(figures["linear_probe"]) == {"image", "text"}
    assert found["held_out"]["image-audio"]["first_to_second"]["queries"] == 179
    assert page_of(folder)[1] == {"picture", "text", "sound"}
    model = mmcon.load(folder)
    assert model.modalities == ("image", "text", "audio")
    assert set(model.probes) == {"image", "text"}
    assert model.preprocessing["audio"].media == {"rate_hz": 16_000, "channels": 1}
    sound = model.encode((np.ones(8_000, dtype=np.float32) / 9, 16_000), space="shared")
    assert sound.shape == model.encode("apple", space="shared").shape


@pytest.mark.slow
def test_a_stopped_recipe_of_several_modalities_goes_on(tmp_path):
    recipe = RECIPES / "multimodal.py"
    launch("--tiny", "--output-dir", tmp_path / "whole", recipe=recipe)
    launch("--tiny", "--output-dir", tmp_path / "parts", "--max-steps", 2, recipe=recipe)
    launch("--tiny", "--output-dir", tmp_path / "parts", "--resume", recipe=recipe)
    whole, parts = (metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in parts] == [line["loss"] for line in whole]
    assert results_of(tmp_path / "whole") == results_of(tmp_path / "parts")


# --- what the recipes refuse -----------------------------------------------------------------------------------------


@pytest.fixture
def load(monkeypatch):
    """A recipe as a module, for what it refuses before it trains."""

    def of(name):
        spec = importlib.util.spec_from_file_location(f"{name}_under_test", RECIPES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return of


def test_mined_texts_are_candidates_of_images_and_no_partners(load, tmp_path):
    """The loss by hand: of images over their texts and all negatives, of texts over images alone."""
    from PIL import Image

    rows = ["anchor,positive,negative_1,split"]
    for i in range(8):
        Image.new("RGB", (32, 32), (30 * i, 90, 250 - 30 * i)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,shade {i},shade {(i + 1) % 8},{'train' if i % 2 else 'test'}")
    (tmp_path / "mined.csv").write_text("\n".join(rows) + "\n")
    recipe = load("image_text")
    columns = {"image_column": "anchor", "text_column": "positive", "negatives": ("negative_1",)}
    config = recipe.Config(data=str(tmp_path / "mined.csv"), **columns, image_size=32, temperature=0.5, word_delete=0.0)
    with pytest.raises(InputError, match="other columns than that of the captions, 'positive'"):
        recipe.open_image_text_pairs(config.data, "anchor", "positive", negatives=("positive",))
    pairs = recipe.open_image_text_pairs(config.data, "anchor", "positive", negatives=config.negatives)
    batch = next(one_pass(pairs.train, recipe.training_views(config), batch_size=4))
    model = mmcon.ContrastiveModel(recipe.make_encoders(config), {"shared": mmcon.SharedSpace(dim=8)}).eval()
    embeddings = model(batch)
    loss = recipe.make_objective(config, pairs)(embeddings, batch)
    images, texts = embeddings["shared"]["image"], embeddings["shared"]["text"]
    assert (len(images), len(texts)) == (4, 8)  # the texts, then the negatives
    assert not torch.allclose(texts[:4], texts[4:])
    similarity, own = images @ texts.T / 0.5, torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(similarity, own) + cross_entropy(similarity[:, :4].T, own)) / 2
    torch.testing.assert_close(loss, expected)


BAD = {
    "two different views": ("image_cmc", {"channels": ("chroma", "chroma")}),
    "in color": ("image_cmc", {"data": "samples/fashion"}),
    "--image-tuning frozen": ("image_text", {"precompute": True, "image_tuning": "frozen"}),
    "laier": ("image_text", {"image_tuning": "laier*"}),
    "nowhere.csv": ("image_text", {"data": "nowhere.csv"}),
    "--objective clip and --data TABLE": ("image_text", {"negatives": ("negative_1",)}),
    r"\['sound'\]": ("multimodal", {"pairs": ("image-sound",)}),
    "MODALITY=VALUE": ("multimodal", {"data": ("photos/",)}),
    "a source of modality 'text'": ("multimodal", {"data": ("text=samples/emoji",)}),
    "a source of modality 'series'": ("multimodal", {"data": ("series=samples/motion",)}),
}


PAIRS = ["image-text", "image-audio", "text-audio", "video-text", "video-audio", "image-video"]


@pytest.mark.parametrize("pair", PAIRS)
def test_any_two_of_the_four_modalities_are_paired_on_bundled_data(load, pair):
    recipe = load("multimodal")
    config = recipe.Config(pairs=(pair,), batch_size=4, frames=2, cpu=True)
    names = {m: data for m, data in recipe.bundled_data(config).items() if m in pair.split("-")}
    source = mmcon.JoinedSource(*(mmcon.create_source(data, modality=m, split="test") for m, data in names.items()))
    both = torch.stack([member.present(torch.arange(len(source))) for member in source.members.values()]).all(0)
    views = {modality: [recipe.make_view(config, modality)] for modality in names}
    some = Subset(source, both.nonzero()[:4, 0])
    batch = next(one_pass(some, views, batch_size=4))
    model = mmcon.ContrastiveModel(recipe.make_encoders(config, list(names)), {"shared": mmcon.SharedSpace(dim=8)})
    first, second = recipe.make_pairs(config, list(names))[0]
    loss = mmcon.Objective(**presets.clip(temperature=0.1, first=first, second=second))(model(batch), batch)
    assert torch.isfinite(loss)
    assert [table.n for table in batch.index.values()] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["video-text", "audio-video"])
def test_videos_are_trained_with_texts_and_with_their_sound(load, tmp_path, pair):
    recipe = load("multimodal")
    recipe.main(recipe.Config(pairs=(pair,), output_dir=tmp_path / "run", cpu=True, tiny=True, max_steps=2))
    ((name, found),) = [(k, v) for k, v in results_of(tmp_path / "run")["held_out"].items() if "-" in k]
    assert set(name.split("-")) == set(pair.split("-"))
    assert found["first_to_second"]["queries"] == {"video-text": 80, "audio-video": 4}[pair]


def test_texts_stills_and_sound_have_the_ids_of_their_videos():
    for split in ("train", "test"):
        clips, texts, stills = (
            mmcon.create_source(f"samples/motion{x}", split=split) for x in ("", "-texts", "-images")
        )
        assert clips.ids.tolist() == texts.ids.tolist() == stills.ids.tolist()
        assert torch.equal(clips.labels, texts.labels)
        film, sound = (mmcon.create_source(name, split=split) for name in ("samples/film", "samples/film-sound"))
        assert film.ids.tolist() == sound.ids.tolist()
    assert texts.open([0])[0].decode() == "a t-shirt/top moving right, steadily"
    assert not set(sound.ids.tolist()) & set(mmcon.create_source("samples/film-sound").ids.tolist())
    (window,) = sound.open([1])
    assert window.facts["length"] == 6400  # .4 s at 16 kHz


@pytest.mark.parametrize("message", list(BAD))
def test_bad_input_is_one_clear_error(load, tmp_path, message):
    name, settings = BAD[message]
    recipe = load(name)
    with pytest.raises(MmconError, match=message):
        recipe.main(recipe.Config(output_dir=tmp_path / "run", cpu=True, tiny=True, **settings))


@pytest.mark.parametrize("name", ["image_cmc", "image_text", "multimodal"])
def test_a_recipe_is_one_file_that_can_be_read(name):
    assert len((RECIPES / f"{name}.py").read_text().splitlines()) <= 300


def test_the_page_of_shared_spaces_runs():
    text = (ROOT / "docs" / "spaces.md").read_text()
    names = {}
    for block in text.split("```python\n")[1:]:
        exec(compile(block.partition("```")[0], "docs/spaces.md", "exec"), names)
    assert names["loss"].ndim == 0


# --- a modality in a page --------------------------------------------------------------------------------------------


def test_the_page_shows_the_package_word_for_word():
    text, source = PAGE.read_text(), (PACKAGE / "mmcon_series" / "__init__.py").read_text()
    shown = [block.partition("```")[0].strip() for block in text.split("```python\n")[1:]]
    assert sum(block in source for block in shown) >= 4
    names = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert [name for name in names if not any(f"{kind} {name}(" in text for kind in ("def", "class"))] == []
    assert (PACKAGE / "pyproject.toml").read_text().partition("[project.entry-points")[2].strip() in text


def test_the_package_knows_public_names_alone():
    tree = ast.parse((PACKAGE / "mmcon_series" / "__init__.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"math", "mmcon", "torch"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mmcon"
    }
    assert "register_encoder" in used
    assert used <= set(mmcon.__all__)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as its own build makes it, unpacked as an installer would, apart from the environment."""
    folder = tmp_path_factory.mktemp("series")
    shutil.copytree(PACKAGE, folder / "source")
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


LAWS = """
import torch, mmcon
from mmcon.sources.factory import create_source
from mmcon.models.encoders import create_encoder
from mmcon.testing import check_view

train, test = (create_source("series/oscillators", split=split) for split in ("train", "test"))
assert not set(train.ids.tolist()) & set(test.ids.tolist())
assert train.modality == "series" and len(train.classes) == 6
samples = train.open(torch.arange(5))
names = [name for name in mmcon.list_views("series") if name.startswith("series/")]
assert names == ["series/crop", "series/gain", "series/plain", "series/window"], names
for name in names:
    check_view(mmcon.create_view(name), samples)
encoder = create_encoder("series/conv", modality="series")
views = mmcon.create_view("series/window", length=100)(samples, mmcon.keys(seed=0, sample=train.ids[:5]))
assert encoder(views).shape == (5, encoder.feature_dim)
"""


@pytest.mark.slow
def test_a_new_modality_is_found_and_keeps_the_laws(python, installed):
    done = python(LAWS, path=[installed])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_recipe_trains_on_a_new_modality_unchanged(python, installed, tmp_path):
    run = f"""
import runpy, sys
sys.argv = ["multimodal.py", "--data", "series=series/oscillators", "--objective", "same-label", "--view",
            "series=series/window", "--encoder", "series=series/conv", "--epochs", "6", "--cpu", "--output-dir",
            {str(tmp_path / "run")!r}]
runpy.run_path({str(RECIPES / "multimodal.py")!r}, run_name="__main__")
"""
    done = python(run, path=[installed])
    assert done.returncode == 0, done.stderr
    found = results_of(tmp_path / "run")
    assert found["linear_probe"]["series"] > found["random_encoders"]["linear_probe"]["series"] + 0.2
    model = mmcon.ContrastiveModel
    with pytest.raises((MmconError, ConfigError, DataError), match="series/conv"):
        model.from_pretrained(tmp_path / "run" / "model")  # here the package is not installed
