"""`mmcon replay`: write a sample as the model received it at a step of a run, and recompute the loss of that step."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command
from mmcon.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "replay",
        help="write the inputs of the model at a step of a run, and recompute the loss",
        example="mmcon replay runs/imagenet_supcon --step 100 --sample cats/a.jpg",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--step", type=int, required=True, help="the number of the step in metrics.jsonl")
    parser.add_argument(
        "--sample", required=True, help="the id of the sample, as in errors, or the name that the id is a hash of"
    )
    parser.add_argument("--output", type=Path, help="a folder (default: replay-STEP-SAMPLE)")
    parser.add_argument("--repeat", type=int, default=500, help="the most steps to repeat for the loss (default: 500)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the recipe of the run again, with the replay in its environment, and return its exit status."""
    from mmcon.training.replay import Replay, program_of

    words, directory = program_of(options.folder)
    if options.step < 1:
        raise InputError("mmcon replay", expected="--step of 1 or more", got=str(options.step))
    name = f"replay-{options.step}-{options.sample}".replace("/", "_")
    request = Replay(
        folder=str(options.folder.resolve()),
        step=options.step,
        sample=options.sample,
        output=str((options.output or Path(name)).resolve()),
        repeat=options.repeat,
    )
    print("replay: " + shlex.join(words), flush=True)
    return subprocess.run(words, cwd=directory, env=request.environment()).returncode
