"""All that needs a GPU, in two calls of at most seven minutes each, the most important first.

    python benchmarks/gpu/everything.py --output gpu.md                     # the first call
    python benchmarks/gpu/everything.py --output gpu-2.md --call second --rates supcon=.008    # the rest
    python benchmarks/gpu/everything.py --parts tests loss                  # some of it
    python benchmarks/gpu/everything.py --rehearse                          # small sizes, on a CPU
    python benchmarks/gpu/everything.py --list                              # the commands, nothing run

Every command is a process of its own under a bound on its time, and what it prints is appended to the file as soon as
it ends: a part that fails or is cut off takes nothing from the others. The first call searches the learning rate of the
recipe, which the second takes by `--rates`. The board reads Fashion-MNIST's four idx.gz files from `--fashion`, by
default where Debian's package puts them. A machine without a network needs the wheels that `tools/missing_wheels.py`
lists.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent
ROOT = BENCHMARKS.parent


@dataclass(frozen=True)
class Part:
    """A part of the tables: the bound on its seconds, its commands, and what replaces their options on a CPU."""

    title: str
    seconds: int
    commands: tuple[str, ...]
    rehearsal: tuple[str, ...]


# Where pytest-benchmark is installed, it warns of several processes.
PROCESSES = " -n 6 -p no:benchmark" if find_spec("xdist") else ""
RESNET50 = "benchmarks/step.py --encoder resnet50 --image-size 224 --mixed-precision bf16"
BOARD = (
    "benchmarks/time_to_accuracy.py --encoder resnet18 --mixed-precision bf16 --workers 14 --device cuda --target .94"
)
SMALL_BOARD = (
    "benchmarks/time_to_accuracy.py --images 1000 --target .1 --schedules 1 --batch-size 128"
    " --rates supcon=.004 simclr=.004"
)
PARTS = {
    "tests": Part(
        "Tests", 100,
        (f"-m pytest tests/test_gpu.py -q -p no:cacheprovider --durations=8{PROCESSES}",),
        ("-m pytest tests/test_gpu.py -q -p no:cacheprovider -k 'synchronized or not_finite'",),
    ),
    "loss": Part(
        "The loss", 120, ("benchmarks/gpu/loss.py --sweep",),
        ("benchmarks/gpu/loss.py --device cpu --sizes 512 600 --form-size 600",),
    ),
    "views": Part(
        "Image views", 40, ("benchmarks/gpu/image_views.py",),
        ("benchmarks/gpu/image_views.py --device cpu --batch-size 2",),
    ),
    "choices": Part(
        "What is not part of mmcon: other forms for few rows, CUDA graphs, nvJPEG", 150,
        ("benchmarks/gpu/image_views.py --choices", "benchmarks/gpu/few_rows.py"),
        ("benchmarks/gpu/image_views.py --device cpu --batch-size 2 --choices",
         "benchmarks/gpu/few_rows.py --device cpu --sizes 256 600"),
    ),
    "step": Part(
        "A step of training", 70,
        (f"{RESNET50} --device cuda --batch-size 128 --photos 3072 --workers 14 --steps 60",),
        ("benchmarks/step.py --image-size 32 --batch-size 8 --photos 48 --workers 1 --steps 22",),
    ),
    "trial": Part(
        "Time to accuracy, one schedule after a search of the learning rate", 90,
        (f"{BOARD} --board supcon --batch-size 1024 --schedules 9",),
        (f"{SMALL_BOARD} --board supcon",),
    ),
    "board": Part(
        "Time to accuracy", 210,
        (f"{BOARD} --batch-size 1024 --schedules 9 --board supcon --seeds 0 1 2 --rates supcon=.006",
         f"{BOARD} --batch-size 1024 --schedules 9 --board in simclr cross-entropy"
         " --rates in=.006 simclr=.006 cross-entropy=.006"),
        (f"{SMALL_BOARD} --board supcon simclr",),
    ),
    "more steps": Part(
        "Other steps of training", 50,
        ("benchmarks/step.py --device cuda --batch-size 1024 --workers 8 --steps 100",
         "benchmarks/step.py --device cuda --spaces --workers 8 --steps 100"),
        ("benchmarks/step.py --batch-size 16 --steps 22", "benchmarks/step.py --spaces --batch-size 16 --steps 22"),
    ),
}  # fmt: skip
CALLS = {"first": ("tests", "loss", "views", "step", "trial"), "second": ("choices", "board", "more steps")}


# Compilation for a CPU takes minutes, and says nothing of a GPU.
ON_A_CPU = {"MMCON_TEST_DEVICE": "cpu", "TORCHDYNAMO_DISABLE": "1"}


def run(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[str, str]:
    """What a command printed, and how it ended."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "views"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        printed = [s.decode() if isinstance(s, bytes) else s or "" for s in (late.stdout, late.stderr)]
        return printed[0] + printed[1][-2000:], f"cut off after {seconds:.0f} s"
    if done.returncode:
        return done.stdout[-12000:] + done.stderr[-4000:], f"status {done.returncode}"
    return done.stdout, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.md"))
    parser.add_argument("--call", choices=CALLS, default="first")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="other parts than those of the call")
    parser.add_argument("--fashion", type=Path, help="the folder of Fashion-MNIST's files")
    parser.add_argument("--rates", nargs="+", default=[], help="of rows of the board, as the search found them")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU, to try the scripts")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    options = parser.parse_args()
    chosen = {name: PARTS[name] for name in options.parts or CALLS[options.call]}
    commands = {name: part.rehearsal if options.rehearse else part.commands for name, part in chosen.items()}
    if options.fashion:
        data = f" --data {shlex.quote(str(options.fashion))}"
        commands |= {name: tuple(c + data for c in commands[name]) for name in ("trial", "board") if name in commands}
    if options.rates and "board" in commands:
        rates = " ".join(map(shlex.quote, options.rates))
        commands["board"] = tuple(f"{command} --rates {rates}" for command in commands["board"])
    if options.list:
        for name, part in chosen.items():
            print(*(f"{name}, {part.seconds} s: python {command}" for command in commands[name]), sep="\n")
        print(f"{sum(part.seconds for part in chosen.values())} s at most")
        return 0
    if not (torch.cuda.is_available() or options.rehearse):
        raise SystemExit("this needs a GPU; --list shows what would run, --rehearse runs small sizes on a CPU")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    options.output.write_text(f"{device}, torch {torch.__version__}\n")
    failed = []
    for name, part in chosen.items():
        began, ends = time.monotonic(), []
        for i, command in enumerate(commands[name]):
            bound = part.seconds * (6 if options.rehearse else 1)
            left = max(1.0, bound - (time.monotonic() - began))
            printed, end = run(shlex.split(command), left, ON_A_CPU if options.rehearse else {})
            ends += [end] if end else []
            with options.output.open("a") as file:
                heading = "" if i else f"\n## {part.title}\n"
                file.write(f"{heading}\n`python {command}`\n\n{printed}\n{end}\n")
        print(f"{name}: {'; '.join(ends) or 'done'} in {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if ends else []
    print(f"tables: {options.output}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
