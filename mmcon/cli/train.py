"""`mmcon train`: run a recipe by name, on all GPUs or on the CPU."""

from __future__ import annotations

from typing import Any

from mmcon.cli.options import add_command
from mmcon.cli.recipe import add_training_arguments


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "train",
        help="train by a recipe, on all GPUs or on the CPU",
        example="mmcon train imagenet_supcon --data photos --epochs 100",
    )
    add_training_arguments(parser)
