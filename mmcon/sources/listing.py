"""`Listing`: names, cells and labels of the samples of one split, before media are opened.

The function of a layout (`list_folder`, `list_table`, `list_shards`, `list_dataset`) returns a `Listing`; the function
of a modality (`image_source`, `audio_source`, ...) makes a source from it. So any layout can hold any modality.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media import AudioFormat, AudioHandle, ImageHandle, open_video
from mmcon.media.decoding import file_size
from mmcon.media.image import MAX_PIXELS
from mmcon.media.text import TextHandle, check_is_list
from mmcon.sources.splits import split_by_identity, split_by_name

# The held-out share of data without a split column or split folders, by modality; larger for videos, which are few.
TEST_SHARE = {"video": 0.25}
# By modality, the column whose equal values stay in one split: recordings of one prompt by several speakers.
GROUP = {"audio": "prompt"}


@dataclass(frozen=True)
class Listing:
    """Samples of one split.

    Attributes:
        where: the layout and the path, for messages.
        title: the name of the source.
        modality: the modality of the media.
        names: the name of each sample, which is hashed to its id.
        cells: the media of each sample: a path, bytes, a mapping with `bytes` or `path`, (archive, offset, size), a
            text, or a tuple of texts. A list, or a dataset with items by index.
        labels: the label of each sample.
        classes: the names of the classes.
        columns: further columns of a table.
        root: the folder that paths are relative to.
        folder: whether the samples are the files of a folder, which are checked by default.
        split: the requested split.
        versions: for texts, the names of the columns in a cell.
        notes: what was guessed.
        label_column: the column that has the labels; it is one of `columns` too.
    """

    where: str
    title: str
    modality: str
    names: Sequence[str]
    cells: Any
    labels: Int[Tensor, " n"] | None = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    root: Path = Path()
    folder: bool = False
    split: str = "train"
    versions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    label_column: str | None = None

    def select(self, keep: Sequence[int], *notes: str) -> Listing:
        """A subset of the samples, by index, with further notes."""
        return replace(
            self,
            names=[self.names[i] for i in keep],
            cells=_take(self.cells, keep),
            labels=None if self.labels is None else self.labels[torch.tensor(keep, dtype=torch.int64)],
            columns={name: _take(column, keep) for name, column in self.columns.items()},
            notes=(*self.notes, *notes),
        )

    @property
    def is_lazy(self) -> bool:
        """Whether cells are read from an archive or a memory-mapped table, so that media are opened when needed."""
        return not isinstance(self.cells, list) or (not self.versions and isinstance(self.cells[0], tuple))

    @property
    def options(self) -> dict[str, Any]:
        """The options that every source takes from a listing."""
        return {
            "labels": self.labels,
            "classes": self.classes,
            "name": self.title,
            "notes": self.notes,
            "root": self.root,
        }

    def file(self, position: int) -> str:
        """The path of a sample's file; of a member of an archive, the archive's path and its name; else its name."""
        cell = self.cells[position] if isinstance(self.cells, list) and not self.versions else None
        return name_of_file(cell, self.names[position], self.root)

    def positions_of(self, files: Collection[str]) -> list[int]:
        """The indices of the samples whose files are among some (see `file`)."""
        known = frozenset(files)
        if known and self.folder:  # without a path for each of a million files
            start = printable(str(self.root / "f"))[:-1]
            below = {file.removeprefix(start) for file in known if file.startswith(start)}
            return [i for i, name in enumerate(self.names) if name in below]
        return [i for i in range(len(self.names)) if self.file(i) in known] if known else []


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options for data without a split column or split folders.

    Attributes:
        test_share: the held-out share; by default 0.1, and 0.25 for videos.
        fold: (k, folds): hold out the k-th fold instead, for cross-validation of few samples.
    """

    test_share: float | None = None
    fold: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelOptions(SplitOptions):
    """Options for the labels of archives and tables.

    Attributes:
        label_column: a column of integers or texts; for archives the suffix of a member (cls by default), or json:NAME
            for a field of a json member; "none": no labels.
        classes: the names of the classes in order; by default those that the data declare, or all texts, sorted.
    """

    label_column: str | None = None
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_is_list("classes", self.classes)


@dataclass(frozen=True, kw_only=True)
class TableOptions(LabelOptions):
    """Options for the meaning of a table's columns. Columns that are not named are guessed from common names.

    Attributes:
        media_column: paths relative to `root`, bytes, or mappings with `bytes` or `path`.
        text_columns: for texts: one column, or parallel columns (translations, title and body).
        id_column: unique sample names; by default the path, for texts the text, else the row number.
        split_column: the split of each sample.
        group_column: samples of equal values stay in one split; for audio by default `prompt`.
        root: the folder that paths are relative to; by default the folder of the table.
    """

    media_column: str | None = None
    text_columns: Sequence[str] | None = None
    id_column: str | None = None
    split_column: str = "split"
    group_column: str | None = None
    root: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_is_list("text_columns", self.text_columns)


