"""Several rows of a source as instances of one sample: recordings of a word, captions of a picture."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media.instances import Instances
from mmcon.sources.base import Source


@final
class GroupedSource(Source):
    """A source whose rows are samples, each with the rows of another source that belong to it.

    The view generator `any/instance` draws one of them for each view. Columns that differ among a sample's instances
    are left out, since a view does not say which one it was.

    Args:
        source: the instances; rows that open as handles or tensors.
        samples: `n`, the id of the sample that each row belongs to.
    """

    def __init__(self, source: Source, samples: Int[Tensor, " n"]) -> None:
        if len(samples) != len(source):
            raise InputError(
                "GroupedSource", expected=f"a sample for each of {len(source)} rows", got=f"{len(samples)}"
            )
        self.source = source
        ids, group = samples.unique(return_inverse=True)
        order = group.argsort(stable=True)
        self._counts = torch.bincount(group)
        self._starts = self._counts.cumsum(0) - self._counts
        self._order, self.widest = order, int(self._counts.max())
        first = order[self._starts]
        alike = {
            name: column for name, column in source.columns.items() if bool((column == column[first][group]).all())
        }
        super().__init__(
            ids=ids,
            modality=source.modality,
            classes=source.classes if "label" in alike else (),
            columns={name: column[first] for name, column in alike.items()},
            name=source.name,
            notes=[*source.notes, f"{len(source):,} instances of {len(ids):,} samples, up to {self.widest} each"],
        )

    def open(self, rows: Tensor | list[int]) -> list[Any]:
        """All instances of each row."""
        positions = torch.as_tensor(rows)
        owned = [self._order[s : s + c] for s, c in zip(self._starts[positions], self._counts[positions], strict=True)]
        opened = iter(self.source.open(torch.cat(owned)) if owned else ())
        return [Instances([next(opened) for _ in own], widest=self.widest) for own in owned]
