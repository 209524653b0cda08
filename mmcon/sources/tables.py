"""Tables (csv, tsv, jsonl, json, parquet): choosing columns, and listing samples.

A table contains paths of files, the bytes of files (parquet only), or texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcon.errors import DataError, InputError, nearest
from mmcon.sources.labels import encode_labels
from mmcon.sources.listing import GROUP, Listing, TableOptions, split_listing
from mmcon.sources.table_files import Table, read_table

# Common names of columns, in order of preference.
FILE = ("file", "path", "file_name", "filename", "file_path", "filepath")
MEDIA = {
    "image": ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", *FILE),
    "audio": ("audio", "sound", "speech", "wav", "flac", "mp3", "ogg", *FILE),
    "video": ("path", "video", "clip", "mp4", "webm", "avi", *FILE),
    "text": ("text", "sentence", "caption", "content", "txt", "name", *FILE),
}
LABEL = ("label", "labels", "class", "class_name", "category", "cls", "fine_label", "target")
ID = ("id", "__key__", "uid", "key", "image_id", "sample_id")
NONE = "none"


def list_table(path: str | Path, *, split: str = "train", modality: str = "image", options: TableOptions) -> Listing:
    """List a table whose rows contain paths of files, bytes of files, or texts.

    Samples are split by the split column, or without one by a hash of their ids.

    Args:
        path: the table: .csv, .tsv, .jsonl, .json or .parquet.
        split: "train", "test" (also matches val, validation, ...), another value of the split column, or "all".
        modality: the modality of the media.
        options: the meaning of the columns, and the held-out share without a split column.
    """
    file, table = Path(path).expanduser(), read_table(path)
    where, cells_of = table.where, table.columns
    columns = choose_columns(where, list(cells_of), modality, options)
    for name in {columns.media, *columns.texts}:  # folders of frames, or texts, may be named 1, 2, 3
        cells_of[name] = [str(cell) if isinstance(cell, int) else cell for cell in cells_of[name]]
    cells, ids = cells_of[columns.media], cells_of[columns.id] if columns.id else None
    labels, classes = None, ()
    if columns.label:
        at = f"{where}, column {columns.label!r}"
        labels, classes = encode_labels(at, cells_of[columns.label], options.classes, place=table.place)
    used = (columns.media, options.split_column)
    listing = Listing(
        where,
        f"{file.name} ({split})",
        modality,
        sample_names(cells, ids, numbered=modality == "text"),
        _media_cells(table, columns),
        labels,
        classes,
        columns={name: cells for name, cells in cells_of.items() if name not in used},
        root=Path(options.root).expanduser() if options.root is not None else file.parent,
        versions=columns.texts,
        notes=(*table.notes, *columns.notes),
        label_column=columns.label,
    )
    # Equal texts stay in one split, as equal values of the group column do.
    group = options.group_column or GROUP.get(modality)
    group_by = cells_of.get(group) if group else cells if modality == "text" and ids is None else None
    note = repr(group) if group and group_by is not None else "identity"
    split_column = cells_of.get(options.split_column)
    listing = split_listing(listing, split, options, split_column=split_column, group_by=group_by, note=note)
    _check_files(listing)
    return listing


def modality_of_columns(path: str | Path) -> tuple[str | None, list[str]]:
    """The modality that a table's columns are named for, such as `image`, or None; and its first paths of files."""
    lowered = {name.lower(): cells for name, cells in read_table(path, head=True).columns.items()}
    named = [name for name, usual in MEDIA.items() if any(column in lowered for column in usual if column not in FILE)]
    paths = [cell for column in FILE for cell in lowered.get(column, ()) if isinstance(cell, str)]
    media = next((name for name in named if name != "text"), None)
    if media is None and not any(Path(cell).suffix for cell in paths):  # folders of frames, or no files
        media = (
            "text" if not paths and named else "video" if {"start_seconds", "frames_per_second"} & {*lowered} else None
        )
    return media, paths