def split_listing(
    listing: Listing,
    split: str,
    options: SplitOptions,
    *,
    split_column: Sequence[Any] | None = None,
    group_by: Sequence[Any] | None = None,
    note: str = "identity",
) -> Listing:
    """The samples of one split: by the split column if the data have one, else by a hash of the sample names.

    By identity, every class is in both splits; groups of samples may leave a class out of one.

    Args:
        listing: the samples of all splits.
        split: the requested split.
        options: the held-out share or fold.
        split_column: the split of each sample.
        group_by: the values that are hashed, by default the sample names; samples of equal values stay in one split.
        note: what `group_by` holds, for the note on the split.
    """
    if split_column is not None:
        return listing.select(*split_by_name(listing.where, [str(name) for name in split_column], split))
    names = listing.names if group_by is None else [str(value) for value in group_by]
    share = TEST_SHARE.get(listing.modality, 0.1) if options.test_share is None else options.test_share
    # A group column may be that of the classes, such as prompts, whose held-out values are new classes on purpose.
    classes = listing.labels if note == "identity" else None
    selected = split_by_identity(
        listing.where, names, split, test_share=share, fold=options.fold, classes=classes, by=note
    )
    return listing.select(*selected)


def handle_opener(
    modality: str,
    *,
    root: Path = Path(),
    audio_format: AudioFormat | None = None,
    versions: tuple[str, ...] = (),
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Callable[[Any, str], Any]:
    """A function from a cell and a sample's name to a handle; for a modality without handles, it returns the cell.

    Args:
        modality: the modality of the cells.
        root: the folder that paths are relative to.
        audio_format: sample rate and channels of audio.
        versions: the names of the columns in a cell of texts.
        max_pixels: the largest accepted image.
        options: options of `open_video`.
    """

    def image(cell: Any, name: str) -> ImageHandle:
        return ImageHandle(_file_or_bytes(cell, name, root, modality), id=name, max_pixels=max_pixels)

    def audio(cell: Any, name: str) -> AudioHandle:
        return AudioHandle(_file_or_bytes(cell, name, root, modality), audio_format=audio_format, id=name)

    def video(cell: Any, name: str) -> Any:
        return open_video(_file_or_bytes(cell, name, root, modality), name=name, **options)

    def text(cell: Any, name: str) -> TextHandle:
        texts = cell if isinstance(cell, tuple) and len(versions) > 1 else (_text_of(cell),)
        wrong = [text for text in texts if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise DataError(name, expected="a text that is not empty", got=repr(wrong[0]), fix="leave the sample out")
        return TextHandle(texts, names=versions or ("text",), id=name)

    openers = {"image": image, "audio": audio, "video": video, "text": text}
    return openers.get(modality, lambda cell, name: cell)


def name_of_file(cell: Any, name: str, root: Path) -> str:
    """What messages and quarantine files call a sample: the path of its file, if it has one.

    Args:
        cell: its media: a path, (archive, offset, size), or anything else.
        name: its name in the source.
        root: the folder that the path is relative to.
    """
    if isinstance(cell, tuple) and len(cell) == 3 and isinstance(cell[0], str) and isinstance(cell[2], int):
        return printable(f"{cell[0]}: {name}")
    file = file_of(cell, root)
    return name if file is None else printable(str(file))


def file_of(item: Any, root: Path = Path()) -> Path | None:
    """The file of a sample; None if it is in memory or a member of an archive.

    Args:
        item: a path, a mapping with `path`, an item of torchvision's folders (path and class), or a handle.
        root: the folder that paths are relative to; the paths of handles have it already.
    """
    if isinstance(item, Mapping):
        item = item.get("path") if item.get("bytes") is None else None
    if isinstance(item, tuple | list) and len(item) == 2:
        item = item[0]
    if isinstance(item, str | Path):
        return root / item
    held = (getattr(item, name, None) for name in ("source", "file", "folder", "video"))
    return next((file for inner in held if inner is not None and (file := file_of(inner)) is not None), None)


def printable(name: str) -> str:
    """A file name that can be printed and written: bytes that are not UTF-8 become escapes."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _take(column: Any, keep: Sequence[int]) -> Any:
    return column.select(keep) if hasattr(column, "select") else [column[i] for i in keep]


def read_member(cell: tuple[str, int, int]) -> bytes:
    """Read a member of an archive, given as (file, offset, size)."""
    file, offset, size = cell
    file_size(file, file)
    with open(file, "rb") as archive:
        archive.seek(offset)
        data = archive.read(size)
    if len(data) < size:
        got, fix = f"{len(data):,}", "the archive was cut off: fetch it again"
        raise DataError(file, expected=f"{size:,} bytes at {offset:,}", got=got, fix=fix)
    return data


def _text_of(cell: Any) -> Any:
    cell = read_member(cell) if isinstance(cell, tuple) else cell
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell


def _file_or_bytes(cell: Any, name: str, root: Path, modality: str) -> Path | bytes:
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, tuple):
        return read_member(cell)
    if isinstance(cell, str | Path):
        return root / cell
    if not isinstance(cell, bytes):
        expected = f"the bytes or the path of a file ({modality})"
        raise DataError(name, expected=expected, got=type(cell).__name__, fix="unpack it, or choose another column")
    return cell
