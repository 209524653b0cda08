"""A step that is looked at again, and runs over several seeds."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmcon import cli
from mmcon.errors import ConfigError
from mmcon.training.checkpoint import Checkpoints
from mmcon.training.config import RunConfig
from mmcon.training.replay import program_of
from mmcon.training.run_folder import restarted_folder
from mmcon.training.seeds import run_over_seeds, summarize

RECIPE = Path(__file__).parents[2] / "recipes" / "imagenet_supcon.py"


@pytest.mark.slow
def test_a_replay_shows_the_views_and_the_very_loss(tmp_path, capfd, monkeypatch):
    folder = tmp_path / "run"
    words = [sys.executable, str(RECIPE), "--tiny", "--output-dir", str(folder), "--checkpoint-every", "3", "--cpu"]
    subprocess.run(words, check=True, capture_output=True)
    logged = {
        line["step"]: line["loss"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    }
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.chdir(tmp_path)

    assert cli.main(["replay", str(folder), "--step", "7", "--sample", "0"]) != 0
    told = capfd.readouterr()
    known = re.search(r"a sample of step 7: \[(-?\d+)", told.out + told.err)
    assert known, told
    assert cli.main(["replay", str(folder), "--step", "7", "--sample", known[1], "--output", "seen"]) == 0
    told = capfd.readouterr().out
    assert f"loss of step 7: {logged[7]!r}, logged as {logged[7]!r}" in told
    assert "0 step(s) after checkpoint step-000000006" in told

    views = [torch.load(tmp_path / "seen" / f"image-view{v}.pt") for v in (0, 1)]
    assert views[0].shape == views[1].shape == (1, 28, 28)
    assert not torch.equal(*views)
    with Image.open(tmp_path / "seen" / "image-view0.png") as picture:
        assert np.asarray(picture).std() > 0
    assert json.loads((tmp_path / "seen" / "image-view0.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    # Too far to repeat: the batch alone is made again, and it is the same.
    shutil.rmtree(folder / "checkpoints")
    asked = ["replay", str(folder), "--step", "7", "--sample", known[1], "--output", "alone", "--repeat", "0"]
    assert cli.main(asked) == 0
    assert f"was {logged[7]!r} in metrics.jsonl" in capfd.readouterr().out
    assert torch.equal(torch.load(tmp_path / "alone" / "image-view1.pt"), views[1])


@pytest.mark.parametrize(("step", "sample"), [("0", "1"), ("3", "1")])
def test_what_cannot_be_replayed_is_told(step, sample, tmp_path, capsys):
    assert cli.main(["replay", str(tmp_path), "--step", step, "--sample", sample]) == 2
    assert "mmcon replay" in capsys.readouterr().err
    (tmp_path / "run.json").write_text(json.dumps({"program": ["/no/python"], "directory": str(tmp_path)}))
    with pytest.raises(Exception, match="/no/python"):
        program_of(tmp_path)


def test_every_seed_is_told(tmp_path, capsys):
    Config = partial(RunConfig, **{"output_dir": tmp_path, "seeds": (4, 7, 9)})
    made = []

    def main(config):
        made.append(config.seed)
        config.output_dir.mkdir(parents=True, exist_ok=True)
        figures = {"probe": {"top1": config.seed / 10, "classes": ["a"]}, "done": True}
        (config.output_dir / "results.json").write_text(json.dumps(figures))

    figure = run_over_seeds(main, Config())["probe.top1"]
    assert made == [4, 7, 9]
    assert figure["by_seed"] == {"4": 0.4, "7": 0.7, "9": 0.9}
    assert figure["mean"] == pytest.approx(2 / 3)
    # scipy.stats.t.interval(.95, 2, loc=2/3, scale=sem([.4, .7, .9]))
    assert (figure["low"], figure["high"]) == pytest.approx((0.041504, 1.291829), abs=1e-5)
    assert "4: 0.4  7: 0.7  9: 0.9" in capsys.readouterr().out
    assert json.loads((tmp_path / "seeds.json").read_text())["probe.top1"] == figure

    assert run_over_seeds(main, Config(resume=True))
    assert made == [4, 7, 9]
    assert run_over_seeds(main, Config(seeds=(), seed=5, output_dir=tmp_path / "one")) == {}
    assert made[-1] == 5
    for wrong in (Config(seeds=(1, 1)), Config(output_dir=None)):
        with pytest.raises(ConfigError, match="--seeds"):
            run_over_seeds(main, wrong)


def test_a_result_of_other_settings_does_not_enter_the_mean_after_a_kill(tmp_path):
    """A run under other settings was killed after its results, and before it was noted as ended."""

    def main(config):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        (config.output_dir / "results.json").write_text(json.dumps({"steps": config.max_steps}))
        if config.max_steps == 5:
            raise KeyboardInterrupt

    def seeds(steps):
        config = RunConfig(output_dir=tmp_path, seeds=(0,), resume=True, max_steps=steps)
        return run_over_seeds(main, config)["steps"]["by_seed"]

    assert seeds(3) == {"0": 3}
    with pytest.raises(KeyboardInterrupt):
        seeds(5)
    assert seeds(3) == {"0": 3}


def test_one_seed_has_no_interval():
    assert "low" not in summarize({3: {"x": 1.0}})["x"]


def test_seeds_that_have_not_ended_under_these_settings_go_on(tmp_path):
    """Else the mean would be one of results of different settings, or a damaged file would end the command."""
    made = []

    def main(config):
        made.append(config.seed)
        folder = restarted_folder(config.output_dir) if config.restart else config.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"steps": config.max_steps or 9}))

    def seeds(**settings):
        made.clear()
        config = RunConfig(output_dir=tmp_path, seeds=(0, 1), resume=True, **settings)
        return made, run_over_seeds(main, config)["steps"]["by_seed"]

    assert seeds(max_steps=3) == ([0, 1], {"0": 3, "1": 3})
    assert seeds(max_steps=3, workers=2, log_every=1) == ([], {"0": 3, "1": 3})
    assert seeds() == ([0, 1], {"0": 9, "1": 9})
    assert seeds(batch_size=7)[0] == [0, 1]  # a run refuses it, unless it is forced
    seeds()
    (tmp_path / "seed-1" / "results.json").write_text('{"steps": ')
    assert seeds() == ([1], {"0": 9, "1": 9})
    Checkpoints(tmp_path / "seed-0" / "checkpoints").save(3, {"step": 3})
    (tmp_path / "seed-0" / "checkpoints" / "step-000000003" / "state.pt").unlink()
    (tmp_path / "seed-0" / "results.json").unlink()
    for ended in ([0], []):
        assert seeds(restart=True) == (ended, {"0": 9, "1": 9})
    assert (tmp_path / "seed-0-restart" / "results.json").exists()
