"""All that needs a GPU, in one call: tests, the loss, views, steps and the race to an accuracy, with their tables.

    python benchmarks/gpu/everything.py --output gpu.md                       # about twenty minutes
    python benchmarks/gpu/everything.py --output gpu.md --parts tests loss    # some of it
    python benchmarks/gpu/everything.py --list                                # the commands, nothing run

Every part is a process of its own under a bound on its time, and what it prints is appended to the file as soon as it
ends, so that a part that fails or is cut off takes nothing from the others. The race reads Fashion-MNIST's four
idx.gz files from `--fashion`, by default where Debian's package puts them.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent
ROOT = BENCHMARKS.parent
STEP = str(BENCHMARKS / "step.py")

# By part: its title, the bound on its seconds, and its commands.
PARTS: dict[str, tuple[str, int, list[list[str]]]] = {
    "tests": ("Tests", 300, [["-m", "pytest", str(ROOT / "tests" / "test_gpu.py"), "-q", "-p", "no:cacheprovider"]]),
    "loss": ("The loss", 240, [[str(HERE / "loss.py")]]),
    "views": ("Image views", 120, [[str(HERE / "image_views.py")]]),
    "step": (
        "A step of training",
        240,
        [
            [STEP, "--device", "cuda", "--batch-size", "1024", "--workers", "8"],
            [STEP, "--device", "cuda", "--batch-size", "128", "--encoder", "resnet50", "--workers", "8"],
            [STEP, "--device", "cuda", "--spaces", "--workers", "8"],
        ],
    ),
    "board": (
        "Time to accuracy",
        480,
        [
            [
                str(BENCHMARKS / "time_to_accuracy.py"),
                *shlex.split("--device cuda --target 0.94 --encoder resnet18 --batch-size 512"),
                *shlex.split("--mixed-precision bf16 --workers 4"),
            ]
        ],
    ),
}


def run(command: list[str], seconds: float) -> tuple[str, str]:
    """What a command printed, and how it ended."""
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return printed, f"cut off after {seconds:.0f} s"
    if done.returncode:
        return done.stdout + done.stderr[-4000:], f"status {done.returncode}"
    return done.stdout, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.md"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--fashion", type=Path, help="the folder of Fashion-MNIST's files")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    options = parser.parse_args()
    chosen = {name: PARTS[name] for name in options.parts}
    if options.fashion and "board" in chosen:
        title, bound, commands = chosen["board"]
        chosen["board"] = title, bound, [[*command, "--data", str(options.fashion)] for command in commands]
    if options.list:
        for name, (_, bound, commands) in chosen.items():
            print(*(f"{name}, {bound} s: python {shlex.join(command)}" for command in commands), sep="\n")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("this needs a GPU; --list shows what would run")
    options.output.write_text(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    failed = []
    for name, (title, bound, commands) in chosen.items():
        began, ends = time.monotonic(), []
        with options.output.open("a") as file:
            file.write(f"\n## {title}\n")
        for command in commands:
            printed, end = run(command, max(1.0, bound - (time.monotonic() - began)))
            ends += [end] if end else []
            with options.output.open("a") as file:
                file.write(f"\n`python {shlex.join(command)}`\n\n{printed}\n{end}\n")
        print(f"{name}: {'; '.join(ends) or 'done'} in {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if ends else []
    print(f"tables: {options.output}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
