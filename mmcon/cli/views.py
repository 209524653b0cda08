"""`mmcon views`: list view generators and samplers, describe them, or score the spread of their views."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mmcon
from mmcon.cli.options import add_command, add_option_flag, parse_options
from mmcon.errors import InputError, UnknownNameError, nearest


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "views",
        help="list view generators and samplers, describe one, or score their spread",
        example="mmcon views image/simclr",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a generator to describe; or `score` and the generators to score"
    )
    parser.add_argument("--modality", help="list this modality only")
    scoring = parser.add_argument_group(
        "score", "distances between views of a sample, compared with samples and classes"
    )
    scoring.add_argument("--data", default="samples/fashion", help="a source of images (default: samples/fashion)")
    scoring.add_argument("--encoder", help="a trained model's folder, or an encoder by name (default: pixels)")
    scoring.add_argument("--samples", type=int, default=256)
    scoring.add_argument("--seed", type=int, default=0)
    scoring.add_argument("--output", type=Path, default=Path("spread.png"), help="the plot (default: spread.png)")
    add_option_flag(scoring, "the views")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """List, describe or score."""
    if options.names[:1] == ["score"]:
        _score(options)
    elif options.names:
        for name in options.names:
            print(mmcon.describe_view(name))
    else:
        _list(options.modality)


def _list(modality: str | None) -> None:
    from mmcon.registry import entries

    known = sorted({entry.modality for entry in (*entries("view"), *entries("sampler"))})
    if modality and modality not in known:
        raise UnknownNameError("mmcon views", expected="a modality", got=repr(modality), fix=nearest(modality, known))
    listed = [*entries("view", modality), *entries("sampler", modality)]
    width = max(len(entry.name) for entry in listed)
    for entry in listed:
        print(f"{entry.name:{width}}  {entry.summary}")


def _score(options: argparse.Namespace) -> None:
    from mmcon.evaluation.view_spread import plot_spread, score_registered_views, spread_table

    names = options.names[1:]
    if not names:
        raise InputError(
            "mmcon views score", expected="views to score", got="none", fix="mmcon views score image/simclr"
        )
    spreads = score_registered_views(
        names, options.data, encoder=options.encoder, samples=options.samples, seed=options.seed,
        options=parse_options(options.option),
    )  # fmt: skip
    print(spread_table(spreads))
    plot_spread(spreads).savefig(options.output, dpi=150)
    print(f"plot: {options.output}")
