"""`mmcon compare`: accuracies of several runs with intervals, and paired tests of their differences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command, add_json_flag, print_json
from mmcon.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "compare",
        help="compare runs on the same held-out samples, with intervals and paired tests",
        example="mmcon compare runs/supcon runs/simclr",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, folders of several seeds, or folders of `mmcon evaluate`"
    )
    parser.add_argument(
        "--metric", nargs="*", default=[], help="names of classifiers (default: all that all runs have)"
    )
    parser.add_argument(
        "--draws", type=int, default=10_000, help="exchanges of a permutation test, 1,000 or more (default: 10,000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the exchanges")
    parser.add_argument("--output", type=Path, help="a picture, such as compare.png")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the comparison, and draw it."""
    from mmcon.evaluation.comparison import compare_runs

    if options.output:
        _check_picture(options.output)
    result = compare_runs(options.runs, metrics=options.metric, draws=options.draws, seed=options.seed)
    if options.json:
        print_json(result.to_json())
    else:
        print(result.table())
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result.plot().savefig(options.output, dpi=150)


def _check_picture(output: Path) -> None:
    """Raise InputError, before any work, for a suffix of no picture."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if output.suffix and output.suffix[1:].lower() not in known:
        expected = f"a picture: {', '.join('.' + suffix for suffix in sorted(known))}"
        raise InputError("compare --output", expected=expected, got=str(output))
