"""Samples of several modalities joined by their ids, and samples with several instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media.instances import Instances
from mmcon.sources.base import Positions, Source


@final
class JoinedSource(Source):
    """Several modalities of the same samples, joined by id; a sample may lack a modality.

    Args:
        members: one source per modality. A column of the joined source comes from the first member that has it.
    """

    def __init__(self, *members: Source, name: str = "") -> None:
        repeated = sorted({m.modality for m in members if sum(o.modality == m.modality for o in members) > 1})
        if not members or repeated:
            got = f"{repeated} more than once" if repeated else "none"
            raise DataError("JoinedSource", expected="one source for each modality", got=got)
        ids = list(dict.fromkeys(i for member in members for i in member.ids.tolist()))
        self._aligned = {m.modality: _Reindexed(m, ids) for m in members}
        apart = [m.name for m in members[1:] if not set(m.ids.tolist()) & set(members[0].ids.tolist())]
        if len(apart) == len(members) - 1 and apart:
            raise DataError(
                "JoinedSource",
                expected=f"ids that {members[0].name!r} shares with another source",
                got=f"none in {apart}",
                fix="give a sample the same id in every source",
            )
        # The joined index contains only columns that every sample has; members keep their other columns.
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
            max_failures=max(member.max_failures for member in members),
        )

    @property
    def members(self) -> dict[str, Source]:
        """The sources by modality, all reindexed to the joined samples."""
        return dict(self._aligned)

    def add_column(self, name: str, samples: Int[Tensor, " m"], values: Shaped[Tensor, "m ..."]) -> None:
        """Add a column to all members, such as features of a frozen encoder, for affinities between modalities.

        Args:
            name: the name of the column.
            samples: sample ids, which include all samples of the source.
            values: the value of each sample.
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

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        """Those of all members that have any, one member after another."""
        marks = [member.content_marks(rows) for member in self.members.values()]
        return [mark for own in marks if own is not None for mark in own] if any(m is not None for m in marks) else None

    def open(self, rows: Positions) -> Any:
        """Raise InputError: samples of several modalities are opened in the members."""
        fix = "source.members[modality].open(rows)"
        raise InputError(self.name, expected="one modality", got=self.modality, fix=fix)


class _Reindexed(Source):
    """A source reindexed to given ids; missing ids have no media."""

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
        self.categories = source.categories

    def present(self, rows: Int[Tensor, " m"]) -> Bool[Tensor, " m"] | None:
        there = self.positions[rows] >= 0
        inner = self.source.present(self.positions[rows].clamp(min=0))
        return there if inner is None else there & inner

    def open(self, rows: Positions) -> Any:
        return self.source.open(self.positions[torch.as_tensor(rows)])

    def name_of(self, row: int) -> str:
        return self.source.name_of(int(self.positions[row]))

    def file(self, row: int) -> Path | None:
        there = int(self.positions[row])
        return self.source.file(there) if there >= 0 else None

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        there = self.positions[rows]
        marks = self.source.content_marks(there.clamp(min=0))
        return None if marks is None else [mark if row >= 0 else -1 for mark, row in zip(marks, there, strict=True)]


@final
class GroupedSource(Source):
    """Samples with several instances each, such as recordings of a word or captions of an image.

    The view generator `any/instance` draws one instance for each view. Columns that differ among the instances of a
    sample are left out, since the drawn instance is not known when the index table is made.

    Args:
        source: the instances, which open as handles or tensors.
        samples: the sample id of each instance.
    """

    def __init__(self, source: Source, samples: Int[Tensor, " n"]) -> None:
        if len(samples) != len(source):
            expected = f"a sample id for each of {len(source)} instances"
            raise InputError("GroupedSource", expected=expected, got=f"{len(samples)}")
        self.source = source
        ids, group = samples.unique(return_inverse=True)
        self._order = group.argsort(stable=True)
        self._counts = torch.bincount(group)
        self._starts = self._counts.cumsum(0) - self._counts
        self.widest = int(self._counts.max())
        first = self._order[self._starts]
        same = {k: column for k, column in source.columns.items() if bool((column == column[first][group]).all())}
        super().__init__(
            ids=ids,
            modality=source.modality,
            classes=source.classes if "label" in same else (),
            columns={k: column[first] for k, column in same.items()},
            name=source.name,
            max_failures=source.max_failures,
            notes=[*source.notes, f"{len(source):,} instances of {len(ids):,} samples, up to {self.widest} each"],
        )
        self.categories = {k: texts for k, texts in source.categories.items() if k in same}

    def open(self, rows: Positions) -> list[Instances]:
        """All instances of each sample."""
        positions = torch.as_tensor(rows)
        counts: list[int] = self._counts[positions].tolist()
        opened = iter(self.source.open(self._instances_of(positions)) if counts else ())
        return [Instances([next(opened) for _ in range(count)], max_instances=self.widest) for count in counts]

    def name_of(self, row: int) -> str:
        """The files of all instances of a sample; the reason of a failure names the one that failed."""
        start = int(self._starts[row])
        own = self._order[start : start + int(self._counts[row])].tolist()
        return ", ".join(dict.fromkeys(self.source.name_of(instance) for instance in own))

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        """Those of all instances of each sample, added up."""
        counts = self._counts[rows]
        marks = self.source.content_marks(self._instances_of(rows))
        if marks is None:
            return None
        # Hashes of texts overflow, and wrap around.
        sample = torch.arange(len(rows)).repeat_interleave(counts)
        return torch.zeros(len(rows), dtype=torch.int64).index_add(0, sample, torch.tensor(marks)).tolist()

    def _instances_of(self, rows: Int[Tensor, " m"]) -> Int[Tensor, " i"]:
        """The instances of some samples, one sample after another."""
        counts = self._counts[rows]
        first = (self._starts[rows] - counts.cumsum(0) + counts).repeat_interleave(counts)
        return self._order[first + torch.arange(len(first))]


def modality_pair_counts(source: Source) -> dict[tuple[str, str], int]:
    """The number of samples that have both modalities, by ordered pair."""
    rows = torch.arange(len(source))
    present = {name: member.present(rows) for name, member in source.members.items()}
    have = {name: torch.ones(len(rows), dtype=torch.bool) if mask is None else mask for name, mask in present.items()}
    return {(a, c): int((have[a] & have[c]).sum()) for a in have for c in have}
