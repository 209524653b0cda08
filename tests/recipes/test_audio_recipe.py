"""The recipe of sound by its real command, on bundled speech and on a user's own recordings; and its page, run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import soundfile
import torch
from inference_cases import check_saved_model
from launched_recipes import page_of

import mmcon
from mmcon.affinity import Dense
from mmcon.batch import Index
from mmcon.errors import DataError, MmconError
from mmcon.sources.factory import create_source

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "audio_supcon.py"


def run(folder, *flags):
    command = [sys.executable, str(RECIPE), "--tiny", "--cpu", "--output-dir", str(folder), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_across_languages_on_bundled_speech(tmp_path):
    done = run(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "the default of adamw for batches of 15" in done.stdout  # five prompts in three languages, of 16
    found = results(tmp_path / "run")
    assert {"voice_probe", "voice_knn", "recall", "mean_average_precision"} <= set(found)
    for name in ("random_encoder", "log-mel_statistics"):
        assert set(found[name]["recall"]) == {"at_1", "at_5", "at_10"}
    assert found["log-mel_statistics"]["voice_probe"] > 0.9  # each language is a voice on a chain of its own
    assert (found["held_out_recordings"], found["unreadable_recordings"]) == (84, 0)
    assert page_of(tmp_path / "run")[1] == {"picture", "sound"}
    check_saved_model(tmp_path / "run", mmcon.create_source("samples/speech", split="test", rate_hz=8000))


def recordings(folder, seconds=0.3):
    """Low and high tones of mixed rates and channels, a silent one, a short one, and three that cannot be read."""
    for i in range(24):
        path = folder / ("high" if i % 2 else "low") / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = (8_000, 16_000, 44_100)[i % 3]
        at = np.arange(int(rate * seconds)) / rate
        tone = np.sin(at * 2 * np.pi * (880 if i % 2 else 220) + i).astype(np.float32) * 0.3
        soundfile.write(path, np.stack([tone] * (1 + i % 2), 1), rate, subtype=("PCM_U8", "PCM_24", "FLOAT")[i % 3])
    soundfile.write(folder / "low" / "silence.flac", np.zeros(4_000), 8_000)
    soundfile.write(folder / "high" / "click.wav", np.ones(9), 8_000)
    soundfile.write(folder / "low" / "nan.wav", np.full(900, np.nan), 8_000, subtype="FLOAT")
    (folder / "low" / "text.wav").write_bytes(b"RIFF nothing")
    (folder / "high" / "half.flac").write_bytes((folder / "low" / "silence.flac").read_bytes()[:40])
    return folder


@pytest.mark.slow
def test_a_folder_of_all_sorts_of_recordings_stopped_and_resumed(tmp_path):
    flags = [
        "--data",
        recordings(tmp_path / "data"),
        "--objective",
        "cola",
        "--similarity",
        "bilinear",
        "--batch-size",
        "8",
    ]
    done = run(tmp_path / "whole", *flags)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "whole")
    assert {"linear_probe", "knn", "recall"} <= set(found)
    assert found["unreadable_recordings"] == 3
    lines = (tmp_path / "whole" / "quarantine.jsonl").read_text().splitlines()
    named = {Path(json.loads(line)["file"]).name for line in lines}
    assert named == {"nan.wav", "text.wav", "half.flac"}  # one of them is held out
    model = mmcon.load(tmp_path / "whole")
    assert model.classes == ("high", "low")
    assert len(model.classify([tmp_path / "data/low/0.wav", tmp_path / "data/high/1.wav"]).labels) == 2
    for more in (["--max-steps", "1"], ["--resume"]):
        done = run(tmp_path / "parts", *flags, *more)
        assert done.returncode == 0, done.stderr
    assert results(tmp_path / "parts") == found


@pytest.fixture
def recipe(monkeypatch):
    """The recipe as a module, for what it refuses before it trains."""
    spec: Any = importlib.util.spec_from_file_location("audio_recipe_under_test", RECIPE)
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "FOLDER", "objective": "cross-lingual"}, "add them to the manifest"),
        ({"data": "nowhere"}, "check --data"),
        ({"objective": "cola", "rate_hz": 8_000}, "--rate-hz 16000"),
        ({"encoder": "no/such-folder", "view": "audio/spech"}, "audio/speech"),
    ],
)
def test_bad_input_is_one_clear_error_with_the_fix(recipe, tmp_path, settings, message):
    settings = {name: str(recordings(tmp_path / "data")) if v == "FOLDER" else v for name, v in settings.items()}
    with pytest.raises(MmconError, match=message):
        recipe.main(recipe.Config(output_dir=tmp_path / "run", cpu=True, tiny=True, **settings))


def test_the_default_objective_takes_the_most_of_the_labels(recipe, tmp_path):
    folder = recordings(tmp_path / "data")
    assert recipe.fitting_objective(create_source("samples/speech", modality="audio", rate_hz=8_000)) == "cross-lingual"
    assert recipe.fitting_objective(create_source(folder, modality="audio", rate_hz=8_000)) == "supcon"
    unlabeled = create_source(min(path for path in folder.iterdir() if path.is_dir()), modality="audio", rate_hz=8_000)
    assert recipe.fitting_objective(unlabeled) == "simclr"


def test_all_translations_of_a_prompt_meet_in_a_batch(recipe):
    config = recipe.Config(objective="cross-lingual", batch_size=96)
    train = create_source(config.data, modality="audio", rate_hz=config.sample_rate_hz)
    rows = recipe.make_sampler(config, train).batch(0).indices
    languages = {}
    for row in rows.tolist():
        languages.setdefault(int(train.columns["prompt"][row]), []).append(int(train.columns["language"][row]))
    assert len(languages) == 32
    assert all(sorted(met) == [0, 1, 2] for met in languages.values())


def test_processes_divide_batches_of_whole_prompts(recipe):
    """Three languages: of a batch of 16, five prompts alone, and four where two processes share them."""
    config = recipe.Config(objective="cross-lingual", batch_size=16)
    train = create_source(config.data, modality="audio", rate_hz=config.sample_rate_hz)
    sizes = [recipe.make_sampler(config, train, world_size=n).batch_size for n in (1, 2, 4, 8)]
    assert sizes == [15, 12, 12, 24]


def test_pairs_are_graded_by_prompt_and_language(recipe):
    config = recipe.Config(objective="cross-lingual", cross_weight=0.7, temperature=0.5)
    objective = recipe.make_objective(
        config, create_source(config.data, modality="audio", rate_hz=config.sample_rate_hz)
    )
    z = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    # Two recordings of prompt 0 in language 0, one in language 1; and prompt 1 in language 1.
    rows = Index({"prompt": torch.tensor([0, 0, 0, 1]), "language": torch.tensor([0, 0, 1, 1])})
    weights = torch.tensor([[1, 1, 0.7, 0], [1, 1, 0.7, 0], [0.7, 0.7, 1, 0], [0, 0, 0, 1]])
    expected = mmcon.weighted_supcon(z, None, Dense(weights), temperature=0.5)
    torch.testing.assert_close(objective(z, rows), expected)


@pytest.fixture
def table(tmp_path):
    """Recordings in a parquet file of the datasets library: six prompts in two languages, at 8 kHz."""
    rows = []
    for i in range(12):
        file = tmp_path / f"{i}.wav"
        soundfile.write(file, np.sin(np.arange(800) * 0.1 * (i + 1)) * 0.1, 8_000)
        rows.append(
            {"audio": {"bytes": file.read_bytes(), "path": None}, "prompt": f"p{i // 2}", "language": "ab"[i % 2]}
        )
    (tmp_path / "set").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "set" / "train.parquet")
    return tmp_path / "set"


def test_a_data_set_is_brought_to_the_rate_and_split_by_prompt(table, tmp_path):
    options = {"rate_hz": 4_000, "test_share": 0.5, "cache_dir": str(tmp_path / "cache")}
    train, test = (create_source(table, modality="audio", split=split, **options) for split in ("train", "test"))
    assert len(train) + len(test) == 12
    assert not set(train.categories["prompt"]) & set(test.categories["prompt"])
    assert train.categories["language"] == ("a", "b")
    assert train.open([0])[0].decode().shape == (1, 400)


def test_a_parquet_manifest_holds_bytes(table):
    train = create_source(table / "train.parquet", modality="audio", rate_hz=8_000)
    assert {"prompt", "language"} <= set(train.columns)
    assert train.open([1])[0].decode().shape == (1, 800)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "audio,label\n", "at least one row"),
        ("a.csv", "audio,label,split\nx.wav,b,test\n", "samples of split 'train'"),
        ("a.csv", "audio,label\n,b\n", "line 2, column 'audio'"),
        ("a.jsonl", '{"audio": "x.wav"}\n{"audio"\n', "line 2"),
        ("a.csv", "scan\nx.wav\n", "media_column"),
    ],
)
def test_a_bad_manifest_says_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        create_source(tmp_path / name, modality="audio", rate_hz=8_000)


def test_a_table_too_small_to_hold_rows_out_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("audio,label\nx.wav,b\n")
    with pytest.raises(
        DataError, match=r"samples of split 'test'; got none by identity, of 1 samples[\s\S]*a folder test/"
    ):
        create_source(tmp_path / "a.csv", modality="audio", split="test", rate_hz=8_000)


def test_a_folder_without_sounds_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to hear")
    with pytest.raises(DataError, match=r"\.wav, [\s\S]*none below"):
        create_source(tmp_path, modality="audio", rate_hz=8_000)


def blocks(page):
    return [block.partition("```")[0] for block in page.read_text(encoding="utf-8").split("```python\n")[1:]]


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks(ROOT / "docs" / "audio.md"):
        exec(compile(block, "docs/audio.md", "exec"), space)


def test_the_recipe_is_one_file_that_can_be_read():
    assert len(RECIPE.read_text().splitlines()) <= 300
