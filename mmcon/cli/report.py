"""`mmcon report`: write the page of a run, one HTML file that stands alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "report",
        help="write the page of a run: curves, views, neighbors, a map, results, in one HTML file",
        example="mmcon report runs/imagenet_supcon",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="a run folder, at work or finished")
    parser.add_argument("--umap", action="store_true", help='add a map by UMAP (needs pip install "mmcon[umap]")')
    parser.add_argument(
        "--table", type=Path, help="also write the test samples as a parquet table, for embedding-atlas"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the pages."""
    from mmcon.report.run_page import write_report
    from mmcon.report.sample_maps import add_umap, write_table

    for folder in options.folders:
        if options.umap:
            add_umap(folder)
        print(f"page:  {write_report(folder)}")
        if options.table:
            print(f"table: {write_table(folder, options.table)}")
