"""The result of a search as one HTML file that stands alone: pictures, players and scores, without any request.

All values are escaped by Jinja, and the file forbids itself to load anything.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcon.errors import DataError
from mmcon.files import create_folder, replace_file
from mmcon.inference.embedding_table import EmbeddingTable
from mmcon.inference.inputs import InputOpener
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.search import Hit
from mmcon.media.preview import Preview, preview_of

#: The longest side of a picture, in pixels.
SIDE = 240


@dataclass(frozen=True)
class _Card:
    """What the sheet shows of a hit."""

    hit: Hit
    preview: Preview
    name: str
    note: str


def write_search_sheet(
    output: str | Path,
    table: EmbeddingTable,
    model: LoadedModel,
    query: str | Path,
    hits: Sequence[Hit],
    *,
    modality: str,
) -> Path:
    """Write the sheet of a query and its hits.

    Args:
        output: the .html file.
        table: the searched table.
        model: its model.
        query: the path of a file, or a text.
        hits: the hits; one whose file is not there any more has no picture.
        modality: the modality of the query.

    Raises:
        DataError: the query cannot be read.
        StorageError: the sheet cannot be written.
    """
    output = Path(output)
    shown = preview_of(_opened(model, modality, str(query)), modality, side=SIDE)
    cards = [_card(table, model, hit) for hit in hits]
    title = f"Nearest to {str(query) if modality == 'text' else Path(query).name}"
    page = _template().render(title=title, query=str(query), preview=shown, cards=cards, table=table, total=len(table))
    create_folder(output.parent)
    return replace_file(output, page)


def _card(table: EmbeddingTable, model: LoadedModel, hit: Hit) -> _Card:
    modality = table.origin.modality
    name = "" if modality == "text" else Path(hit.path).name
    try:
        return _Card(hit, preview_of(_opened(model, modality, hit.path), modality, side=SIDE), name, "")
    except DataError as error:  # moved or changed since it was embedded, or a member of an archive
        return _Card(hit, Preview(), name, str(error).partition("\n")[0])


def _opened(model: LoadedModel, modality: str, item: str) -> Any:
    return InputOpener(modality, dict(model.preprocessing[modality].media))(item, item)


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("search_sheet.html.jinja")
