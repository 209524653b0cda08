"""What the datasets library opens, and any map-style dataset, as sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from mmcon.errors import DataError, nearest
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources.base import HELD_OUT, Source, held_out
from mmcon.sources.columns import Columns, choose_columns, encode_labels, opener


@runtime_checkable
class MapStyle(Protocol):
    """A dataset with a length and rows by position, as torch has it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@final
class DatasetSource(Source):
    """Any map-style dataset, such as torchvision's, as a source; rows are read when they are opened.

    >>> rows = [(torch.zeros(1, 2, 2, dtype=torch.uint8), i % 2) for i in range(4)]
    >>> DatasetSource(rows, labels=torch.tensor([0, 1, 0, 1]), modality="image").open([3])[0].shape
    torch.Size([1, 2, 2])

    Args:
        dataset: with a length and rows by position. Its rows should not be random: views are drawn later.
        media: from a row to the media (a handle or a tensor); by default the first of a tuple, or the row.
        names: what rows are called, from which ids come; by default their positions.
        options: as for Source; labels are not looked for, since that would read every row.
    """

    def __init__(
        self,
        dataset: MapStyle,
        *,
        media: Callable[[Any], Any] | None = None,
        names: Sequence[str] | None = None,
        modality: str = "image",
        **options: Any,
    ) -> None:
        self.dataset, self.media = dataset, media or _first
        ids = torch.arange(len(dataset)) if names is None else stable_ids(names)
        super().__init__(ids=ids, modality=modality, **options)

    def open(self, rows: Tensor | Sequence[int]) -> list[Any]:
        """What `media` takes of each row."""
        return [self.media(self.dataset[row]) for row in torch.as_tensor(rows).tolist()]


def _first(row: Any) -> Any:
    return row[0] if isinstance(row, tuple | list) else row


@final
class TableSource(Source):
    """A table of the datasets library, memory-mapped; media stay undecoded.

    Args:
        table: a `datasets.Dataset` whose media column is not decoded; `all_columns` gives it back.
        column: which holds the media.
        names: what rows are called.
        options: as for Source.
    """

    def __init__(self, table: Any, *, column: str, names: Sequence[str], modality: str, **options: Any) -> None:
        self.table, self.column, self.names = table.select_columns([column]), column, names
        self.all_columns = table
        self._open_cell = opener(modality)
        super().__init__(ids=stable_ids(names), modality=modality, **options)

    def open(self, rows: Tensor | Sequence[int]) -> list[Any]:
        """A handle for each row; one read for all of them."""
        positions: list[int] = torch.as_tensor(rows).tolist()
        cells = self.table[positions][self.column]
        return [self._open_cell(cell, self.names[row]) for cell, row in zip(cells, positions, strict=True)]


@register_source("hub", modality="any")
def load_table(
    path: str | Path,
    split: str = "train",
    modality: str = "image",
    config: str | None = None,
    revision: str | None = None,
    media_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    classes: Sequence[str] | None = None,
    together: str | None = None,
    test_share: float = 0.1,
    **options: Any,
) -> TableSource:
    """Anything that `datasets.load_dataset` opens: a hub name, or a folder of parquet, imagefolder, webdataset, ….

    Args:
        path: a hub name, a local folder, or the name of a builder such as "parquet" (with data_files=…).
        split: "train", "test" (also found as validation), or another that the data have.
        modality: what the media are.
        config: the configuration, of data sets that have several.
        revision: a commit or tag of the hub, so that the data stay what they were.
        media_column: which holds the media. Columns that are not named are guessed by their names.
        label_column: class labels, whole numbers or texts; "none": no labels.
        id_column: unique names of rows; by default split and number, which stay as long as the data do.
        classes: names of the classes in order; by default those that the data declare, or all texts of the training
            split, sorted.
        together: a column whose equal values stay on one side of a split that is made here, where the data have it.
        test_share: what is held out, by identity, of data that have a training split alone.
        options: for load_dataset, such as data_files, data_dir and cache_dir.
    """
    where = f"data set {str(path)!r}"
    with readable(where):
        from datasets import load_dataset

        tables = load_dataset(str(path), config, revision=revision, **options)
    name, by_identity = pick_split(where, list(tables), split)
    table = tables[name]
    columns = choose_columns(where, table.column_names, modality, media=media_column, label=label_column, id=id_column)
    table = undecoded(table, columns.media)
    names = [f"{name}/{i}" for i in range(len(table))] if columns.id is None else [str(i) for i in table[columns.id]]
    labels = None
    if columns.label:
        classes = classes or _classes(where, tables, columns)
        labels, classes = encode_labels(where, table[columns.label][:], classes)
    notes = list(columns.notes)
    if by_identity:
        by = [str(value) for value in table[together][:]] if together in table.column_names else names
        out = held_out(stable_ids(by), test_share)
        keep = (out if split in HELD_OUT else ~out).nonzero()[:, 0]
        said = "identity" if by is names else repr(together)
        notes.append(f"split {split!r}: {len(keep):,} of {len(table):,} rows, by {said}, {test_share:.0%} held out")
        table, names = table.select(keep.tolist()), [names[i] for i in keep.tolist()]
        labels = None if labels is None else labels[keep]
    return TableSource(
        table,
        column=columns.media,
        names=names,
        modality=modality,
        labels=labels,
        classes=classes or (),
        name=f"{path} ({split})",
        notes=notes,
    )


def undecoded(table: Any, column: str) -> Any:
    """The table with a media column that gives bytes and paths rather than pixels or samples."""
    from datasets import Audio, Image, Video

    feature = (table.features or {}).get(column)
    return (
        table.cast_column(column, type(feature)(decode=False)) if isinstance(feature, Audio | Image | Video) else table
    )


def pick_split(where: str, there: Sequence[str], split: str) -> tuple[str, bool]:
    """The split of the data that is meant, and whether it is still to be made by identity."""
    if split in there:
        # Where nothing is held out yet, what "test" will take must be missing from "train".
        return split, split == "train" and not set(HELD_OUT) & set(there)
    if split in HELD_OUT:
        other = next((name for name in HELD_OUT if name in there), None)
        if other or "train" in there:
            return (other, False) if other else ("train", True)
    raise DataError(where, expected=f"a split among {list(there)}", got=repr(split), fix=nearest(split, list(there)))


def _classes(where: str, tables: Any, columns: Columns) -> Sequence[str] | None:
    """Class names that the data declare, else the texts of the training split, so that every split counts alike."""
    assert columns.label is not None
    first = tables["train"] if "train" in tables else next(iter(tables.values()))
    declared = getattr(first.features[columns.label], "names", None)
    if declared:
        return declared
    values = first[columns.label][:]
    return encode_labels(where, values, None)[1] or None


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn a failure of the datasets library to find, reach or read data into one error that says what to do."""
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
