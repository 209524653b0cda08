"""`mmcon show`: write a contact sheet of views of a file, and a record of their parameters that replays them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command, add_option_flag, parse_options
from mmcon.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "show",
        help="write a contact sheet of views of a file, with their parameters",
        example="mmcon show image/simclr --input photo.jpg --output sheet.png",
    )
    parser.add_argument("name", nargs="?", help="a view generator, such as image/simclr")
    parser.add_argument("--input", type=Path, help="an image, a recording or a video")
    parser.add_argument("--partner", type=Path, help="a second file, for views that mix two samples")
    parser.add_argument("--views", type=int, default=8, help="number of views (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help="default: sheet.png")
    parser.add_argument("--params", type=Path, help="the file of the record; default: beside the sheet, .json")
    parser.add_argument("--replay", type=Path, help="a record: recompute its views instead of drawing new ones")
    add_option_flag(parser, "the generator")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw views, or replay those of a record, and write the sheet."""
    from mmcon.report.view_sheet import Record, show

    if options.replay:
        show(Record.read(options.replay), options.output, file=options.input)
        print(f"views: {options.output}")
        return
    if not options.name or options.input is None or options.views < 1:
        raise InputError(
            "mmcon show",
            expected="a view generator, --input FILE, and --views of 1 or more",
            got=f"{options.name}, --input {options.input}, --views {options.views}",
            fix="mmcon show image/simclr --input photo.jpg, or mmcon show --replay record.json",
        )
    partner = None if options.partner is None else str(options.partner)
    request = Record(
        options.name, parse_options(options.option), str(options.input), options.seed, options.views, partner
    )
    record, file = show(request, options.output), options.params or options.output.with_suffix(".json")
    record.write(file)
    print(f"{options.views} views: {options.output}")
    audio = sorted(options.output.parent.glob(f"{options.output.stem}-view*.wav"))
    if audio:
        print(f"audio:   {audio[0]} to {audio[-1].name}")
    print(f"params:  {file} (mmcon show --replay {file} recomputes these views)")
