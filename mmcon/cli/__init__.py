"""The `mmcon` command: train, then use, examine and share what was trained.

    mmcon train imagenet_supcon --data photos
    mmcon embed runs/imagenet_supcon photos --output photos.parquet
    mmcon search photos.parquet --query photo.jpg --html neighbors.html
    mmcon classify runs/imagenet_supcon new/*.jpg
    mmcon --help

docs/cli.md lists all commands. The exit status is 0; 1 if `mmcon doctor` finds a failure, or an error ends a recipe; 2
for invalid input; 130 after Ctrl-C. Each command is a module with two public functions: `add_parser`, and `run` with
the heavy imports, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mmcon
from mmcon.cli import (
    classify,
    compare,
    completion,
    conform,
    doctor,
    embed,
    evaluate,
    export,
    new_plugin,
    plan,
    push,
    recipe,
    replay,
    report,
    search,
    show,
    train,
    transfer,
    views,
)
from mmcon.errors import MmconError

#: The modules of the commands, in the order of the help.
COMMANDS = (
    train,
    recipe,
    embed,
    search,
    classify,
    evaluate,
    compare,
    transfer,
    report,
    export,
    push,
    views,
    show,
    replay,
    plan,
    doctor,
    new_plugin,
    conform,
    completion,
)
#: The exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT.
INTERRUPTED = 130

FIRST_STEPS = """mmcon: contrastive learning for any modality

  mmcon train imagenet_supcon --tiny                   a minute of training on images that come with the package
  mmcon train imagenet_supcon --data photos            train on photos, one folder for each class
  mmcon embed runs/imagenet_supcon photos --output photos.parquet
  mmcon search photos.parquet --query photo.jpg --html neighbors.html
  mmcon recipe list                                    training on images, sounds, texts, videos, and several of them
  mmcon doctor --data photos                           check the environment and the data
  mmcon --help                                         all commands
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; invalid input is reported on stderr without a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(FIRST_STEPS, end="")
        return 0
    options = create_parser().parse_args(arguments)
    options.words = list(arguments)
    try:
        return options.run(options) or 0
    except MmconError as error:
        print(f"mmcon: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `mmcon views | head`
        sys.stderr.close()
        return 0


def create_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="mmcon",
        description="Contrastive learning for any modality.",
        epilog="example:\n  mmcon train imagenet_supcon --data photos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmcon {mmcon.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
