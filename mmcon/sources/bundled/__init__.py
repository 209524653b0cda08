"""Small data sets in the package, each with its license and a flag if it is synthetic.

    from mmcon.sources import bundled

    bundled.names()                    # the names of the sets
    bundled.path("fashion", "train")   # a parquet file
    bundled.rows("emoji", "test", ["id", "name_en", "name_fr"])   # one dict per row
    bundled.card("fashion")            # title, license, source, counts, columns

A set is a folder: a parquet file for each split (or a media file), `card.json`, and the license texts. The modules of
this package register the sources that open them (`samples/fashion`, ...).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import UnknownNameError, nearest
from mmcon.sources.splits import ALL, match_split

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of the bundled sets."""
    return sorted(card.parent.name for card in _FOLDER.glob("*/card.json"))


def path(name: str, split: str | None = None) -> Path:
    """The folder of a set, or, with a split's name, that split's parquet file.

    Raises:
        UnknownNameError: the set or the split does not exist; the message has the nearest names.
    """
    if name not in names():
        _raise_unknown("samples", "the name of a bundled set", name, names())
    folder = _FOLDER / name
    if split is None:
        return folder
    splits = splits_of(name)
    if split == ALL:
        fix = f"choose one with split= (--split in a command): {', '.join(splits)}"
        raise UnknownNameError(f"samples {name!r}", expected="one of its fixed splits", got=repr(split), fix=fix)
    if split not in splits:
        _raise_unknown(f"samples {name!r}", "the name of a split", split, splits)
    return folder / f"{split}.parquet"


def rows(name: str, split: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a split, with encoded media; only the given columns are read.

    Raises:
        UnknownNameError: the set, the split or a column does not exist; the message has the nearest names.
    """
    import pyarrow.parquet as parquet

    file = path(name, split)
    known = parquet.read_schema(file).names
    for column in columns or ():
        if column not in known:
            _raise_unknown(f"samples {name!r}", "the name of a column", column, known)
    return parquet.read_table(file, columns=list(columns) if columns else None).to_pylist()


def splits_of(name: str) -> list[str]:
    """The names of a set's splits."""
    return sorted(file.stem for file in path(name).glob("*.parquet"))


def match(name: str, split: str) -> str:
    """The split of a set that matches a name (`val` matches the test split); without a match, the name unchanged."""
    return match_split(splits_of(name), split) or split


def decode(encoded: Sequence[bytes], *, channels: int) -> UInt8[Tensor, "n c h w"]:
    """Decode images of one size and stack them."""
    from torchvision.io import ImageReadMode, decode_image

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    return torch.stack([decode_image(torch.frombuffer(bytearray(e), dtype=torch.uint8), mode) for e in encoded])


def card(name: str) -> dict[str, Any]:
    """Metadata of a set: title, license, source, whether it is synthetic, counts by split, columns and their meaning.

    Raises:
        UnknownNameError: the set does not exist; the message has the nearest names.
    """
    return json.loads((path(name) / "card.json").read_text(encoding="utf-8"))


def _raise_unknown(where: str, expected: str, got: str, known: list[str]) -> None:
    raise UnknownNameError(where, expected=expected, got=repr(got), fix=nearest(got, known))
