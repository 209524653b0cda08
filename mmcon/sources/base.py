"""The base class of sources: samples with stable ids, whose media stay undecoded until a view needs them.

The id of a sample is a 64-bit hash of its name in the source (the relative path of a file, or the value of a column).
So a file keeps its id, and therefore its draws, when the folder moves or other files are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.batch import Numbers
from mmcon.errors import DataError, InputError
from mmcon.media.decoding import decoder_errors
from mmcon.media.text import check_is_list
from mmcon.random import stable_ids
from mmcon.sources.fingerprint import file_sizes, fingerprint_of, text_marks
from mmcon.sources.labels import check_labels, number_integers, number_texts
from mmcon.sources.listing import file_of, name_of_file

Positions = Int[Tensor, " m"] | Sequence[int]


class Source(ABC):
    """Samples of one modality. A subclass implements `open`.

    Args:
        ids: `n`, all different (see `mmcon.random.stable_ids`).
        modality: the modality of the samples, such as "image".
        labels: `n` integers from 0 as a tensor, an array or a list, or None. Without `classes`, labels that are ids
            are numbered, and name the classes.
        classes: the names of the classes, by label.
        columns: further columns of the index with leading axis `n`, such as `group` or `time` (seconds).
        categories: text columns, such as prompt and language, `n` each. They are stored in `columns` as integers;
            `categories` keeps the texts by number.
        facts: header facts of the media, `n` each, such as `length`, if known: headers are then not read.
        name: the name of the source in messages.
        notes: what was guessed or left out when the source was made, one sentence each, for `describe`.
        root: the folder that paths of files are relative to.
        max_failures: the highest accepted share of samples that a loader cannot read.
    """

    def __init__(
        self,
        *,
        ids: Int[Tensor, " n"],
        modality: str,
        labels: Numbers | None = None,
        classes: Sequence[str] = (),
        columns: Mapping[str, Shaped[Tensor, "..."]] | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
        facts: Mapping[str, Shaped[Tensor, "..."]] | None = None,
        name: str = "",
        notes: Sequence[str] = (),
        root: Path = Path(),
        max_failures: float = 0.1,
    ) -> None:
        self.ids, self.modality, self.name = ids, modality, name or type(self).__name__
        self.notes, self.root, self.max_failures = tuple(notes), root, max_failures
        self.facts: dict[str, Tensor] = dict(facts or {})
        self.columns: dict[str, Tensor] = dict(columns or {})
        self.categories: dict[str, tuple[str, ...]] = {}
        for column, texts in (categories or {}).items():
            self.columns[column], self.categories[column] = number_texts(self.name, texts)
        if labels is not None:
            self.columns["label"] = check_labels(self.name, labels)
        check_is_list(f"{self.name}, classes", classes)
        self.classes = tuple(classes)
        if not classes and self.labels is not None:
            self.columns["label"], self.classes = number_integers(self.labels)
        self._check()

    @abstractmethod
    def open(self, rows: Positions) -> Any:
        """Open samples by index: a stacked tensor (media in memory) or a list of handles.

        A handle has `facts` (a mapping of numbers such as height and width) and `decode()`.
        """

    def present(self, rows: Int[Tensor, " m"]) -> Bool[Tensor, " m"] | None:
        """A mask of the samples that have media; None if all have."""
        return None

    @property
    def members(self) -> dict[str, Source]:
        """The sources by modality: one, except for joined sources."""
        return {self.modality: self}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Int[Tensor, " n"] | None:
        """The labels, or None for samples without labels."""
        return self.columns.get("label")

    def describe(self) -> str:
        """The number of samples and classes, what was guessed or left out, and the classes without a sample."""
        classes = f", {len(self.classes)} classes" if self.labels is not None else ", no labels"
        lines = [f"{self.name}: {len(self):,} {self.modality} samples{classes}", *self.notes]
        absent = [] if self.labels is None else (class_counts(self) == 0).nonzero()[:, 0].tolist()
        if absent:
            names = ", ".join(self.classes[label] for label in absent[:5])
            more = ", …" if len(absent) > 5 else ""
            lines.append(f"no samples of {len(absent):,} of {len(self.classes):,} classes: {names}{more}")
        return "\n  ".join(lines)

    def fingerprint(self) -> dict[str, int | str]:
        """The number of samples, and hashes of their ids, labels, columns, and sizes of files or texts, in order.

        No media file is read. Two fingerprints are compared by `mmcon.sources.fingerprint.fingerprint_changes`.
        """
        return fingerprint_of(self.ids, self.labels, self.content_marks, self.members)

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        """By index, the size of the sample's file (-1: no file) or a hash of its text; None for other media."""
        return None

    @property
    def files(self) -> list[Path]:
        """The absolute paths of the samples' files, in order.

        Raises:
            InputError: the media are in memory, in archives or on a hub.
        """
        found = [file.absolute() for row in range(len(self)) if (file := self.file(row)) is not None]
        if len(found) < len(self):
            got = f"{len(self) - len(found):,} of {len(self):,} samples without one"
            fix = "use source.name_of(row) to name a sample"
            raise InputError(self.name, expected="a file of its own for every sample", got=got, fix=fix)
        return found

    def file(self, row: int) -> Path | None:
        """The file of a sample; None if it is in memory, in an archive or on a hub."""
        return None

    def name_of(self, row: int) -> str:
        """What a message and quarantine.jsonl call a sample: the path of its file, or its name in the source."""
        return f"{self.name}: sample {int(self.ids[row])}"

    def _check(self) -> None:
        lengths = {"ids": len(self.ids)} | {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(self.name, expected="columns of one length", got=str(lengths))
        if not len(self.ids):
            raise DataError(self.name, expected="at least one sample", got="none", fix="check the path and the split")
        values, counts = self.ids.unique(return_counts=True)
        if len(values) < len(self.ids):
            got = f"{len(self.ids) - len(values)} samples with the id of another (first: {int(values[counts > 1][0])})"
            fix = "name a column of unique ids, or leave the id to the file's path"
            raise DataError(self.name, expected="an id of its own for every sample", got=got, fix=fix)
        if self.labels is not None and _highest(self.labels) >= len(self.classes):
            raise DataError(
                self.name,
                expected=f"labels below {len(self.classes)}, one for each class name",
                got=f"label {_highest(self.labels)}",
                fix="give all class names",
            )


@final
class TensorSource(Source):
    """Media in memory as one stacked tensor, the fastest source: `open` indexes the tensor.

    Args:
        values: with leading axis `n`; images as `n c h w` uint8.
        options: as for Source; ids default to the indices.
    """

    def __init__(
        self,
        values: Shaped[Tensor, "n ..."],
        *,
        modality: str = "image",
        ids: Int[Tensor, " m"] | None = None,
        **options: Any,
    ) -> None:
        self.values = values
        super().__init__(ids=torch.arange(len(values)) if ids is None else ids, modality=modality, **options)
        if len(self.ids) != len(values):
            raise InputError(self.name, expected=f"{len(values)} ids", got=str(len(self.ids)))

    def open(self, rows: Positions) -> Shaped[Tensor, "m ..."]:
        """Index the tensor."""
        return self.values[torch.as_tensor(rows)]


@runtime_checkable
class MapStyle(Protocol):
    """A list or a map-style torch dataset: it has a length and items by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@final
class DatasetSource(Source):
    """Items of a list or a map-style dataset, such as torchvision's; an item is opened as a handle when it is needed.

    >>> items = [(torch.zeros(1, 2, 2, dtype=torch.uint8), i % 2) for i in range(4)]
    >>> DatasetSource(items, labels=torch.tensor([0, 1, 0, 1])).open([3])[0].shape
    torch.Size([1, 2, 2])

    Args:
        items: paths, bytes, handles, or the samples of a torch dataset, by index. They should not be random, since
            views are drawn later. A `__getitems__` method is used to read several items at once.
        handle: a function from an item and its name to a handle or a tensor; by default the item, or the first element
            of a tuple.
        names: the names of the samples, which are hashed to ids; by default their indices.
        options: as for Source. Labels are not extracted from the items, since that would read all of them.
    """

    def __init__(
        self,
        items: MapStyle,
        *,
        handle: Callable[[Any, str], Any] | None = None,
        names: Sequence[str] | None = None,
        modality: str = "image",
        **options: Any,
    ) -> None:
        self.items, self.handle, self.names = items, handle or _first, names
        ids = torch.arange(len(items)) if names is None else stable_ids(names)
        super().__init__(ids=ids, modality=modality, **options)

    def open(self, rows: Positions) -> list[Any]:
        """A handle for each index."""
        positions: list[int] = torch.as_tensor(rows).tolist()
        unique = list(dict.fromkeys(positions))  # views of one sample share its handle, whose header is read once
        several = getattr(self.items, "__getitems__", None)
        if several:
            with decoder_errors(self.name_of(unique[0]) if len(unique) == 1 else self.name):
                items = several(unique)
        handles = {}
        for number, row in enumerate(unique):
            name = str(row) if self.names is None else self.names[row]
            with decoder_errors(self.name_of(row) if self.names is None else name):
                handles[row] = self.handle(items[number] if several else self.items[row], name)
        return [handles[row] for row in positions]

    def name_of(self, row: int) -> str:
        """The path of a sample's file, else its name; of a dataset without names, the path that its `samples` have."""
        name = f"{self.name}[{row}]" if self.names is None else self.names[row]
        item = self._listed(row)
        if self.modality == "text" and not (isinstance(item, tuple) and len(item) == 3):
            return name  # a string is the text itself
        return name_of_file(item, name, self.root)

    def file(self, row: int) -> Path | None:
        """The file of a sample in a list, or in the `samples` of a dataset."""
        return None if self.modality == "text" else file_of(self._listed(row), self.root)

    def _listed(self, row: int) -> Any:
        listed = self.items if type(self.items) is list else getattr(self.items, "samples", None)
        return listed[row] if isinstance(listed, list | tuple) else None

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        """Of the items of a list, or the texts of a table; None for a dataset, whose items would have to be made."""
        if self.modality == "text" and (read := getattr(self.items, "read_texts", None)):
            return text_marks(read(rows.tolist()))
        if type(self.items) is not list:
            return None
        items = [self.items[row] for row in rows.tolist()]
        are_texts = self.modality == "text" and all(isinstance(item, str) for item in items)
        return text_marks(items) if are_texts else file_sizes(items, self.root)


@final
class Subset(Source):
    """A subset of a source's samples, with their ids, labels and class names."""

    def __init__(self, source: Source, rows: Positions, *, name: str = "") -> None:
        self.source, self.rows = source, torch.as_tensor(rows, dtype=torch.int64)
        super().__init__(
            ids=source.ids[self.rows],
            modality=source.modality,
            classes=source.classes,
            columns={column: values[self.rows] for column, values in source.columns.items()},
            facts={fact: values[self.rows] for fact, values in source.facts.items()},
            name=name or f"{len(self.rows)} samples of {source.name}",
            max_failures=source.max_failures,
        )
        self.categories = source.categories

    @property
    def members(self) -> dict[str, Source]:
        """The same subset of every member."""
        members = self.source.members
        return {self.modality: self} if len(members) == 1 else {m: Subset(s, self.rows) for m, s in members.items()}

    def open(self, rows: Positions) -> Any:
        """Open the samples in the original source."""
        return self.source.open(self.rows[torch.as_tensor(rows)])

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        """Those of the original source."""
        return self.source.content_marks(self.rows[rows])

    def file(self, row: int) -> Path | None:
        """The file of a sample in the original source."""
        return self.source.file(int(self.rows[row]))

    def name_of(self, row: int) -> str:
        """What the original source calls a sample."""
        return self.source.name_of(int(self.rows[row]))

    def present(self, rows: Int[Tensor, " m"]) -> Bool[Tensor, " m"] | None:
        """A mask of the samples that have media in the original source; None if all have."""
        return self.source.present(self.rows[rows])


def class_counts(source: Source) -> Int[Tensor, " classes"]:
    """The number of samples of each class."""
    if source.labels is None:
        raise DataError(source.name, expected="labels", got="samples without labels", fix="name the label column")
    return torch.bincount(source.labels, minlength=len(source.classes))


def class_weights(counts: Int[Tensor, " classes"], *, power: float = 1.0) -> Float[Tensor, " classes"]:
    """Weights in proportion to n^-power, whose mean over samples is 1; an empty class gets weight 0.

    Power 1 gives all classes the same total weight, 0 gives all samples the same weight; 0.5 is a compromise for
    long-tailed data.
    """
    weights = torch.where(counts > 0, counts.clamp(min=1).float() ** -power, 0.0)
    return weights * counts.sum() / (weights * counts).sum()


def channels_of(source: Source) -> int:
    """The number of channels that images are decoded to, as of the first sample that can be opened."""
    for row in range(len(source)):
        with suppress(DataError):  # the loader names it and leaves it out
            first = source.open([row])[0]
            return len(first) if isinstance(first, Tensor) else getattr(first, "channels", 3)
    return 3


def _first(item: Any, name: str) -> Any:
    return item[0] if isinstance(item, tuple | list) else item


def _highest(labels: Int[Tensor, " n"] | None) -> int:
    return -1 if labels is None or not len(labels) else int(labels.max())
