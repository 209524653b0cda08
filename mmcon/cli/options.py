"""Options of a view generator on the command line: `--option NAME=VALUE`, any number of times."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml


def add_option_flag(parser: argparse._ActionsContainer, what: str) -> None:
    """Add the flag `--option` to a parser or to a group of it."""
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=f"an option of {what}")


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """The options by name; values are read as YAML, so that 3 is an integer and [0.5, 1] a list."""
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}
