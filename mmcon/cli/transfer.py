"""`mmcon transfer`: several models on many data sets, linear and fine-tuned, with paired tests of their differences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmcon.cli.options import (
    add_command,
    add_json_flag,
    add_option_flag,
    at_least,
    messages,
    parse_options,
    print_json,
    resumable,
)


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "transfer",
        help="compare models on many data sets, linear and fine-tuned, with paired tests",
        example="mmcon transfer runs/supcon runs/cross_entropy --data flowers birds --protocols linear fine-tuned",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="what mmcon.load opens, or folders of several seeds of such"
    )
    parser.add_argument("--data", nargs="+", required=True, help="sources by name or path, with labels")
    parser.add_argument(
        "--protocols", nargs="+", default=["linear"], help="linear (default) and fine-tuned"
    )  # not choices: the error of the function names the nearest
    parser.add_argument("--output", type=Path, default=Path("transfer"), help="a folder (default: transfer)")
    parser.add_argument("--draws", type=at_least(1000), default=10_000, help="exchanges of a test (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument("--batch-size", type=int, default=256, help="samples that are encoded at once (default: 256)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read and decode files (default: 0)")
    parser.add_argument("--device", help="such as cuda:0 (default: a GPU if there is one, else cpu)")
    add_option_flag(parser, "an evaluation or of the sources, such as fine_tuning_epochs=5")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Evaluate and compare; the same command goes on after an interruption."""
    from mmcon.cli.embed import device_of
    from mmcon.inference.model_transfer import evaluate_transfer

    with messages(options.json), resumable():
        result = evaluate_transfer(
            options.models, options.data, output=options.output, protocols=options.protocols,
            options=parse_options(options.option), draws=options.draws, seed=options.seed,
            batch_size=options.batch_size, workers=options.workers, device=device_of(options.device),
        )  # fmt: skip
        print(f"\n{result.table()}\n\ntable, numbers and picture: {options.output}")
    if options.json:
        print_json(result.to_json())
