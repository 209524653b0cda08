"""The samples of one split before their media are opened: what folders, tables, archives and hubs have in common.

A layout (`list_folder`, `list_table`, `list_shards`, `list_dataset`) says which samples there are: a `Listing`. A
modality (`image_source`, `audio_source`, ...) makes a source of it. So every layout opens every modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media import AudioFormat, AudioHandle, ImageHandle, open_video
from mmcon.media.text import TextHandle
from mmcon.sources.splits import split_by_identity, split_by_name

# What is held out of data without splits of their own. Videos are few, so more of them are.
TEST_SHARE = {"video": 0.25}
# Columns by which audio is kept on one side of a split: a prompt that several speakers say.
GROUP = {"audio": "prompt"}


@dataclass(frozen=True)
class Listing:
    """Samples of one split.

    Attributes:
        where: the layout and the path, for messages.
        title: what the source will be called.
        modality: what the media are.
        names: what each sample is called, from which its id comes.
        cells: what each sample's media are read from: a path, bytes, a mapping with `bytes` or `path`, (archive,
            offset, size), or a text or several. A list, or a dataset with items by position.
        labels: the label of each.
        classes: the names of the classes.
        columns: further columns of a table.
        root: the folder that paths are relative to.
        folder: whether the samples are the files of a folder: only there are files checked unless this is asked for.
        split: the split that was asked for.
        versions: for texts, the names of the columns in a cell.
        notes: what was guessed.
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

    def select(self, keep: Sequence[int], *notes: str) -> Listing:
        """The samples at positions, with further notes."""
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
        """Whether a cell costs a read, of an archive or of a memory-mapped table, so that it is opened when needed."""
        return not isinstance(self.cells, list) or (not self.versions and isinstance(self.cells[0], tuple))

    @property
    def options(self) -> dict[str, Any]:
        """What every source takes of a listing."""
        return {"labels": self.labels, "classes": self.classes, "name": self.title, "notes": self.notes}

    def file(self, position: int) -> str:
        """The path of a sample's file, or its name where there is none."""
        cell = self.cells[position]
        return str(self.root / cell) if isinstance(cell, str | Path) else self.names[position]


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How data without splits of their own are split.

    Attributes:
        test_share: what is held out; by default 0.1, and 0.25 of videos.
        fold: (k, folds): hold out the k-th fold instead, for cross-validation of few samples.
    """

    test_share: float | None = None
    fold: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelOptions(SplitOptions):
    """What the labels of archives and tables are.

    Attributes:
        label_column: a column of whole numbers or texts; of archives the suffix of a member (cls by default), or
            json:NAME for a field of a json member; "none": no labels.
        classes: the names of the classes in order; by default those that the data declare, or all texts, sorted.
    """

    label_column: str | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class TableOptions(LabelOptions):
    """What the columns of a table mean. Columns that are not named are guessed by their usual names.

    Attributes:
        media_column: paths relative to `root`, bytes, or mappings with `bytes` or `path`.
        text_columns: for texts: one column, or several that say the same (translations, title and body).
        id_column: unique names of samples; by default the path, for texts the text, else the number of the row.
        split_column: the split of each sample.
        group_column: samples of equal values stay in one split; for audio by default `prompt`.
        root: the folder that paths are relative to; by default that of the table.
    """

    media_column: str | None = None
    text_columns: Sequence[str] | None = None
    id_column: str | None = None
    split_column: str = "split"
    group_column: str | None = None
    root: str | Path | None = None


def split_listing(
    listing: Listing,
    split: str,
    options: SplitOptions,
    *,
    own: Sequence[Any] | None = None,
    by: Sequence[Any] | None = None,
    rule: str = "identity",
) -> Listing:
    """The samples of a split: by the split that each has of its own, where there is one, else by identity.

    Args:
        listing: the samples of all splits.
        split: the split that is asked for.
        options: the share or the fold that is held out.
        own: the split of each sample.
        by: what decides for each sample, by default its name; equal values stay in one split.
        rule: what decides, for the note.
    """
    if own is not None:
        return listing.select(*split_by_name(listing.where, [str(name) for name in own], split))
    names = listing.names if by is None else [str(value) for value in by]
    share = TEST_SHARE.get(listing.modality, 0.1) if options.test_share is None else options.test_share
    return listing.select(*split_by_identity(listing.where, names, split, test_share=share, fold=options.fold, by=rule))


def handle_opener(
    modality: str,
    *,
    root: Path = Path(),
    audio_format: AudioFormat | None = None,
    versions: tuple[str, ...] = (),
    **options: Any,
) -> Callable[[Any, str], Any]:
    """A function from a cell and a sample's name to a handle; for a modality without handles, to the cell itself.

    Args:
        modality: what the cells hold.
        root: the folder that paths are relative to.
        audio_format: rate and channels of audio.
        versions: the names of the columns in a cell of texts.
        options: of `open_video`.
    """

    def image(cell: Any, name: str) -> ImageHandle:
        return ImageHandle(_file_or_bytes(cell, name, root, modality), id=name)

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


def _take(column: Any, keep: Sequence[int]) -> Any:
    return column.select(keep) if hasattr(column, "select") else [column[i] for i in keep]


def read_member(cell: tuple[str, int, int]) -> bytes:
    """The bytes of a member of an archive: (file, offset, size)."""
    file, offset, size = cell
    with open(file, "rb") as archive:
        archive.seek(offset)
        return archive.read(size)


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
