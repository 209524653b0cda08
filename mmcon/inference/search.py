"""Search a table of embeddings by a file or a text: encode the query by the table's own model, and find its neighbors.

table = EmbeddingTable.read("photos.parquet")
model = load_for(table)                                   # the model that the table names, checked by fingerprint
hits = search_table(table, model, "a red car", k=5)       # or the path of a photo, a recording, a clip
hits[0].path, hits[0].score, hits[0].label
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import DataError, InputError
from mmcon.inference.any_data import modality_of_file
from mmcon.inference.embedding_table import EmbeddingTable, Neighbors
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.loading import load


@dataclass(frozen=True)
class Hit:
    """A row of a table that is near to a query.

    Attributes:
        rank: from 1, the nearest.
        score: the cosine similarity.
        path: the row's file, or its name in the source; of a text, the text.
        label: the name of its class, if it has one.
        id: the id of its sample.
        row: its index in the table.
    """

    rank: int
    score: float
    path: str
    label: str | None
    id: int
    row: int

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def load_for(
    table: EmbeddingTable, name: str | Path | None = None, *, device: torch.device | str | None = None
) -> LoadedModel:
    """The model of a table, by its name in the table or by another name.

    Raises:
        InputError: the model has another fingerprint than the one that made the table.
        CheckpointError: there is no such model.
    """
    origin = table.origin
    model = load(name or origin.model, device=device)
    if model.fingerprint != origin.fingerprint:
        raise InputError(
            "search",
            expected=f"the model that made the table, {origin.model} of fingerprint {origin.fingerprint[:12]}",
            got=f"{model.name} of fingerprint {model.fingerprint[:12]}",
            fix=f"embed the data by this model: mmcon embed {model.name} {origin.data} --output FILE",
        )
    return model


def search_table(
    table: EmbeddingTable,
    model: LoadedModel,
    query: str | Path,
    *,
    k: int = 10,
    modality: str | None = None,
    find: Callable[..., Neighbors] | None = None,
) -> list[Hit]:
    """The rows of a table that are nearest to a file or a text, the nearest first.

    Args:
        table: the embeddings.
        model: the model that made them.
        query: the path of a file; or a text, for a model of texts that share a space with the rows.
        k: the number of rows.
        modality: of the query; None: by the suffix of the file, or "text" if there is no such file.
        find: a function from (embedding, k) to neighbors; by default the exact search of the table.

    Raises:
        InputError: the model lacks the modality, or the rows are features, which only queries of their own modality
            are comparable with.
        DataError: there is no such file, or it cannot be read.
    """
    modality = modality or query_modality(model, query)
    origin = table.origin
    if modality != origin.modality and origin.space is None:
        raise InputError(
            "search",
            expected=f"a query of {origin.modality!r}, since the rows are features of its encoder",
            got=f"{str(query)!r} of {modality!r}",
            fix=f"embed the data in a shared space: mmcon embed {origin.model} {origin.data} --space NAME",
        )
    # The rows may be the leading dimensions of embeddings, and then the query is cut as they are.
    options = {"space": origin.space, "truncate_dim": table.width, "show_progress": False}
    rows = model.encode(str(query), modality=modality, **options)
    found = (find or table.search)(rows, k)
    pairs = enumerate(zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True), start=1)
    ids = table.index["id"]
    return [Hit(rank, score, table.path(row), table.label(row), ids[row].as_py(), row) for rank, (row, score) in pairs]


def query_modality(model: LoadedModel, query: str | Path) -> str:
    """The modality of a query: that of the file's suffix, or "text" for a text.

    Raises:
        InputError: the model lacks the modality.
        DataError: the query is neither a file that exists nor, for a model of texts, a text.
    """
    has_texts = "text" in model.modalities
    is_file, by_suffix = _exists(query), modality_of_file(Path(query), model.modalities)
    # A text may be the name of a folder, but hardly that of a file.
    if has_texts and len(model.modalities) == 1 and not (is_file and Path(query).expanduser().is_file()):
        return "text"
    if not is_file and has_texts and by_suffix is None:
        return "text"
    if not is_file:
        expected = "a file that exists" + (", or a text" if has_texts else f", since {model.name} has no texts")
        raise DataError("search", expected=expected, got=repr(str(query)), fix="check the path of the query")
    others = [name for name in model.modalities if name != "text"]
    known = by_suffix or (others[0] if len(others) == 1 else None)
    if known is None or known not in model.modalities:
        got = f"{str(query)!r} of {known!r}" if known else f"{str(query)!r}, whose suffix says none"
        fix = "query by a file of such a modality, or name it with --modality"
        fix += "; --modality text takes the name itself as the text" if has_texts else ""
        raise InputError("search", expected=f"a query of {list(model.modalities)}", got=got, fix=fix)
    return known


def _exists(query: str | Path) -> bool:
    try:
        return Path(query).expanduser().exists()
    except (OSError, ValueError):  # a text may be too long, or no name of a file
        return False
