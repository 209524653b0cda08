# ruff: noqa: D102 — an override does what its base says
"""Negative weights from a guide: another model's similarities say which negatives are likely positives."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.affinity.base import CHUNK, Affinity
from mmcon.affinity.labels import SameSample
from mmcon.affinity.pairwise import Column, ColumnPair, Pair, Pairwise
from mmcon.batch import Index
from mmcon.errors import InputError

# Equal features have cosines that differ by rounding; a negative that is as similar as the positive is kept.
_ROUNDING = 1e-6


class GuidedNegatives(Pairwise):
    """Negative weights that drop likely false negatives (GIST; Solatorio 2024).

    The guide is a frozen model; g is the cosine of its features. A negative j of anchor i is dropped (weight 0) where

        g_ij > min_p g_ip - margin                  (absolute)
        g_ij > min_p g_ip - margin · |min_p g_ip|    (relative)

    with p the positives of i, of which the paper has one. All other weights are 1; those of positives do not matter.

    Args:
        features: of the guide for anchors, floats `a m`, or the name of a column; scaled to unit length here.
        candidates: of candidates, `c m`, or the name of a column; None: the same.
        positives: which pairs are positive; an anchor's pair with itself does not count, since no cosine exceeds it.
        margin: 0 or above; larger ones drop more negatives. Where all views of a sample share their features, the
            positives have the cosine 1, so that only a margin above 0 drops any negative.
        relative: whether the margin is a fraction of the positive's cosine.

    Raises:
        InputError: features that are not a matrix of floats, or a margin below 0.

    >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.9, 0.5], [0.0, 1.0]])
    >>> samples = torch.tensor([0, 0, 1, 2])
    >>> GuidedNegatives(features, positives=SameSample(samples)).dense()[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    symmetric_weights = False

    def __init__(
        self,
        features: Column = "side",
        candidates: Column | None = None,
        *,
        positives: Affinity | None = None,
        margin: float = 0.0,
        relative: bool = False,
    ) -> None:
        super().__init__(ColumnPair(features, candidates))
        if not 0 <= margin < float("inf"):
            raise InputError("GuidedNegatives", expected="a finite margin >= 0", got=str(margin))
        self.positives = SameSample() if positives is None else positives
        self.margin, self.relative = margin, relative
        self.limits: Float[Tensor, " a"] | None = None
        if isinstance(self.column_pairs[0].rows, Tensor) and not isinstance(self.column_pairs[0].columns, str):
            self.check_values()
            self._set_limits()

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        if self.limits is not None:
            return self
        bound = super().bind(rows, columns)
        assert isinstance(bound, GuidedNegatives)
        bound.positives = self.positives.bind(rows, columns)
        bound._set_limits()
        return bound

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity:
        made = super().reordered(rows, columns)
        assert isinstance(made, GuidedNegatives)
        assert self.limits is not None
        made.limits = self.limits[rows]
        return made

    def check(self, rows: Shaped[Tensor, "..."], columns: Shaped[Tensor, "..."]) -> None:
        for features in (rows, columns):
            if features.ndim != 2 or not features.is_floating_point():
                got = f"{features.dtype} of shape {tuple(features.shape)}"
                raise InputError("GuidedNegatives", expected="floats `n m`", got=got)
        if rows.shape[1] != columns.shape[1]:
            got = f"{rows.shape[1]} and {columns.shape[1]}"
            raise InputError("GuidedNegatives", expected="features of one width", got=got)

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        # In half precision, cosines that are equal in the limit and in a tile would differ by rounding.
        wide = (v if v.dtype.itemsize >= 4 else v.float() for v in values[0])
        rows, columns = (torch.nn.functional.normalize(v, dim=1) for v in wide)
        return rows @ columns.T

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        cosines = super().tile(rows, columns)
        assert self.limits is not None
        return (cosines <= self.limits[rows, None]).to(cosines.dtype)

    def _set_limits(self) -> None:
        """The largest cosine of a negative that is kept, for each anchor; infinite without positives."""
        a, c = self.shape
        if self.positives.shape != (a, c):
            got = f"positives of {self.positives.shape}"
            raise InputError("GuidedNegatives", expected=f"positives and features of {a, c}", got=got)
        if 0 in (a, c):
            self.limits = self.values()[0][0].new_full((a,), torch.inf)
            return
        whole, lowest = slice(0, c), []
        for start in range(0, a, CHUNK):
            rows = slice(start, min(start + CHUNK, a))
            cosines = super().tile(rows, whole)
            lowest.append(cosines.masked_fill(~(self.positives.tile(rows, whole) > 0), torch.inf).amin(1))
        least = torch.cat(lowest)
        # Infinite without positives: `inf - inf` of a relative margin would be NaN.
        margin = self.margin * (least.abs().clamp_max(1) if self.relative else 1)
        self.limits = least - margin + _ROUNDING