@dataclass(frozen=True)
class Columns:
    """The columns of a table by meaning, and a note on each guessed column."""

    media: str
    label: str | None
    id: str | None
    texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_columns(where: str, available: Sequence[str], modality: str, options: TableOptions) -> Columns:
    """Choose the named columns, and guess the others from common names; "none" means no such column.

    Raises:
        DataError: a named column is missing, or no column of media was found.
    """
    text = options.text_columns or ()
    if text and modality != "text":
        fix = "modality='text', or ('image', 'text')"
        raise InputError(where, expected="text_columns with texts", got=f"modality {modality!r}", fix=fix)
    named = {"media": text[0] if text else options.media_column, "label": options.label_column, "id": options.id_column}
    # Spans of one video are several samples, so the id of a video is not unique.
    usual = {"media": MEDIA.get(modality, (modality,)), "label": LABEL, "id": () if modality == "video" else ID}
    lowered = {column.lower(): column for column in reversed(available)}
    chosen: dict[str, str | None] = {}
    notes = []
    # The default names of the columns of splits and groups need not be there.
    split = None if options.split_column == TableOptions().split_column else options.split_column
    further = {"group": options.group_column, "split": split}
    for meaning, name in [*named.items(), *further.items(), *(("text", name) for name in text[1:])]:
        if name is not None and name != NONE and name not in available:
            got, fix = f"columns {list(available)}", nearest(name, list(available))
            raise DataError(where, expected=f"a {meaning} column {name!r}", got=got, fix=fix)
        guess = next((lowered[usually] for usually in usual.get(meaning, ()) if usually in lowered), None)
        chosen[meaning] = None if name == NONE else name if name is not None else guess
        if name is None and meaning in named:
            notes.append(f"{meaning} column: {guess!r}, by its name" if guess else f"no {meaning} column found")
    found = chosen["media"]
    if found is None:
        fix = f"name it: create_source(..., media_column=NAME), or --{modality}-column NAME"
        raise DataError(where, expected=f"a column of {modality} media", got=f"columns {list(available)}", fix=fix)
    texts = () if modality != "text" else tuple(text or (found,))
    return Columns(found, chosen["label"], chosen["id"], texts, tuple(notes))


def sample_names(media: Sequence[Any], ids: Sequence[Any] | None, *, numbered: bool = False) -> list[str]:
    """Sample names: the id column, else the path, else the row number.

    Args:
        media: the cells of the media column.
        ids: the cells of the id column, if any.
        numbered: number equal names, for texts, which may repeat.
    """
    if ids is not None:
        return [str(i) for i in ids]
    if numbered:
        seen: Counter[str] = Counter()
        names = []
        for text in map(str, media):
            names.append(f"{text}#{seen[text]}")
            seen[text] += 1
        return names
    return [cell if isinstance(cell, str) else f"row {i}" for i, cell in enumerate(media)]


def _media_cells(table: Table, columns: Columns) -> list[Any]:
    """The cells of the media column, none of which may be empty; for texts, a cell has all columns of a sample."""
    for name in columns.texts or (columns.media,):
        empty = [i for i, cell in enumerate(table.columns[name]) if cell is None or cell == ""]
        if empty:
            at = f"{table.where}, {table.place(empty[0])}, column {name!r}"
            expected, got = "a text" if columns.texts else "a path or bytes", f"an empty cell ({len(empty):,} in all)"
            raise DataError(at, expected=expected, got=got, fix="leave the row out")
    if columns.texts:
        return list(zip(*(table.columns[name] for name in columns.texts), strict=True))
    return table.columns[columns.media]


def _check_files(listing: Listing) -> None:
    """Check that a path among the first exists, to find a wrong root before the first epoch; videos are opened anyway.

    Single files that are not there are counted as unreadable, when they are checked or read.
    """
    paths = [cell for cell in listing.cells[:100] if isinstance(cell, str)]
    absent = [path for path in paths if not (listing.root / path).is_file()]
    if absent and len(absent) == len(paths) and listing.modality in ("image", "audio"):
        raise DataError(
            listing.where,
            expected=f"files below {listing.root}",
            got=f"the first {len(paths)} are not there, such as {absent[0]!r}",
            fix="give root=, the folder that the paths are relative to",
        )
