"""The launch files of docs/launch: read by Accelerate, and the Slurm script run with stand-ins for Slurm's programs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from mmcon.training.logging import MetricsLog

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "docs" / "launch"
GPUS = {"one-gpu": (1, 1), "eight-gpus": (1, 8), "four-nodes": (4, 32), "eight-gpus-fsdp2": (1, 8)}

# Starts as many tasks as there are, with the variables that Slurm's srun sets, and ends with the highest status.
SRUN = """#!/usr/bin/env bash
[[ $1 == --cpus-per-task=12 ]] || exit 64
while [[ $1 == --* ]]; do shift; done
highest=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=0 "$@" &
    started[task]=$!
done
for pid in "${started[@]}"; do
    wait "$pid" || { status=$?; ((status > highest)) && highest=$status; }
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo localhost; echo other; else echo "$*" >> "$REQUEUED"; fi
"""


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_them(path):
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == GPUS[path.stem]
    assert config.mixed_precision == "bf16"
    assert not config.use_cpu


@pytest.fixture
def sbatch(tmp_path):
    """Run the script as Slurm would on two nodes with a task each: (finished process, what was requeued)."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7"}
    slurm["SLURM_CPUS_PER_TASK"] = "12"
    paths = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    mine = {"PATH": paths, "MASTER_PORT": str(port), "REQUEUED": str(tmp_path / "requeued")}

    def run(*words):
        command = ["bash", LAUNCH / "slurm.sbatch", *map(str, words)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **slurm, **mine}, capture_output=True, text=True, timeout=240
        )
        requeued = tmp_path / "requeued"
        return done, requeued.read_text() if requeued.exists() else ""

    return run


def test_a_job_whose_run_was_stopped_goes_back_into_the_queue(sbatch, tmp_path):
    stopped = tmp_path / "stopped.py"
    stopped.write_text("import os, sys; sys.exit(75 if os.environ['RANK'] == '1' else 0)")
    done, requeued = sbatch(stopped)
    assert done.returncode == 75
    assert requeued == "requeue 7\n"


def test_a_job_that_failed_stays_out_of_the_queue(sbatch, tmp_path):
    failed = tmp_path / "failed.py"
    failed.write_text("raise SystemExit(1)")
    done, requeued = sbatch(failed)
    assert done.returncode == 1
    assert requeued == ""


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "words"), [
    ("image_text", ["--sync-batch-norm"]),
    ("audio_supcon", ["--objective", "simclr", "--engine", "fsdp2", "--sync-batch-norm"]),
])  # fmt: skip
def test_the_launch_command_alone_makes_two_processes_of_one(tmp_path, recipe, words):
    """The same fields in results.json, and the same losses but for masks of dropout and rounding, which grows by step.

    Negatives of one process alone would make a difference of log 2.
    """
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    results, losses = [], []
    for launcher in ([], several):
        folder = tmp_path / str(len(launcher))
        command = [sys.executable, *launcher, f"recipes/{recipe}.py", "--tiny", "--cpu", "--output-dir", folder, *words]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(sorted(json.loads((folder / "results.json").read_text())))
        losses.append([line["loss"] for line in MetricsLog(folder / "metrics.jsonl").lines()])
    assert "2 process(es)" in done.stdout
    assert results[1] == results[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.slow
def test_two_nodes_train_together(sbatch, tmp_path):
    done, _ = sbatch("recipes/imagenet_supcon.py", "--tiny", "--cpu", "--output-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process(es)" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < results["linear_probe"]["top1"] <= 1
