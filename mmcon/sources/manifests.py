"""Tables and archives on a disk: manifests that point to files, tables that hold them, and tar shards."""

from __future__ import annotations

import csv
import glob
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import DataError
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources.base import HELD_OUT, held_out
from mmcon.sources.columns import MEDIA, NONE, choose_columns, encode_labels, opener
from mmcon.sources.files import FileSource

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@register_source("manifest", modality="any")
def manifest(
    path: str | Path,
    split: str = "train",
    modality: str = "image",
    media_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    split_column: str = "split",
    classes: Sequence[str] | None = None,
    test_share: float = 0.1,
    root: str | Path | None = None,
) -> FileSource:
    """A table whose rows point to files (csv, tsv, jsonl, parquet), or hold the bytes of files (parquet).

    Rows are split by the column `split` if there is one, else by identity.

    Args:
        path: the table.
        split: "train", "test", or another value of the split column.
        modality: what the media are.
        media_column: bytes, or paths relative to `root`.
        label_column: whole numbers or texts; "none": no labels. Columns that are not named are guessed by their names.
        id_column: unique names of rows; by default the path, or else the number of the row.
        split_column: says to which split a row belongs.
        classes: the names of the classes in order; by default all texts of the label column, sorted.
        test_share: what is held out where there is no split column.
        root: the folder that paths are relative to; by default that of the table.
    """
    file = Path(path).expanduser()
    rows = read_table(file)
    names = list(rows)
    where = f"manifest {str(path)!r}"
    columns = choose_columns(where, names, modality, media=media_column, label=label_column, id=id_column)
    media, count = rows[columns.media], len(rows[columns.media])
    ids = row_names(media, rows.get(columns.id) if columns.id else None)
    labels = None
    if columns.label:
        labels, classes = encode_labels(where, rows[columns.label], classes)
    notes = list(columns.notes)
    if split_column in rows:
        keep, note = _split_by_column(where, rows[split_column], split)
    else:
        out = held_out(stable_ids(ids), test_share)
        keep = (out if split in HELD_OUT else ~out).nonzero()[:, 0]
        note = f"split {split!r}: {len(keep):,} of {count:,} rows, by identity, {test_share:.0%} held out"
    base = Path(root).expanduser() if root is not None else file.parent
    chosen = keep.tolist()
    _check_files(where, [media[i] for i in chosen], base, modality)
    return FileSource(
        [media[i] for i in chosen],
        handle=opener(modality, base),
        names=[ids[i] for i in chosen],
        modality=modality,
        labels=None if labels is None else labels[keep],
        classes=classes or (),
        name=f"{file.name} ({split})",
        notes=[*notes, note],
    )


