"""`mmcon classify`: the classes of files with their probabilities, by the probe of a run or by the names of classes."""

from __future__ import annotations

import argparse
import csv
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcon.cli.embed import add_speed_flags, device_of
from mmcon.cli.options import add_command, add_json_flag, messages, print_json
from mmcon.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "classify",
        help="classify files by a trained model",
        example="mmcon classify runs/imagenet_supcon new/*.jpg --output classes.csv",
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, a saved model, or a name on the hub")
    parser.add_argument("files", metavar="FILE", nargs="+", help="files, folders, or patterns in quotes")
    parser.add_argument("--output", type=Path, help="write a .csv file instead of printing")
    parser.add_argument("--top", type=int, default=1, help="the number of classes for each file (default: 1)")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="classify by these names, for a model with texts (zero-shot)"
    )
    parser.add_argument(
        "--template", action="append", metavar="TEXT", help="a text with {} for the name, any number of times"
    )
    parser.add_argument("--modality", help="for a model of several (default: by the suffixes of the files)")
    add_speed_flags(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Classify the files; those that cannot be read are named on stderr and left out."""
    import mmcon
    from mmcon.files import create_folder
    from mmcon.inference import UnreadableWarning
    from mmcon.inference.any_data import open_data

    if options.top < 1:
        raise InputError("mmcon classify", expected="--top of 1 or more", got=str(options.top))
    if options.output:
        create_folder(options.output.parent)
    with messages(options.json), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = mmcon.load(options.model, device=device_of(options.device))
        source = open_data(model, options.files, modality=options.modality)
        zero_shot = {"classes": options.classes} if options.classes else {}
        zero_shot |= {"templates": options.template} if options.template else {}
        found = model.classify(source, batch_size=options.batch_size, num_workers=options.workers, **zero_shot)
    for warning in caught:
        text = str(warning.message)
        if isinstance(warning.message, UnreadableWarning):  # the loader has named each of them
            text = f"{len(warning.message.rows):,} of {len(source):,} files left out, which cannot be read"
        print(f"mmcon: {text}", file=sys.stderr)
    rows = list(zip(found.names, found.top(options.top), strict=True))
    if options.output:
        _write_csv(options.output, rows, options.top)
    if options.json:
        print_json([{"file": name, "classes": [{"name": c, "probability": p} for c, p in top]} for name, top in rows])
    elif options.output:
        print(f"{options.output}: {len(rows):,} files")
    else:
        print(_as_text(rows))


def _write_csv(output: Path, rows: Sequence[tuple[str, list[tuple[str, float]]]], top: int) -> None:
    from mmcon.files import replace_file

    text = io.StringIO()
    writer = csv.writer(text)
    numbers = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    writer.writerow(["file", *(f"{column}{number}" for number in numbers for column in ("class", "probability"))])
    writer.writerows([name, *(cell for c, p in found for cell in (c, f"{p:.6f}"))] for name, found in rows)
    replace_file(output, text.getvalue())


def _as_text(rows: Sequence[tuple[str, list[tuple[str, float]]]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  " + "  ".join(f"{c} {p:.3f}" for c, p in found) for name, found in rows)
