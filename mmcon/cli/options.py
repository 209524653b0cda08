"""What commands share: how they are added to the parser, `--option NAME=VALUE`, and output that programs read."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmcon.errors import InputError
from mmcon.files import read_yaml


def add_command(commands: Any, name: str, *, help: str, example: str) -> argparse.ArgumentParser:
    """Add a command to the subparsers of `mmcon`.

    Args:
        commands: the subparsers.
        name: the word after `mmcon`.
        help: what it does, in the list of commands and at the top of its own help.
        example: a line that can be typed, at the end of its help.
    """
    return commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_option_flag(parser: argparse._ActionsContainer, what: str) -> None:
    """Add the flag `--option` to a parser or to a group of it."""
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=f"an option of {what}")


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """The options by name; values are read as YAML, so that 3 is an integer and [0.5, 1] a list.

    Raises:
        InputError: a word has no "=".
    """
    for word in words:
        if "=" not in word:
            raise InputError("--option", expected="NAME=VALUE", got=repr(word))
    pairs = (word.partition("=") for word in words)
    return {name: read_yaml(value, where=f"--option {name}") for name, _, value in pairs}


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag for integers of at least `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more; got {text}")
        return value

    return integer


def add_json_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout, and all messages on stderr")


@contextlib.contextmanager
def messages(as_json: bool) -> Iterator[None]:
    """Print everything in the body to stderr if stdout is for JSON."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """Print a value as JSON, in one line; a file name that is not UTF-8 is escaped."""
    print(json.dumps(value))


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say, if the body is interrupted, that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print("what is finished is kept; the same command goes on", file=sys.stderr)
        raise
