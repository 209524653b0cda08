"""What the columns of a table mean: which holds the media, which the label, which the id, and labels as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcon.errors import DataError, nearest
from mmcon.media.text import TextHandle

# Names by which columns are usually called, in the order of preference.
MEDIA = {
    "image": ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp"),
    "audio": ("audio", "sound", "speech", "wav", "flac", "mp3", "ogg"),
    "video": ("video", "clip", "mp4", "webm", "avi"),
    "text": ("text", "sentence", "caption", "content", "txt", "name"),
}
FILE = ("file", "path", "file_name", "filename", "file_path", "filepath")
LABEL = ("label", "labels", "class", "class_name", "category", "cls", "fine_label", "target")
ID = ("id", "__key__", "uid", "key", "image_id", "sample_id")
NONE = "none"


@dataclass(frozen=True)
class Columns:
    """The columns of a table by their meaning, and what was guessed, for a person to read."""

    media: str
    label: str | None
    id: str | None
    notes: tuple[str, ...] = ()


def choose_columns(
    where: str, available: Sequence[str], modality: str, *, media: str | None, label: str | None, id: str | None
) -> Columns:
    """Take the columns that were named, and guess the others by their usual names.

    Args:
        where: the source, for messages.
        available: the columns that are there.
        modality: what the media column holds.
        media: the column that was named for the media, if any.
        label: the same for the labels; "none" where they are not wanted.
        id: the same for the names of rows.

    Raises:
        DataError: a named column is not there, or none can be taken for the media.
    """
    usual = {"media": (*MEDIA.get(modality, (modality,)), *FILE), "label": LABEL, "id": ID}
    given = {"media": media, "label": label, "id": id}
    chosen: dict[str, str | None] = {}
    notes = []
    for meaning, name in given.items():
        if name is not None and name != NONE and name not in available:
            fix = nearest(name, list(available))
            got = f"columns {list(available)}"
            raise DataError(where, expected=f"a {meaning} column {name!r}", got=got, fix=fix)
        lowered = {column.lower(): column for column in reversed(available)}
        guess = next((lowered[usually] for usually in usual[meaning] if usually in lowered), None)
        chosen[meaning] = name if name is not None else guess
        if name is None:
            notes.append(f"{meaning} column: {guess!r}, by its name" if guess else f"no {meaning} column found")
    if chosen["media"] in (None, NONE):
        raise DataError(
            where,
            expected=f"a column of {modality} media",
            got=f"columns {list(available)}",
            fix=f"name it: create_source(..., media_column=NAME), or --{modality}-column NAME",
        )
    wanted = {meaning: None if name == NONE else name for meaning, name in chosen.items()}
    return Columns(str(wanted["media"]), wanted["label"], wanted["id"], tuple(notes))


def encode_labels(where: str, values: Sequence[Any], classes: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as whole numbers, `n` int64, and the names of the classes.

    Text labels become classes, in the order of `classes` or else of their names.

    Raises:
        DataError: labels are missing, are fractions, are no class of `classes`, or are as good as all different.
    """
    missing = sum(value is None or value != value for value in values)
    if missing:
        fix = "give every row a label, or take these rows out, or label_column='none'"
        raise DataError(where, expected="a label in every row", got=f"{missing:,} rows without one", fix=fix)
    kinds = Counter(type(value) for value in values)
    if all(issubclass(kind, int) for kind in kinds):
        labels = torch.tensor([int(value) for value in values], dtype=torch.int64)
        return labels, tuple(classes or ())
    if not all(issubclass(kind, str) for kind in kinds):
        raise DataError(
            where,
            expected="labels as whole numbers or as text",
            got=f"values such as {next(v for v in values if not isinstance(v, int | str))!r}",
            fix="a quantity goes into `columns`, where an affinity grades it; else round it, or name another column",
        )
    names = tuple(classes) if classes else tuple(sorted(set(values)))
    if not classes and len(names) > max(20, len(values) // 2):
        raise DataError(
            where,
            expected="labels that rows share",
            got=f"{len(names):,} different texts in {len(values):,} rows, such as {values[0]!r}",
            fix="name the column of classes with label_column, or label_column='none'",
        )
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise DataError(
            where, expected=f"labels among {list(names)[:8]}", got=f"{unknown[:5]}", fix="give classes= with all names"
        )
    return torch.tensor([number[value] for value in values], dtype=torch.int64), names


# --- from what a cell holds to a handle ------------------------------------------------------------------------------

_OPENERS = {
    "image": ("ImageHandle", "id", bytes | Path),
    "audio": ("AudioHandle", "id", bytes | Path),
    "video": ("open_video", "name", Path),
}


def opener(modality: str, root: Path | None = None) -> Callable[[Any, str], Any]:
    """A function from a cell and a row's name to a handle; of modalities without handles, to the cell itself.

    A cell may hold the bytes of a file, a path (relative to `root`), a mapping with `bytes` or `path` as the datasets
    library has it, or (file, offset, size) in an archive.
    """
    if modality == "text":
        return _as_text
    if modality not in _OPENERS:
        return _as_it_is
    return partial(_open_cell, modality=modality, root=root)


def _as_text(cell: Any, name: str) -> TextHandle:
    cell = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell
    if not isinstance(cell, str) or not cell.strip():
        raise DataError(name, expected="a text that is not empty", got=repr(cell), fix="leave the row out")
    return TextHandle((cell,), id=name)


def _as_it_is(cell: Any, name: str) -> Any:
    return cell


def _open_cell(cell: Any, name: str, *, modality: str, root: Path | None) -> Any:
    opens, called, takes = _OPENERS[modality]
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, str):
        cell = (root or Path()) / cell
    elif isinstance(cell, tuple):
        file, offset, size = cell
        with open(file, "rb") as archive:
            archive.seek(offset)
            cell = archive.read(size)
    if not isinstance(cell, takes):
        expected = f"{'the bytes or ' if takes != Path else ''}the path of a file ({modality})"
        raise DataError(name, expected=expected, got=type(cell).__name__, fix="unpack it, or choose another column")
    return getattr(import_module("mmcon.media"), opens)(cell, **{called: name})
