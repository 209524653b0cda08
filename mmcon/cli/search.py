"""`mmcon search`: find what resembles a file or a text in a table that `mmcon embed` wrote."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcon.cli.options import add_command, add_json_flag, messages, print_json


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands,
        "search",
        help="find what resembles a file or a text in embedded data",
        example="mmcon search photos.parquet --query photo.jpg --html neighbors.html",
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="a file that `mmcon embed` wrote")
    parser.add_argument("--query", required=True, help="an image, a recording, a video, or a text")
    parser.add_argument("--k", type=int, default=10, help="the number of neighbors (default: 10)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures and players")
    parser.add_argument("--model", help="the model, if it is not where the table says; it must be the same one")
    parser.add_argument("--modality", help="of the query (default: by its suffix; `text` if there is no such file)")
    parser.add_argument("--device", help="such as cuda:0 (default: cpu, which one query is fast on)")
    parser.add_argument(
        "--approximate", action="store_true", help="use an index, built at the first call: for a million rows and more"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Search, print the hits, and write the sheet."""
    from mmcon.files import create_folder
    from mmcon.inference.embedding_table import EmbeddingTable
    from mmcon.inference.search import load_for, query_modality, search_table
    from mmcon.inference.search_sheet import write_search_sheet

    if options.html:
        create_folder(options.html.parent)
    with messages(options.json):
        table = EmbeddingTable.read(options.table)
        model = load_for(table, options.model, device=options.device)
        modality = options.modality or query_modality(model, options.query)
        find = None
        if options.approximate:
            from mmcon.inference.search_index import open_index

            find = open_index(table, options.table).search
        hits = search_table(table, model, options.query, k=options.k, modality=modality, find=find)
        if options.html:
            write_search_sheet(options.html, table, model, options.query, hits, modality=modality)
    if options.json:
        found = [hit.to_json() for hit in hits]
        about = {"query": options.query, "modality": modality, "table": table.origin.to_json()}
        print_json({**about, "neighbors": found})
        return
    print(_as_text(hits))
    if options.html:
        print(f"page: {options.html}")


def _as_text(hits: Sequence[Any]) -> str:
    width = max(len("label"), *(len(hit.label or "") for hit in hits))
    lines = [f"rank  score  {'label':{width}}  path"]
    lines += [f"{hit.rank:4}  {hit.score:5.3f}  {hit.label or '':{width}}  {hit.path}" for hit in hits]
    return "\n".join(lines)
