"""`mmcon conform`: put the components of a plug-in, or a built-in one, through the laws of their kind."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from mmcon.cli.options import add_command, add_option_flag, parse_options


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "conform",
        help="check components of a plug-in against the laws of their kind",
        example="mmcon conform bird-calls",
    )
    parser.add_argument("name", help="a registered name, the first part of one, or the module of a plug-in")
    parser.add_argument("--data", help="samples for views and encoders (default: the plug-in's own, or bundled ones)")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    add_option_flag(parser, "the components that take it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a line for each component as it is checked; the exit status is 1 if one violates a law."""
    from mmcon.testing import conform

    results = []
    for result in conform(options.name, data=options.data, options=parse_options(options.option)):
        results.append(result)
        if not options.json:
            print(result, flush=True)
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    return int(any(result.violation for result in results))
