"""Options of a view generator on the command line: `--option NAME=VALUE`, any number of times."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmcon.files import read_yaml


def add_option_flag(parser: argparse._ActionsContainer, what: str) -> None:
    """Add the flag `--option` to a parser or to a group of it."""
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=f"an option of {what}")


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """The options by name; values are read as YAML, so that 3 is an integer and [0.5, 1] a list."""
    pairs = (word.partition("=") for word in words)
    return {name: read_yaml(value, where=f"--option {name}") for name, _, value in pairs}
