"""`mmcon new-plugin`: write a package with a view, an encoder, a sampler, a source, and their tests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "new-plugin",
        help="write a package of your own components, with their tests",
        example="mmcon new-plugin bird-calls && uv pip install -e bird-calls && mmcon conform bird-calls",
    )
    parser.add_argument("name", help="of the package, and the first part of the names of its components")
    parser.add_argument("--to", type=Path, help="a folder that is new or empty (default: one of that name)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the files, and say what to do next."""
    from mmcon.testing.plugin_files import write_plugin

    files = write_plugin(options.name, options.to)
    print("\n".join(map(str, files)))
    print(f"next: uv pip install -e {files[0].parent} && mmcon conform {options.name}")