def read_table(file: Path) -> dict[str, list[Any]]:
    """The columns of a table by name (csv, tsv, jsonl, parquet)."""
    if not file.is_file():
        raise DataError("manifest", expected="a table", got=f"{str(file)!r}, which is not a file", fix="check the path")
    if file.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.read_table(file).to_pydict()
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".jsonl":
            records = [_record(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        else:
            records = list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
    if not records:
        raise DataError("manifest", expected="at least one row", got=f"none in {str(file)!r}")
    return {name: [_number(r.get(name)) for r in records] for name in dict.fromkeys(k for r in records for k in r)}


def _record(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        record = str(error)
    if not isinstance(record, dict):
        raise DataError(f"manifest {file.name!r}, line {number}", expected="an object of JSON", got=str(record)[:80])
    return record


def _number(cell: Any) -> Any:
    """A cell of a csv file that is written as a whole number is one."""
    return int(cell) if isinstance(cell, str) and re.fullmatch(r"-?(0|[1-9]\d{0,17})", cell) else cell


def row_names(media: list[Any], ids: list[Any] | None) -> list[str]:
    """What rows are called: by their ids, else by their paths, else by their numbers."""
    if ids is not None:
        return [str(i) for i in ids]
    return [str(cell) if isinstance(cell, str) else f"row {i}" for i, cell in enumerate(media)]


def _split_by_column(where: str, column: list[Any], split: str) -> tuple[torch.Tensor, str]:
    there = sorted({str(value) for value in column})
    wanted = split if split in there or split not in HELD_OUT else next((n for n in HELD_OUT if n in there), split)
    if wanted not in there:
        raise DataError(where, expected=f"a split among {there}", got=repr(split), fix="choose one of these")
    keep = torch.tensor([i for i, value in enumerate(column) if str(value) == wanted])
    return keep, f"split {wanted!r}: {len(keep):,} of {len(column):,} rows, by the split column"


def _check_files(where: str, media: list[Any], root: Path, modality: str) -> None:
    """The first paths must exist: a wrong root should be known before the first epoch."""
    paths = [cell for cell in media[:100] if isinstance(cell, str)] if modality != "text" else []
    absent = [path for path in paths if not (root / path).is_file()]
    if absent:
        raise DataError(
            where,
            expected=f"files below {root}",
            got=f"{len(absent)} of the first {len(paths)} are not there, such as {absent[0]!r}",
            fix="give root=, the folder that the paths are relative to",
        )


# --- tar shards ------------------------------------------------------------------------------------------------------


@register_source("shards", modality="any")
def tar_shards(
    path: str | Path,
    split: str = "train",
    modality: str = "image",
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    test_share: float = 0.1,
) -> FileSource:
    """Tar shards as webdataset has them, read by position: members of one name and different suffixes are one row.

    The headers of all shards are read once; after that a row costs one seek. For archives that are not on this disk, or
    too many to scan, see `mmcon.loading.streaming`.

    Args:
        path: a folder of shards, one shard, or a pattern with * or {000..009}.
        split: in a folder, shards whose names begin with it; where none do, rows are split by identity.
        modality: what the media are; their member is known by its suffix.
        label_column: a suffix that holds the label (cls by default), or json:NAME for a field of a json member; "none".
        classes: the names of the classes in order.
        test_share: what is held out where shards do not say their split.
    """
    files, by_identity = _shards(str(path), split)
    rows = [row for file in files for row in _rows_of_shard(file)]
    where = f"shards {str(path)!r}"
    suffixes = sorted({suffix for _, members in rows for suffix in members})
    media = next((suffix for suffix in MEDIA.get(modality, (modality,)) if suffix in suffixes), None)
    if media is None:
        expected = f"members with a suffix of {modality} media"
        raise DataError(where, expected=expected, got=f"suffixes {suffixes}", fix="check the modality and the shards")
    rows = [(name, members) for name, members in rows if media in members]
    label = label_column or ("cls" if "cls" in suffixes else NONE)
    labels = None
    if label != NONE:
        labels, classes = encode_labels(where, [_label(where, members, label) for _, members in rows], classes)
    notes = [f"{len(files)} shards; media: .{media}; label: {label}"]
    keep = list(range(len(rows)))
    if by_identity:
        out = held_out(stable_ids(name for name, _ in rows), test_share)
        keep = (out if split in HELD_OUT else ~out).nonzero()[:, 0].tolist()
        notes.append(f"split {split!r}: {len(keep):,} of {len(rows):,} rows, by identity, {test_share:.0%} held out")
    return FileSource(
        [rows[i][1][media] for i in keep],
        handle=opener(modality),
        names=[rows[i][0] for i in keep],
        modality=modality,
        labels=None if labels is None else labels[torch.tensor(keep)],
        classes=classes or (),
        name=f"{Path(str(path)).name} ({split})",
        notes=notes,
    )


def expand(pattern: str) -> list[str]:
    """The paths of a pattern with {000..009} or * in it."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        low, high = braces.groups()
        numbers = [str(i).zfill(len(low)) for i in range(int(low), int(high) + 1)]
        return [p for n in numbers for p in expand(pattern[: braces.start()] + n + pattern[braces.end() :])]
    return sorted(glob.glob(pattern)) if "*" in pattern else [pattern]


def _shards(path: str, split: str) -> tuple[list[Path], bool]:
    if not Path(path).is_dir():
        files = [Path(p).expanduser() for p in expand(path)]
        absent = [str(f) for f in files if not f.is_file()]
        if absent or not files:
            raise DataError("shards", expected="tar files", got=f"{absent[:3] or 'none'} not there, from {path!r}")
        return files, False
    files = sorted(Path(path).glob("*.tar"))
    for name in (split, *(HELD_OUT if split in HELD_OUT else ())):
        chosen = [f for f in files if f.name.startswith(name)]
        if chosen:
            return chosen, False
    if not files or any(f.name.startswith(("train", *HELD_OUT)) for f in files):
        got = f"{[f.name for f in files[:4]]}"
        raise DataError("shards", expected=f"tar files of split {split!r} in {path!r}", got=got, fix="check the split")
    return files, True


def _rows_of_shard(file: Path) -> Iterator[tuple[str, dict[str, tuple[str, int, int]]]]:
    """By name, where each member of a row lies: (file, offset, size) by suffix."""
    rows: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isfile():
                    folder, _, base = member.name.rpartition("/")
                    key, _, suffix = base.partition(".")
                    place = (str(file), member.offset_data, member.size)
                    rows.setdefault(f"{folder}/{key}" if folder else key, {})[suffix.lower()] = place
    except tarfile.TarError as error:
        raise DataError("shards", expected="an uncompressed tar archive", got=f"{file}: {error}") from error
    return iter(rows.items())


def _label(where: str, members: dict[str, tuple[str, int, int]], label: str) -> Any:
    suffix, _, field = label.partition(":")
    if suffix not in members:
        got = f"members {sorted(members)}"
        raise DataError(where, expected=f"a member .{suffix} in every row", got=got, fix="name it with label_column")
    file, offset, size = members[suffix]
    with open(file, "rb") as archive:
        archive.seek(offset)
        text = archive.read(size).decode()
    return json.loads(text)[field] if field else _number(text.strip())
