"""Write the table of docs/cli.md: every command, what it does, and the example of its help.

uv run python tools/cli_page.py
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmcon.cli import create_parser

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
BEGIN, END = "<!-- commands -->\n", "<!-- end of commands -->"


def commands(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command that does something, by its words; those of actions instead of their command."""
    found = {}
    for action in (parser or create_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= commands(inner) or {inner.prog: inner}
    return found


def example_of(parser: argparse.ArgumentParser) -> str:
    """The line that the help ends with."""
    return (parser.epilog or "").partition("\n")[2].strip()


def table() -> str:
    lines = ["| command | what it does | example |", "|---|---|---|"]
    for name, parser in commands().items():
        about = (parser.description or "").rstrip(".")
        lines.append(f"| `{name}` | {about} | `{re.sub(r'  +#.*', '', example_of(parser))}` |")
    return "\n".join(lines) + "\n"


def page() -> str:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
