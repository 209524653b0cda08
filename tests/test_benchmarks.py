"""Benchmarks that cannot run here: what they would run is there."""

import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def printed(monkeypatch, capsys):
    """Run a script in this process: the lines that it prints."""

    def run(script, *words):
        ends = []
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.setattr(sys, "exit", ends.append)
        runpy.run_path(str(ROOT / script), run_name="__main__")
        assert ends in ([], [0])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(("call", "parts"), [
    ("first", {"tests", "loss", "views", "step", "trial"}), ("second", {"choices", "board", "more steps"}),
])  # fmt: skip
def test_all_that_needs_a_gpu_names_programs_that_are_there(printed, call, parts):
    rates = ["--rates", "in=.01", "supcon=.02"]
    *listed, bound = printed("benchmarks/gpu/everything.py", "--list", "--call", call, *rates)
    assert {line.partition(",")[0] for line in listed} == parts
    assert int(bound.split()[0]) <= 420
    for line in listed:
        words = shlex.split(line.partition(": ")[2])
        files = [ROOT / word for word in words if word.endswith(".py")]
        assert files, line
        assert all(file.is_file() for file in files), line
        assert (words[-3:] == rates) == line.startswith("board")


def test_missing_wheels_are_what_the_requirements_need_beyond_what_is_there(printed, tmp_path):
    there = tmp_path / "installed.txt"
    there.write_text("torch==2.11.0\nNumPy==2.4.0\n")
    lines = printed("tools/missing_wheels.py", there, "--without", "datasets")
    names = {line.partition("==")[0] for line in lines}
    assert {"tyro", "typeguard", "soundfile", "cffi"} <= names  # typeguard and cffi are requirements of the others
    assert not {"torch", "numpy", "datasets", "multiprocess", "mmcon"} & names


@pytest.mark.slow
def test_recipes_that_are_killed_at_a_random_step_resume_bit_by_bit():
    """Of the modalities without such a test among the faults of `mmcon doctor --chaos`."""
    words = ["--kills", "1", "--modalities", "audio", "text", "video", "multimodal"]
    command = [sys.executable, ROOT / "benchmarks" / "killed_recipes.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert [line.partition(": ")[2][:6] for line in done.stdout.splitlines()] == ["1 of 1"] * 4, (
        done.stdout + done.stderr
    )
