"""The data that comes with the package: small, real where not declared synthetic, each with its licence beside it.

    from mmcon.sources import bundled

    bundled.names()                    # what there is
    bundled.path("fashion", "train")   # a parquet file
    bundled.rows("emoji", "test", ["id", "name_en", "name_fr"])   # a dict a row
    bundled.card("fashion")            # title, licence, source, counts, columns

A sample is a folder: a parquet file for each split (or a media file), `card.json`, and the licence texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcon.errors import UnknownNameError, nearest

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of the bundled samples."""
    return sorted(card.parent.name for card in _FOLDER.glob("*/card.json"))


def path(name: str, split: str | None = None) -> Path:
    """The folder of a sample, or, with a split's name, that split's parquet file.

    Raises:
        UnknownNameError: there is no such sample, or it has no such split; the message has the nearest names.
    """
    if name not in names():
        _refuse("samples", "the name of a bundled sample", name, names())
    folder = _FOLDER / name
    if split is None:
        return folder
    splits = splits_of(name)
    if split not in splits:
        _refuse(f"samples {name!r}", "the name of a split", split, splits)
    return folder / f"{split}.parquet"


def rows(name: str, split: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a split, media still encoded; with columns named, only these are read.

    Raises:
        UnknownNameError: there is no such sample, split or column; the message has the nearest names.
    """
    import pyarrow.parquet as parquet

    file = path(name, split)
    known = parquet.read_schema(file).names
    for column in columns or ():
        if column not in known:
            _refuse(f"samples {name!r}", "the name of a column", column, known)
    return parquet.read_table(file, columns=list(columns) if columns else None).to_pylist()


def splits_of(name: str) -> list[str]:
    """The names of a sample's splits."""
    return sorted(file.stem for file in path(name).glob("*.parquet"))


def card(name: str) -> dict[str, Any]:
    """What a sample is: title, licence, source, whether it is synthetic, counts by split, columns and their meaning.

    Raises:
        UnknownNameError: there is no such sample; the message has the nearest names.
    """
    return json.loads((path(name) / "card.json").read_text(encoding="utf-8"))


def _refuse(where: str, expected: str, got: str, known: list[str]) -> None:
    raise UnknownNameError(where, expected=expected, got=repr(got), fix=nearest(got, known))
