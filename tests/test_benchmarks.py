"""Benchmarks that cannot run here: what they would run is there."""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_all_that_needs_a_gpu_names_programs_that_are_there():
    command = [sys.executable, ROOT / "benchmarks" / "gpu" / "everything.py", "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    parts = {line.partition(",")[0] for line in listed}
    assert parts == {"tests", "loss", "views", "step", "board"}
    for line in listed:
        files = [Path(word) for word in shlex.split(line.partition(": ")[2]) if word.endswith(".py")]
        assert files, line
        assert all(file.is_file() for file in files), line
