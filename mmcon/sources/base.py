"""What a source is: rows with stable ids, whose media stay undecoded until they are drawn.

A row is known by its id, which is the source's own name for it (a file's relative path, a column), hashed to 64 bits:
the same file keeps its id, and so its draws, wherever the folder lies and whatever is added beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import keys

# What a held-out split may be called, in the order of preference.
HELD_OUT = ("test", "val", "validation", "valid")


class Source(ABC):
    """Rows of one modality. A subclass implements `open`.

    Args:
        ids: `n` int64, all different: what names a row (see `mmcon.random.stable_ids`).
        modality: what `open` gives, such as "image".
        labels: `n` whole numbers from 0, or None.
        classes: the names of the classes, by label.
        columns: further columns of the index table with leading axis `n`, such as `group` or `time` (seconds).
        facts: what is known of the media without opening them, `n` each, such as `length`: spares reading headers.
        name: what the source is called in messages.
        notes: what was guessed or left out while it was built, one sentence each, for `describe`.
    """

    def __init__(
        self,
        *,
        ids: Tensor,
        modality: str,
        labels: Tensor | None = None,
        classes: Sequence[str] = (),
        columns: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Tensor] | None = None,
        name: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.ids, self.modality, self.name = ids, modality, name or type(self).__name__
        self.notes = tuple(notes)
        self.facts: dict[str, Tensor] = dict(facts or {})
        self.columns: dict[str, Tensor] = dict(columns or {})
        if labels is not None:
            self.columns["label"] = _whole_labels(self.name, labels)
        self.classes = tuple(classes) or tuple(map(str, range(_highest(self.labels) + 1)))
        self._check()

    @abstractmethod
    def open(self, rows: Tensor | Sequence[int]) -> Any:
        """Open the rows at positions: a stacked tensor (media in memory), or a list of handles whose headers are read.

        A handle has `facts`, a mapping of numbers such as height and width, and `decode()`.
        """

    def present(self, rows: Tensor) -> Tensor | None:
        """Which of the rows at positions are there, `n` bool; None where all always are."""
        return None

    @property
    def members(self) -> dict[str, Source]:
        """The sources by modality: one, unless several are joined."""
        return {self.modality: self}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Tensor | None:
        """The labels, `n` int64, or None where the rows have none."""
        return self.columns.get("label")

    def describe(self) -> str:
        """What there is, what was guessed and what was left out, for a person to read before a run."""
        classes = f", {len(self.classes)} classes" if self.labels is not None else ", no labels"
        lines = [f"{self.name}: {len(self):,} {self.modality} rows{classes}"]
        return "\n  ".join([*lines, *self.notes])

    def _check(self) -> None:
        lengths = {"ids": len(self.ids)} | {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(self.name, expected="columns of one length", got=str(lengths))
        if not len(self.ids):
            raise DataError(self.name, expected="at least one row", got="none", fix="check the path and the split")
        values, counts = self.ids.unique(return_counts=True)
        if len(values) < len(self.ids):
            raise DataError(
                self.name,
                expected="an id of its own for every row",
                got=f"{len(self.ids) - len(values)} rows with the id of another (first: {int(values[counts > 1][0])})",
                fix="name a column of unique ids, or leave the id to the file's path",
            )
        if self.labels is not None and _highest(self.labels) >= len(self.classes):
            raise DataError(
                self.name,
                expected=f"labels below {len(self.classes)}, one for each class name",
                got=f"label {_highest(self.labels)}",
                fix="give all class names",
            )


@final
class TensorSource(Source):
    """Media that are in memory already: `open` is an index into a stacked tensor, the fastest there is.

    Args:
        values: with leading axis `n`; images as `n c h w` uint8.
        options: as for Source; ids default to the positions.
    """

    def __init__(self, values: Tensor, *, modality: str = "image", ids: Tensor | None = None, **options: Any) -> None:
        self.values = values
        super().__init__(ids=torch.arange(len(values)) if ids is None else ids, modality=modality, **options)
        if len(self.ids) != len(values):
            raise InputError(self.name, expected=f"{len(values)} ids", got=str(len(self.ids)))

    def open(self, rows: Tensor | Sequence[int]) -> Tensor:
        """The rows of the tensor."""
        return self.values[torch.as_tensor(rows)]


@final
class Subset(Source):
    """Some rows of a source, with their ids, labels and class names."""

    def __init__(self, source: Source, rows: Tensor | Sequence[int], *, name: str = "") -> None:
        self.source, self.rows = source, torch.as_tensor(rows, dtype=torch.int64)
        super().__init__(
            ids=source.ids[self.rows],
            modality=source.modality,
            classes=source.classes,
            columns={column: values[self.rows] for column, values in source.columns.items()},
            facts={fact: values[self.rows] for fact, values in source.facts.items()},
            name=name or f"{len(self.rows)} rows of {source.name}",
        )

    @property
    def members(self) -> dict[str, Source]:
        """The same rows of every member."""
        members = self.source.members
        return {self.modality: self} if len(members) == 1 else {m: Subset(s, self.rows) for m, s in members.items()}

    def open(self, rows: Tensor | Sequence[int]) -> Any:
        """Open the rows in the source that they come from."""
        return self.source.open(self.rows[torch.as_tensor(rows)])

    def present(self, rows: Tensor) -> Tensor | None:
        """Which of the rows are there in the source that they come from."""
        return self.source.present(self.rows[rows])


@final
class JoinedSource(Source):
    """Several modalities of the same samples: rows meet where their ids agree; a missing modality is normal.

    Args:
        members: one source a modality. The columns of the joined source are those of the first member that has them.
    """

    def __init__(self, *members: Source, name: str = "") -> None:
        repeated = sorted({m.modality for m in members if sum(o.modality == m.modality for o in members) > 1})
        if not members or repeated:
            got = f"{repeated} more than once" if repeated else "none"
            raise DataError("JoinedSource", expected="one source for each modality", got=got)
        ids = list(dict.fromkeys(i for member in members for i in member.ids.tolist()))
        self._aligned = {m.modality: _Aligned(m, ids) for m in members}
        apart = [m.name for m in members[1:] if not set(m.ids.tolist()) & set(members[0].ids.tolist())]
        if len(apart) == len(members) - 1 and apart:
            raise DataError(
                "JoinedSource",
                expected=f"ids that {members[0].name!r} shares with another source",
                got=f"none in {apart}",
                fix="call a sample by the same id in every source; rows meet by it",
            )
        # Only columns that every row has can stand in one table; each member keeps its own beside.
        columns: dict[str, Tensor] = {}
        for aligned in self._aligned.values():
            whole = bool((aligned.positions >= 0).all())
            columns |= {k: v for k, v in aligned.columns.items() if whole and k not in columns}
        super().__init__(
            ids=torch.tensor(ids, dtype=torch.int64),
            modality="+".join(self._aligned),
            classes=next((m.classes for m in members if m.labels is not None), ()),
            columns=columns,
            name=name or " + ".join(m.name for m in members),
            notes=[f"{m.modality}: {len(m):,} of {len(ids):,} samples, {m.name}" for m in members],
        )

    @property
    def members(self) -> dict[str, Source]:
        """The sources by modality, each with a row for every sample of the whole."""
        return dict(self._aligned)

    def add_column(self, name: str, samples: Int[Tensor, " m"], values: Tensor) -> None:
        """Give every member a column, such as features of a frozen encoder of one side, for affinities between sides.

        Args:
            name: what the column is called.
            samples: ids, every sample of the whole among them.
            values: `m ...`, what each has.
        """
        at = {sample: row for row, sample in enumerate(samples.tolist())}
        lacking = [sample for sample in self.ids.tolist() if sample not in at]
        if lacking:
            got = f"{len(lacking)} without, such as {lacking[0]}"
            raise DataError(self.name, expected=f"a value of {name!r} for every sample", got=got)
        column = values[torch.tensor([at[sample] for sample in self.ids.tolist()])]
        self.columns[name] = column
        for member in self._aligned.values():
            member.columns[name] = column

    def open(self, rows: Tensor | Sequence[int]) -> Any:
        """Refuse: a row of several modalities is opened in its members."""
        raise InputError(
            self.name, expected="one modality", got=self.modality, fix="source.members[modality].open(rows)"
        )


class _Aligned(Source):
    """A source with a row for each of the given ids, some of which it may lack."""

    def __init__(self, source: Source, ids: list[int]) -> None:
        at = {i: position for position, i in enumerate(source.ids.tolist())}
        self.source, self.positions = source, torch.tensor([at.get(i, -1) for i in ids])
        super().__init__(
            ids=torch.tensor(ids, dtype=torch.int64),
            modality=source.modality,
            classes=source.classes,
            columns={k: v[self.positions.clamp(min=0)] for k, v in source.columns.items()},
            facts={k: v[self.positions.clamp(min=0)] for k, v in source.facts.items()},
            name=source.name,
        )

    def present(self, rows: Tensor) -> Tensor | None:
        there = self.positions[rows] >= 0
        inner = self.source.present(self.positions[rows].clamp(min=0))
        return there if inner is None else there & inner

    def open(self, rows: Tensor | Sequence[int]) -> Any:
        return self.source.open(self.positions[torch.as_tensor(rows)])


# --- what is done to any source --------------------------------------------------------------------------------------


def meetings(source: Source) -> dict[tuple[str, str], int]:
    """How many samples have both modalities, by ordered pair."""
    rows = torch.arange(len(source))
    there = {name: member.present(rows) for name, member in source.members.items()}
    whole = torch.ones(len(rows), dtype=torch.bool)
    have = {name: whole if present is None else present for name, present in there.items()}
    return {(a, c): int((have[a] & have[c]).sum()) for a in have for c in have}


def held_out(ids: Int[Tensor, " n"], share: float) -> Tensor:
    """Which rows a split by identity holds out, `n` bool: each row by its own id, so that added rows move none.

    >>> from mmcon.random import stable_ids
    >>> held_out(stable_ids(["a.png", "b.png", "c.png"]), share=0.5).dtype
    torch.bool
    """
    if not 0 < share < 1:
        raise InputError("held_out", expected="a share between 0 and 1", got=str(share))
    return keys(sample=ids).child("split").bernoulli("held out", share)


def class_counts(source: Source) -> Int[Tensor, " classes"]:
    """How many rows each class has."""
    if source.labels is None:
        raise DataError(source.name, expected="labels", got="rows without labels", fix="name the label column")
    return torch.bincount(source.labels, minlength=len(source.classes))


def class_weights(counts: Int[Tensor, " classes"], *, power: float = 1.0) -> Float[Tensor, " classes"]:
    """Weights in proportion to n^-power, whose mean over rows is 1; an empty class weighs 0.

    Power 1 gives every class the same total weight, 0 gives every row the same, .5 lies between (for long tails).
    """
    weights = torch.where(counts > 0, counts.clamp(min=1).float() ** -power, 0.0)
    return weights * counts.sum() / (weights * counts).sum()


def channels_of(source: Source) -> int:
    """Channels of images in memory; files are decoded to colour."""
    inner = source.source if isinstance(source, Subset) else source
    return inner.values.shape[1] if isinstance(inner, TensorSource) else 3


def _whole_labels(name: str, labels: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1 or bool((labels < 0).any()):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" + (
            f", lowest {labels.min().item():g}" if labels.numel() else ""
        )
        raise DataError(
            name,
            expected="labels as whole numbers from 0, one a row",
            got=got,
            fix="map them to 0, 1, …; a quantity (an age, a rating) goes into `columns`, where an affinity grades it",
        )
    return labels.to(torch.int64)


def _highest(labels: Tensor | None) -> int:
    return -1 if labels is None or not len(labels) else int(labels.max())
