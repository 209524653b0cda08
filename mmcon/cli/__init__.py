"""The `mmcon` command: registered views, contact sheets, recipes, replays, capacity plans, and environment checks.

    mmcon views [NAME] [--modality image]
    mmcon views score NAME [NAME …] --data PATH [--encoder runs/…/model]
    mmcon show image/simclr --input photo.jpg --output sheet.png
    mmcon recipe list
    mmcon recipe run imagenet_supcon --data photos
    mmcon recipe copy imagenet_supcon
    mmcon replay RUN --step N --sample ID
    mmcon plan --encoder resnet50 --batch-size 65536 --gpus 1024
    mmcon doctor [--data PATH] [--chaos]

The exit status is 0; 1 if `mmcon doctor` finds a failure; 2 for invalid input. Each command is a module with two public
functions: `add_parser`, and `run` with the heavy imports, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mmcon
from mmcon.cli import doctor, plan, recipe, replay, show, views
from mmcon.errors import MmconError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; invalid input is reported on stderr without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except MmconError as error:
        print(f"mmcon: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mmcon views | head`
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmcon", description="Contrastive learning for any modality.")
    parser.add_argument("--version", action="version", version=f"mmcon {mmcon.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (views, show, recipe, replay, plan, doctor):
        command.add_parser(commands)
    return parser
