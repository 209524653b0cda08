"""`mmcon completion`: print the script by which a shell completes commands, flags and files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command

SHELLS = ("bash", "zsh", "fish")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "completion",
        help="print the completions of a shell",
        example='eval "$(mmcon completion bash)"      # in ~/.bashrc; for zsh and fish see docs/cli.md',
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    from mmcon.cli import create_parser

    parser = create_parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell=options.shell))


def _complete_files(parser: argparse.ArgumentParser, by_shell: Mapping[str, Any]) -> None:
    """Complete files wherever a value may be one: in arguments without choices that are no numbers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, by_shell)
        elif action.nargs != 0 and not action.choices and action.type in (None, Path):
            action.complete = by_shell  # type: ignore[attr-defined]
