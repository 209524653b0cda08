"""Tables: reading csv, tsv, jsonl, json and parquet, choosing columns, and listing samples.

A table contains paths of files, the bytes of files (parquet only), or texts.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcon.errors import DataError, InputError, nearest
from mmcon.sources.labels import encode_labels, whole_numbers
from mmcon.sources.listing import GROUP, Listing, TableOptions, split_listing

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

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
    file, where = Path(path).expanduser(), f"table {str(path)!r}"
    table = read_table(file)
    columns = choose_columns(where, list(table), modality, options)
    cells, ids = table[columns.media], table[columns.id] if columns.id else None
    labels, classes = encode_labels(where, table[columns.label], options.classes) if columns.label else (None, ())
    used = (columns.media, options.split_column)
    listing = Listing(
        where,
        f"{file.name} ({split})",
        modality,
        sample_names(cells, ids, numbered=modality == "text"),
        _media_cells(where, table, columns),
        labels,
        classes,
        columns={name: cells for name, cells in table.items() if name not in used},
        root=Path(options.root).expanduser() if options.root is not None else file.parent,
        versions=columns.texts,
        notes=columns.notes,
        label_column=columns.label,
    )
    # Equal texts stay in one split, as equal values of the group column do.
    group = options.group_column or GROUP.get(modality)
    group_by = table.get(group) if group else cells if modality == "text" and ids is None else None
    note = repr(group) if group and group_by is not None else "identity"
    split_column = table.get(options.split_column)
    listing = split_listing(listing, split, options, split_column=split_column, group_by=group_by, note=note)
    _check_files(listing)
    return listing


def read_table(file: Path) -> dict[str, list[Any]]:
    """The columns of a table by name; an empty cell is None.

    Raises:
        DataError: the file does not exist, has another format, or contains a line that cannot be read.
    """
    where = f"table {file.name!r}"
    if not file.is_file():
        raise DataError(where, expected="a table", got=f"{str(file)!r}, which is not a file", fix="check the path")
    if file.suffix not in SUFFIXES:
        raise DataError(where, expected=f"one of {', '.join(SUFFIXES)}", got=file.suffix, fix="convert it")
    if file.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.read_table(file).to_pydict()
    try:
        # Spreadsheets write a byte-order mark, which would become a part of the first column's name.
        lines = list(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise DataError(where, expected="text in UTF-8", got=str(error), fix="save it as UTF-8") from None
    records = _json(where, lines, whole=file.suffix == ".json") if "json" in file.suffix else _csv(where, file, lines)
    if not records:
        raise DataError(where, expected="at least one row", got="none")
    table = {name: [r.get(name) for r in records] for name in dict.fromkeys(k for r in records for k in r)}
    return table if "json" in file.suffix else {name: whole_numbers(cells) for name, cells in table.items()}


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
    for meaning, name in [*named.items(), *(("text", name) for name in text[1:])]:
        if name is not None and name != NONE and name not in available:
            got, fix = f"columns {list(available)}", nearest(name, list(available))
            raise DataError(where, expected=f"a {meaning} column {name!r}", got=got, fix=fix)
        guess = next((lowered[usually] for usually in usual.get(meaning, ()) if usually in lowered), None)
        chosen[meaning] = None if name == NONE else name if name is not None else guess
        if name is None:
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


def _media_cells(where: str, table: dict[str, list[Any]], columns: Columns) -> list[Any]:
    """The cells of the media column, none of which may be empty; for texts, a cell has all columns of a sample."""
    if columns.texts:
        return list(zip(*(table[name] for name in columns.texts), strict=True))
    cells = table[columns.media]
    empty = next((i for i, cell in enumerate(cells) if cell is None or cell == ""), None)
    if empty is not None:
        fix = "leave the row out"
        raise DataError(f"{where}, row {empty + 1}", expected="a path or bytes", got="an empty cell", fix=fix)
    return cells


def _check_files(listing: Listing) -> None:
    """Check that the first paths exist, to find a wrong root before the first epoch; videos are all opened anyway."""
    paths = [cell for cell in listing.cells[:100] if isinstance(cell, str)]
    absent = [path for path in paths if not (listing.root / path).is_file()]
    if absent and listing.modality in ("image", "audio"):
        raise DataError(
            listing.where,
            expected=f"files below {listing.root}",
            got=f"{len(absent)} of the first {len(paths)} are not there, such as {absent[0]!r}",
            fix="give root=, the folder that the paths are relative to",
        )


def _json(where: str, lines: list[str], *, whole: bool) -> list[dict[str, Any]]:
    """Parse JSON lines, or one list of objects."""
    records = []
    for number, line in [(1, "".join(lines))] if whole else enumerate(lines, 1):
        if line.strip():
            try:
                read = json.loads(line)
            except json.JSONDecodeError as error:
                read = str(error)
            records += read if whole and isinstance(read, list) else [read]
            if not isinstance(records[-1], dict):
                got = str(records[-1])[:80]
                raise DataError(f"{where}, line {number}", expected="an object of JSON", got=got)
    return records


def _csv(where: str, file: Path, lines: list[str]) -> list[dict[str, Any]]:
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    records = []
    for record in reader:
        if None in record:
            fix = "quote cells that hold the delimiter"
            got = f"{len(reader.fieldnames) + len(record[None])} cells in line {reader.line_num}"
            raise DataError(where, expected=f"{len(reader.fieldnames)} cells a line", got=got, fix=fix)
        records.append({name: cell or None for name, cell in record.items()})
    return records
