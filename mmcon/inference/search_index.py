"""Approximate search in a large table by usearch's graph of neighbors, which is built once and then memory-mapped.

    index = open_index(EmbeddingTable.read("photos.parquet"), "photos.parquet")    # photos.parquet.usearch
    found = index.search(query, k=10)

A query reads a small part of the graph instead of all rows. Rows are stored in half precision, so that scores are
rounded to about three digits, and a neighbor may be missed (a few in a hundred).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.errors import DataError, MissingDependencyError, StorageError
from mmcon.files import replace_file
from mmcon.inference.embedding_table import EmbeddingTable, Neighbors
from mmcon.training.progress import Progress

#: Candidates that a query compares at least.
_EXPANSION = 256


@final
class SearchIndex:
    """An approximate index of a table.

    Args:
        index: usearch's index, whose keys are rows of the table.
        table: the table.
    """

    def __init__(self, index: Any, table: EmbeddingTable) -> None:
        self.index, self.table = index, table

    def search(self, query: Shaped[np.ndarray, "*q d"] | Float[Tensor, "*q d"], k: int = 10) -> Neighbors:
        """The rows that are nearest to each query by cosine similarity, most of them; as `EmbeddingTable.search`.

        Raises:
            InputError: k is below 1, or the query has another width or is not finite.
        """
        queries = self.table.checked_query(query, k)
        found = [self.index.search(row.numpy(), min(k, len(self.table))) for row in queries]
        rows = torch.from_numpy(np.stack([match.keys for match in found]).astype(np.int64))
        return Neighbors(rows, 1 - torch.from_numpy(np.stack([match.distances for match in found])))


def open_index(table: EmbeddingTable, path: str | Path) -> SearchIndex:
    """The index of a table: that beside its file, which is built if there is none of the same file.

    Args:
        table: the table.
        path: its file.

    Raises:
        MissingDependencyError: usearch is not installed.
        StorageError: the index cannot be written.
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        fix = "pip install 'mmcon[search]', or search without --approximate"
        raise MissingDependencyError("approximate search", expected="usearch", got=str(error), fix=fix) from error
    file, about = Path(f"{path}.usearch"), _about(table, Path(path))
    if not _is_of(file, about):
        _build(Index, table, file)
        replace_file(_about_file(file), json.dumps(about))
    try:
        return SearchIndex(Index(path=file, view=True, expansion_search=_EXPANSION, **_kind(table)), table)
    except RuntimeError as error:
        fix = "remove it; it is built again at the next search"
        raise DataError(f"index {file}", expected="a complete index", got=str(error), fix=fix) from error


def _kind(table: EmbeddingTable) -> dict[str, Any]:
    return {"ndim": table.width, "metric": "cos", "dtype": "f16"}


def _build(kind: Any, table: EmbeddingTable, file: Path) -> None:
    """Add all rows, and save the graph; a file of the same name is replaced when the new one is complete."""
    index = kind(**_kind(table))
    with Progress("index", len(table)) as progress:
        for start, values in table.blocks(8192):
            index.add(np.arange(start, start + len(values)), np.ascontiguousarray(values))
            progress.advance(start + len(values))
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        _about_file(file).unlink(missing_ok=True)
        index.save(temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:  # usearch raises RuntimeError
        expected, fix = "a folder that files can be written to", "copy the table to another one"
        raise StorageError(f"index {file}", expected=expected, got=str(error), fix=fix) from error
    finally:
        temporary.unlink(missing_ok=True)


def _about(table: EmbeddingTable, path: Path) -> dict[str, Any]:
    """What an index is of: a table file by its size and time of change, which are those of its rows."""
    state = path.stat()
    return {"rows": len(table), "width": table.width, "bytes": state.st_size, "changed_ns": state.st_mtime_ns}


def _about_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _is_of(file: Path, about: dict[str, Any]) -> bool:
    try:
        return file.exists() and json.loads(_about_file(file).read_text()) == about
    except (OSError, ValueError):  # none, or one that was cut off
        return False
