"""Benchmarks that cannot run here: what they would run is there."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("call", "parts"), [
    ("first", {"tests", "loss", "views", "step", "trial"}), ("second", {"loss", "views", "board", "more steps"}),
])  # fmt: skip
def test_all_that_needs_a_gpu_names_programs_that_are_there(call, parts):
    command = [sys.executable, ROOT / "benchmarks" / "gpu" / "everything.py", "--list", "--call", call]
    *listed, bound = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line.partition(",")[0] for line in listed} == parts
    assert int(bound.split()[0]) <= 420
    for line in listed:
        files = [ROOT / word for word in shlex.split(line.partition(": ")[2]) if word.endswith(".py")]
        assert files, line
        assert all(file.is_file() for file in files), line


def test_missing_wheels_are_what_the_requirements_need_beyond_what_is_there(tmp_path):
    there = tmp_path / "installed.txt"
    there.write_text("torch==2.11.0\nNumPy==2.4.0\n")
    command = [sys.executable, ROOT / "tools" / "missing_wheels.py", there, "--without", "datasets"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.partition("==")[0] for line in lines}
    assert {"tyro", "typeguard", "soundfile", "cffi"} <= names  # typeguard and cffi are requirements of the others
    assert not {"torch", "numpy", "datasets", "multiprocess", "mmcon"} & names


@pytest.mark.slow
def test_recipes_that_are_killed_at_a_random_step_resume_bit_by_bit():
    """Of the modalities without such a test among the faults of `mmcon doctor --chaos`."""
    words = ["--kills", "1", "--modalities", "audio", "text", "video"]
    command = [sys.executable, ROOT / "benchmarks" / "killed_recipes.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert [line.partition(": ")[2][:6] for line in done.stdout.splitlines()] == ["1 of 1"] * 3, (
        done.stdout + done.stderr
    )
