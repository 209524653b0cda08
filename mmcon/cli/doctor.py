"""`mmcon doctor`: check the environment, data if given, and with `--chaos` the recovery of a run from faults."""

from __future__ import annotations

import argparse
from typing import Any

from mmcon.cli.options import add_command, add_option_flag, parse_options


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands, "doctor", help="check the environment, and data if given", example="mmcon doctor --data photos"
    )
    parser.add_argument("--data", help="a folder or the name of a source")
    add_option_flag(parser, "the source, such as label_column=NAME or modality=audio")
    parser.add_argument("--all", action="store_true", help="decode every file (default: up to 2,000, evenly chosen)")
    parser.add_argument("--chaos", action="store_true", help="also inject faults into a run, and check its recovery")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print each finding as it is made; the exit status is 1 if one is a failure."""
    from mmcon.operations import doctor

    given = {"options": parse_options(options.option), "everything": options.all}
    findings = [*doctor.environment(), *(doctor.data(options.data, **given) if options.data else ())]
    for finding in findings:
        print(finding)
    if options.chaos:
        for finding in doctor.chaos():
            findings.append(finding)
            print(finding, flush=True)
    return int(any(finding.level == "bad" for finding in findings))
