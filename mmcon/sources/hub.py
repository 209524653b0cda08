"""Data sets of the `datasets` library: hub names, and folders of parquet, imagefolder or webdataset files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from mmcon.errors import DataError, nearest
from mmcon.sources.labels import encode_labels
from mmcon.sources.listing import GROUP, Listing, TableOptions, split_listing
from mmcon.sources.splits import ALL, is_held_out, is_train, match_split
from mmcon.sources.tables import choose_columns

#: Begins the note of a source of the hub, which the card of a model reads.
HUB_NOTE = "data set of the hub: "


def list_dataset(
    path: str | Path,
    *,
    split: str = "train",
    modality: str = "image",
    config: str | None = None,
    revision: str | None = None,
    options: TableOptions,
    **more: Any,
) -> Listing:
    """List a data set that `datasets.load_dataset` opens; the table stays memory-mapped, the media undecoded.

    Data with only a training split are split by a hash of the sample ids. Without an id column, the name of a sample is
    its split and number.

    Args:
        path: a hub name, a local folder, or the name of a builder such as "parquet" (with data_files=...).
        split: "train", "test" (also matches val, validation, ...), or another split of the data.
        modality: the modality of the media.
        config: the configuration, for data sets with several.
        revision: a commit or tag on the hub, which fixes the version of the data.
        options: the meaning of the columns, and the held-out share.
        more: options of load_dataset, such as data_files, data_dir and cache_dir.
    """
    where = f"data set {str(path)!r}"
    with readable(where):
        from datasets import load_dataset

        tables = load_dataset(str(path), config, revision=revision, **more)
    name, by_identity = pick_split(where, list(tables), split)
    columns = choose_columns(where, tables[name].column_names, modality, options)
    table = undecoded(tables[name], columns.media)
    labels, classes = None, tuple(options.classes or ())
    if columns.label:
        labels, classes = encode_labels(
            where, table[columns.label][:], classes or _classes(where, tables, columns.label)
        )
    listing = Listing(
        where,
        f"{path} ({split})",
        modality,
        [f"{name}/{i}" for i in range(len(table))] if columns.id is None else [str(i) for i in table[columns.id]],
        TableCells(table, columns.texts or (columns.media,)),
        labels,
        classes,
        columns={
            other: TableCells(table, [other]) for other in set(table.column_names) - {columns.media, columns.label}
        },
        versions=columns.texts,
        notes=(*columns.notes, *_origin(path)),
    )
    if not by_identity:
        return listing
    group = options.group_column or GROUP.get(modality)
    by = table[group][:] if group in table.column_names else None
    return split_listing(listing, split, options, group_by=by, note=repr(group) if by is not None else "identity")


def _origin(path: str | Path) -> tuple[str, ...]:
    """A note for data of the hub, since nothing else tells their name from that of a folder."""
    return () if Path(path).expanduser().exists() or "/" not in str(path) else (f"{HUB_NOTE}{path}",)


@final
class TableCells:
    """Cells of a `datasets` table by row; `__getitems__` reads several cells at once.

    Args:
        table: a `datasets.Dataset` whose media column is not decoded; it stays memory-mapped.
        columns: the columns of a cell; a cell of several columns is a tuple.
    """

    def __init__(self, table: Any, columns: Sequence[str]) -> None:
        # Only these columns: reading a row of all columns would copy the bytes of the media too.
        self.table, self.columns = table.select_columns(list(columns)), tuple(columns)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__getitems__(range(len(self))))

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        read = self.table[list(positions)]
        if len(self.columns) == 1:
            return read[self.columns[0]]
        return list(zip(*(read[column] for column in self.columns), strict=True))

    #: Cells of a text column, for the fingerprint: they are memory-mapped, not made as other datasets' items are.
    read_texts = __getitems__

    def select(self, keep: Sequence[int]) -> TableCells:
        """A subset of the cells, by row."""
        return TableCells(self.table.select(list(keep)), self.columns)


def undecoded(table: Any, column: str) -> Any:
    """The table with a media column that returns bytes and paths instead of decoded media."""
    from datasets import Audio, Image, Video

    feature = (table.features or {}).get(column)
    return (
        table.cast_column(column, type(feature)(decode=False)) if isinstance(feature, Audio | Image | Video) else table
    )


def pick_split(where: str, available: Sequence[str], split: str) -> tuple[str, bool]:
    """The split of the data that matches a name, and whether samples must be split by a hash of their ids."""
    found = match_split(available, split)
    held_out = [name for name in available if is_held_out(name)]
    # Without a held-out split, the samples of "test" are taken from the training split, and must be missing from it.
    if found is not None:
        return found, is_train(found) and not held_out
    train = match_split(available, "train")
    if train is not None and not held_out and (is_held_out(split) or split == ALL):
        return train, True
    fix = nearest(split, list(available))
    if split == ALL:
        fix = f"choose one with split= (--split in a command): {', '.join(available)}"
    raise DataError(where, expected=f"a split among {list(available)}", got=repr(split), fix=fix)


def _classes(where: str, tables: Any, label: str) -> tuple[str, ...]:
    """Class names from the features, else the texts of the training split, so that all splits have equal labels."""
    train = match_split(list(tables), "train")
    first = tables[train] if train else next(iter(tables.values()))
    declared = getattr(first.features[label], "names", None)
    return tuple(declared) if declared else encode_labels(where, first[label][:])[1]


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Convert errors of the `datasets` library, which cannot find, download or read data, to a DataError with a fix."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds, its builders more
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        words = f"{type(error).__name__} {error}".lower()
        offline = any(word in words for word in ("offline", "connect", "couldn't reach"))
        raise DataError(
            where,
            expected="data that can be read: a hub name and a network (or a filled cache), or a local path",
            got=("no network: " if offline else f"{type(error).__name__}: ") + reason,
            fix="check the name, the configuration and the revision; without a network, give the path of local files",
        ) from error
