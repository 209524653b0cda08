"""The text recipe by the real command, on bundled and on given texts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched_recipes import page_of

import mmcon
from mmcon.batch import Index
from mmcon.errors import ConfigError, DataError
from mmcon.sources.factory import create_source

RECIPE = Path(__file__).parents[2] / "recipes/text_supcon.py"


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(RECIPE), "--tiny", "--cpu", "--output-dir", str(folder), *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["supcon", "parallel"])
def test_the_recipe_runs_from_one_command_on_bundled_texts(tmp_path, objective):
    done = run(tmp_path / "run", "--objective", objective)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 < results["linear_probe"]["top1"] <= 1
    assert set(results["recall_at_1"]) == {"de", "fr", "es", "ja", "ar"}
    assert page_of(tmp_path / "run")[1] == {"text"}
    assert {"knn", "nmi", "rank_correlation", "untrained_encoder", "bag_of_words"} <= set(results)
    # Counts of words and triples tell the groups apart far better than one in nine.
    assert results["bag_of_words"]["linear_probe"]["top1"] > 0.4
    model, test = mmcon.load(tmp_path / "run"), create_source("samples/emoji-names", split="test")
    names = [test.classes[label] for label in test.labels]
    right = [label == name for label, name in zip(model.classify(test).labels, names, strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["linear_probe"]["top1"])


@pytest.mark.slow
def test_the_recipe_takes_a_table_and_few_labels(tmp_path):
    rows = [f"{a} {b},{a}" for a in ("red", "blue", "green") for b in (f"thing{i}" for i in range(60))]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    flags = ["--data", str(tmp_path / "texts.csv"), "--labels-per-class", "16", "--batch-size", "12"]
    done = run(tmp_path / "run", "--objective", "cross-entropy", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["bag_of_words"]["knn"]["top1"] > 0.9
    refused = run(tmp_path / "other", "--objective", "parallel", *flags)
    assert refused.returncode != 0
    assert "two columns of text or more" in refused.stderr


@pytest.mark.slow
def test_mined_negatives_are_candidates_and_no_translations(tmp_path):
    spec = importlib.util.spec_from_file_location("text_supcon", RECIPE)
    recipe = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    rows = [f"{a} {b},the {a} {b},{a} thing{i}" for a in ("red", "blue") for i, b in enumerate("abcdefghijklmno" * 3)]
    (tmp_path / "mined.csv").write_text("anchor,positive,negative_1\n" + "\n".join(rows), encoding="utf-8")
    flags = {
        "columns": ("anchor", "positive"),
        "negatives": ("negative_1",),
        "batch_size": 8,
        "tiny": True,
        "cpu": True,
    }
    flags |= {"data": str(tmp_path / "mined.csv"), "output_dir": tmp_path / "run"}
    recipe.main(recipe.Config(objective="parallel", **flags))
    assert set(json.loads((tmp_path / "run/results.json").read_text())["recall_at_1"]) == {"positive"}
    anchors, candidates = Index({"sample": torch.arange(2)}), {"sample": [0, 1, 0, 1], "view": [1, 1, 2, 2]}
    candidates = Index({name: torch.tensor(values) for name, values in candidates.items()})
    assert recipe.partners(anchors, candidates).tolist() == [[True, False, False, False], [False, True, False, False]]
    with pytest.raises(ConfigError, match="--objective parallel and a table; got supcon"):
        recipe.main(recipe.Config(objective="supcon", **flags))


def test_tables_are_split_by_text_and_bad_ones_refused(tmp_path):
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "\n".join(f"text {i % 40},{i % 2}" for i in range(80)), encoding="utf-8")
    train, test = (create_source(table, modality="text", split=split, test_share=0.2) for split in ("train", "test"))
    assert len(train) + len(test) == 80
    assert not set(train.texts["text"]) & set(test.texts["text"])
    with pytest.raises(DataError, match="body"):
        create_source(table, modality="text", text_columns=("body",))
    with pytest.raises(DataError, match="check --data"):
        create_source(tmp_path / "none.csv", modality="text")
    table.write_text("text,label\na,1\nb,\n", encoding="utf-8")
    with pytest.raises(DataError, match="label for every sample"):
        create_source(table, modality="text")
