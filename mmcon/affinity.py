"""Affinity: who is meant to be alike, and how strongly, computed tile by tile.

An affinity gives a weight `W[i, j] >= 0` to every pair of an anchor row and a candidate row. A pair is positive where
its weight is above 0 and negative where it is 0. Weights come from what is *known* about rows (identity, label, time,
side features), never from the embeddings that are being trained.

No affinity holds an n × n matrix unless it was given one (`Dense`) or is asked for one (`.dense()`). A loss reads it by
`tile(rows, columns)`, or, where the weights have structure, by `factors()`, which cost O(n).

An affinity is built from tensors, or from column names that `bind` looks up in the tables of a batch:

    SameLabel(torch.tensor([0, 0, 1]))         # ready
    SameLabel("label")                         # ready after .bind(rows, columns)
    TimeKernel("time", group="sample", width_seconds=2.0) * SameLabel()
"""

# ruff: noqa: D102 — an override does what its base says
from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import InputError, nearest

Column = Tensor | str
ROWS_AT_ONCE = 512


class Affinity(ABC):
    """Weights of pairs, read by tiles.

    Attributes:
        never_zero: whether every pair has a weight above 0, so that there are no negatives.
    """

    never_zero: bool = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Anchors and candidates: (a, c)."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether candidates are the anchors and `W[i, j] == W[j, i]`, so that one tile serves both sides."""

    @abstractmethod
    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        """Look column names up in the table of anchors and of candidates (None: the anchors themselves)."""

    @abstractmethod
    def tile(self, rows: slice, columns: slice) -> Tensor:
        """The weights of a block, `r c`."""

    def factors(self) -> tuple[Factor, ...] | None:
        """Parts whose sum is W and that multiply a matrix in O(n), or None where there are none."""
        return None

    def parameters(self) -> Iterator[Tensor]:
        """The tensors that receive a gradient, such as a learnable kernel width."""
        return iter(())

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        """The affinity with `f` applied to each of `parameters()`, in their order."""
        return self

    def row_sums(self, self_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """For each anchor the sum of its weights, self left out, and whether any of them is above 0.

        The second is counted, not compared with the first, so that no rounding makes a positive of a singleton.

        Args:
            self_index: the candidate that is the anchor itself, int64 `a`, or -1; None: no anchor is a candidate.
        """
        if (factors := self.factors()) is not None:
            return factor_sums(factors, self_index)
        sums, valid = [], []
        for start in range(0, self.shape[0], ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, self.shape[0]))
            weights = self.tile(rows, slice(0, self.shape[1]))
            if self_index is not None:
                weights = weights.masked_fill(self_mask(self_index[rows], self.shape[1]), 0)
            sums.append(weights.sum(1))
            valid.append((weights > 0).any(1))
        return (torch.cat(sums), torch.cat(valid)) if sums else (torch.zeros(0), torch.zeros(0, dtype=torch.bool))

    def dense(self) -> Tensor:
        """The whole matrix, `a c`: only where it is wanted."""
        return self.tile(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def __mul__(self, other: Affinity | float) -> Affinity:
        """Pairs weighted by both; a number scales."""
        return Product(self, other) if isinstance(other, Affinity) else Scaled(self, float(other))

    __rmul__ = __mul__

    def __add__(self, other: Affinity) -> Affinity:
        """Pairs weighted by either."""
        return Sum(self, other)

    def __invert__(self) -> Affinity:
        """The complement `1 - W`: negative weights that drop W's pairs, as in `negative_weights=~SameLabel()`."""
        return Complement(self)


# ---------------------------------------------------------------------------------------------- factors


@dataclass(frozen=True)
class ClassFactor:
    """`W[i, j] = table[rows[i], columns[j]]`: class indices, never one-hot. No table: 1 for the same class.

    Attributes:
        rows, columns: class indices from 0, int64 `a` and `c`.
        classes: how many there are.
        table: weights of class pairs, `classes classes`, or None.
        scale: multiplies the weights.
    """

    rows: Tensor
    columns: Tensor
    classes: int
    table: Tensor | None = None
    scale: float = 1.0

    def times(self, candidates: Tensor) -> Tensor:
        """`W @ candidates`, through sums by class."""
        sums = candidates.new_zeros(self.classes, candidates.shape[1]).index_add_(0, self.columns, candidates)
        if self.table is not None:
            sums = self.table.to(sums.dtype) @ sums
        return sums[self.rows].mul_(self.scale)

    def transpose(self) -> ClassFactor:
        """The same weights seen from the candidates."""
        table = None if self.table is None else self.table.T
        return ClassFactor(self.columns, self.rows, self.classes, table, self.scale)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs."""
        if self.table is None:
            return (self.rows[rows] == self.columns[columns]) * self.scale
        return self.table[self.rows[rows], self.columns[columns]] * self.scale

    def positives(self, anchors: Tensor) -> Tensor:
        """How many candidates each of `anchors` has with a weight above 0."""
        counts = torch.bincount(self.columns, minlength=self.classes)
        if self.table is not None:
            counts = ((self.table > 0).double() @ counts.double()).long()
        return counts[self.rows[anchors]]


@dataclass(frozen=True)
class LowRankFactor:
    """`W = rows @ columns.T` with non-negative factors, `a r` and `c r`."""

    rows: Tensor
    columns: Tensor
    scale: float = 1.0

    def times(self, candidates: Tensor) -> Tensor:
        """`W @ candidates`, through the `r d` product."""
        rows, columns = self.rows.to(candidates.dtype), self.columns.to(candidates.dtype)
        return rows @ (columns.T @ candidates) * self.scale

    def transpose(self) -> LowRankFactor:
        """The same weights seen from the candidates."""
        return LowRankFactor(self.columns, self.rows, self.scale)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs."""
        return (self.rows[rows] * self.columns[columns]).sum(1) * self.scale

    def positives(self, anchors: Tensor) -> Tensor:
        """How many coordinates candidates share with each of `anchors`: 0 exactly where no weight is above 0."""
        support = (self.columns > 0).sum(0).double()
        return ((self.rows[anchors] > 0).double() @ support).long()

    def shared(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How much of `positives` single pairs account for."""
        return ((self.rows[rows] > 0) & (self.columns[columns] > 0)).sum(1)


Factor = ClassFactor | LowRankFactor


def factor_sums(factors: Sequence[Factor], self_index: Tensor | None) -> tuple[Tensor, Tensor]:
    """`Affinity.row_sums` from factors: sums in float64, positives counted in integers."""
    n, device = factors[0].rows.shape[0], factors[0].rows.device
    anchors = torch.arange(n, device=device)
    sums = torch.zeros(n, dtype=torch.float64, device=device)
    valid = torch.zeros(n, dtype=torch.bool, device=device)
    has_self = torch.zeros_like(valid) if self_index is None else self_index >= 0
    own = torch.zeros_like(anchors) if self_index is None else self_index.clamp_min(0)
    for factor in factors:
        ones = torch.ones(factor.columns.shape[0], 1, dtype=torch.float64, device=device)
        at_self = factor.at(anchors, own)
        sums += factor.times(ones)[:, 0] - at_self * has_self
        taken = factor.shared(anchors, own) if isinstance(factor, LowRankFactor) else (at_self > 0).long()
        valid |= (factor.positives(anchors) - taken * has_self > 0) & (factor.scale > 0)
    return torch.where(valid, sums, 0), valid


def self_mask(self_index: Tensor, candidates: int) -> Tensor:
    """True at each anchor's own column, `r c`."""
    return self_index[:, None] == torch.arange(candidates, device=self_index.device)


# ---------------------------------------------------------------------------------- what rows are known by


@dataclass(frozen=True)
class Key:
    """What anchors and candidates are compared by: tensors, or names of columns to bind."""

    rows: Column
    columns: Column | None = None

    def bind(self, rows: Index, columns: Index | None) -> Key:
        """Names resolved to tensors; tensors stay."""
        if isinstance(self.rows, Tensor):
            return self
        if columns is None and self.columns is None:
            return Key(rows[self.rows])
        name = self.rows if self.columns is None else self.columns
        candidates = rows if columns is None else columns
        return Key(rows[self.rows], candidates[name] if isinstance(name, str) else name)


class Pairwise(Affinity):
    """Weights that are a function of an anchor's and a candidate's known values.

    A subclass passes its `Key`s on, names the attributes that may learn, and says in `weigh` what two blocks of values
    give.
    """

    learnable: tuple[str, ...] = ()
    same_both_ways: bool = True

    def __init__(self, *keys: Key) -> None:
        self.keys = keys
        lengths = {len(key.rows) for key in keys if isinstance(key.rows, Tensor)}
        if len(lengths) > 1:
            raise InputError(type(self).__name__, expected="columns of one length", got=f"lengths {sorted(lengths)}")

    @abstractmethod
    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        """The weights `r c`, given for every key the values of rows and of columns."""

    def check(self, rows: Tensor, columns: Tensor) -> None:
        """Refuse values that cannot be compared; called once the names are resolved."""

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        bound = copy.copy(self)
        bound.keys = tuple(key.bind(rows, columns) for key in self.keys)
        bound._check_keys()
        return bound

    def _check_keys(self) -> None:
        for key in self.keys:
            if isinstance(key.rows, Tensor):
                self.check(key.rows, key.rows if key.columns is None else key.columns)  # pyright: ignore

    def values(self) -> list[tuple[Tensor, Tensor]]:
        """For every key the values of anchors and of candidates."""
        pairs = []
        for key in self.keys:
            if not isinstance(key.rows, Tensor) or isinstance(key.columns, str):
                raise InputError(
                    type(self).__name__,
                    expected="tensors",
                    got=f"the column name {key.rows!r}",
                    fix="bind it to a batch's tables, affinity.bind(rows, columns), or build it from tensors",
                )
            pairs.append((key.rows, key.rows if key.columns is None else key.columns))
        return pairs

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values()[0]
        return len(rows), len(columns)

    @property
    def symmetric(self) -> bool:
        return self.same_both_ways and all(key.columns is None for key in self.keys)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.weigh(*((r[rows], c[columns]) for r, c in self.values()))

    def parameters(self) -> Iterator[Tensor]:
        values = (getattr(self, name) for name in self.learnable)
        return (value for value in values if isinstance(value, Tensor) and value.requires_grad)

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        mapped = copy.copy(self)
        for name in self.learnable:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(mapped, name, f(value))
        return mapped


class SameLabel(Pairwise):
    """1 for rows of one class: supervised contrastive learning.

    Args:
        labels: of anchors, integers `a`, or the name of a column.
        candidates: of candidates, integers `c` or a name; None: the same.

    Raises:
        InputError: labels are not integers, or not one a row.

    >>> SameLabel(torch.tensor([0, 0, 1])).dense().tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, labels: Column = "label", candidates: Column | None = None) -> None:
        super().__init__(Key(labels, candidates))
        self._check_keys()

    def check(self, rows: Tensor, columns: Tensor) -> None:
        for labels in (rows, columns):
            if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
                raise InputError(
                    type(self).__name__,
                    expected="integers, one a row",
                    got=f"{labels.dtype} of shape {tuple(labels.shape)}",
                    fix="use LabelKernel for numbers and MultiLabel for label vectors, or labels.long()",
                )

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        ((rows, columns),) = values
        return (rows[:, None] == columns).to(torch.get_default_dtype())

    def factors(self) -> tuple[Factor, ...]:
        ((rows, columns),) = self.values()
        known, ids = torch.unique(rows if self.symmetric else torch.cat([rows, columns]), return_inverse=True)
        return (ClassFactor(ids[: len(rows)], ids if self.symmetric else ids[len(rows) :], len(known)),)


class SameSample(SameLabel):
    """1 for views of one sample: SimCLR, CLIP, MoCo.

    Rows meet by the identity of their sample, in whatever modality, process, or queue they are. A sample that is twice
    in a batch counts as one, its views being views of the same thing.

    Args:
        samples: of anchors, integers `a`, or the name of a column.
        candidates: of candidates, integers `c` or a name; None: the same.
    """

    def __init__(self, samples: Column = "sample", candidates: Column | None = None) -> None:
        super().__init__(samples, candidates)


class MultiLabel(Pairwise):
    """Rows with several labels, or a distribution over them (GenSCL).

    - `distribution`: rows scaled to sum to 1; `W = Y Yᵀ`, the chance that a label drawn from each is the same. Low
      rank.
    - `cosine`: rows scaled to length 1; `W = Y Yᵀ`. Low rank.
    - `jaccard`: |both| / |either|, of label sets.

    Args:
        targets: weights of labels >= 0, `a k`, or the name of a column. Rows of zeros have no positives.
        candidates: those of candidates, `c k`; None: the same.
        measure: as above.
    """

    def __init__(
        self, targets: Column = "labels", candidates: Column | None = None, *, measure: str = "distribution"
    ) -> None:
        check_choice("MultiLabel", "measure", measure, ("distribution", "cosine", "jaccard"))
        super().__init__(Key(targets, candidates))
        self.measure = measure
        self._check_keys()

    def check(self, rows: Tensor, columns: Tensor) -> None:
        for targets in (rows, columns):
            if targets.ndim != 2:
                raise InputError("MultiLabel", expected="targets `n k`", got=f"shape {tuple(targets.shape)}")
            check_weights("MultiLabel", targets)

    def _scaled(self, targets: Tensor) -> Tensor:
        targets = targets.to(torch.get_default_dtype()) if not targets.is_floating_point() else targets
        if self.measure == "jaccard":
            return (targets > 0).to(targets.dtype)
        order = 1 if self.measure == "distribution" else 2
        return torch.nn.functional.normalize(targets, p=order, dim=1)

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        rows, columns = map(self._scaled, values[0])
        both = rows @ columns.T
        if self.measure != "jaccard":
            return both
        return both / (rows.sum(1)[:, None] + columns.sum(1) - both).clamp_min(1)

    def factors(self) -> tuple[Factor, ...] | None:
        if self.measure == "jaccard":
            return None
        rows, columns = map(self._scaled, self.values()[0])
        return (LowRankFactor(rows, columns),)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda distance: torch.exp(distance.square().mul(-0.5)),
    "exponential": lambda distance: torch.exp(-distance),
    "linear": lambda distance: (1 - distance).clamp_min(0),
    "sigmoid": lambda distance: 2 * torch.sigmoid(-distance),
    "step": lambda distance: (distance <= 1).to(distance.dtype),
}


UNENDING = ("gaussian", "exponential", "sigmoid")


class LabelKernel(Pairwise):
    """A kernel of the distance between continuous labels: y-Aware, and regression in general.

    `W = K(|y_i - y_j| / width)`, with K gaussian `exp(-x²/2)`, exponential `exp(-x)`, sigmoid `2 / (1 + exp(x))`,
    linear `max(0, 1 - x)` or a step `x <= 1`. The first three never reach 0, so that nothing is a negative, unless a
    floor cuts them off.

    Args:
        labels: of anchors, `a` or `a k`, or the name of a column.
        candidates: of candidates; None: the same.
        kernel: as above.
        width: the distance at which the kernel has fallen off; a tensor receives its gradient.
        floor: weights below it become 0.
    """

    learnable = ("width",)

    def __init__(
        self,
        labels: Column = "label",
        candidates: Column | None = None,
        *,
        width: float | Tensor,
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        super().__init__(Key(labels, candidates))
        self._set_kernel(kernel, width, floor)
        self.never_zero = kernel in UNENDING and floor == 0

    def _set_kernel(self, kernel: str, width: float | Tensor, floor: float) -> None:
        where = type(self).__name__
        check_choice(where, "kernel", kernel, tuple(KERNELS))
        if as_number(width) <= 0 or not 0 <= floor < 1:
            got = f"width={as_number(width)}, floor={floor}"
            raise InputError(where, expected="a width above 0 and a floor in [0, 1)", got=got)
        self.kernel, self.width, self.floor = kernel, width, floor

    def _kernel(self, distance: Tensor) -> Tensor:
        weights = KERNELS[self.kernel](distance / self.width)
        return weights if self.floor == 0 else weights * (weights >= self.floor)

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        rows, columns = (v if v.is_floating_point() else v.to(torch.get_default_dtype()) for v in values[0])
        if rows.ndim == 1:
            return self._kernel((rows[:, None] - columns).abs())
        return self._kernel((rows[:, None] - columns).square().sum(2).sqrt())


class TimeKernel(LabelKernel):
    """A kernel of the time between two moments of one recording: graded video, audio, series.

    `W = K(|t_i - t_j| / width_seconds)` within a group and 0 across groups; for K see `LabelKernel`.

    Args:
        times: in seconds, `a`, or the name of a column.
        candidates: times of candidates; None: the same.
        width_seconds: the time at which the kernel has fallen off; a tensor receives its gradient.
        group: which recording a row is from, integers `a` or a column's name; None: all rows are of one recording.
        candidate_group: that of candidates; None: the same.
        kernel: gaussian, exponential, sigmoid, linear or step.
        floor: weights below it become 0.
    """

    def __init__(
        self,
        times: Column = "time",
        candidates: Column | None = None,
        *,
        width_seconds: float | Tensor,
        group: Column | None = "group",
        candidate_group: Column | None = None,
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        keys = [Key(times, candidates)] + ([] if group is None else [Key(group, candidate_group)])
        Pairwise.__init__(self, *keys)
        self._set_kernel(kernel, width_seconds, floor)
        self.never_zero = group is None and kernel in UNENDING and floor == 0

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        weights = super().weigh(values[0])
        if len(values) == 1:
            return weights
        rows, columns = values[1]
        return weights * (rows[:, None] == columns)


class Hierarchy(Pairwise):
    """Classes in a tree: the weight is looked up by the pair of classes.

    Args:
        labels: of anchors, class indices `a`, or the name of a column.
        candidates: of candidates; None: the same.
        table: weights >= 0 of class pairs, `k k`; `Hierarchy.table` makes one from paths in a tree. May learn.
    """

    learnable = ("weights",)

    def __init__(self, labels: Column = "label", candidates: Column | None = None, *, table: Tensor) -> None:
        super().__init__(Key(labels, candidates))
        check_weights("Hierarchy", table)
        if table.ndim != 2 or table.shape[0] != table.shape[1]:
            raise InputError("Hierarchy", expected="a table of class pairs `k k`", got=f"shape {tuple(table.shape)}")
        self.weights = table
        self.same_both_ways = bool(torch.equal(table, table.T))
        self._check_keys()

    @staticmethod
    def table(paths: Tensor, weights: Sequence[float]) -> Tensor:
        """Weights by depth of the common ancestor.

        Args:
            paths: each class's ancestors from coarse to fine, itself last, integers `k depth`.
            weights: of pairs whose paths agree in the first 0, 1, … depth steps: `depth + 1` numbers.
        """
        if len(weights) != paths.shape[1] + 1:
            raise InputError("Hierarchy.table", expected=f"{paths.shape[1] + 1} weights", got=str(len(weights)))
        agree = (paths[:, None] == paths).cumprod(2).sum(2)
        return torch.tensor(weights)[agree]

    def check(self, rows: Tensor, columns: Tensor) -> None:
        for labels in (rows, columns):
            fits = labels.ndim == 1 and not labels.is_floating_point()
            if not fits or (labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.weights)):
                raise InputError(
                    "Hierarchy",
                    expected=f"class indices from 0 to {len(self.weights) - 1}, one a row",
                    got=f"{labels.dtype} of shape {tuple(labels.shape)}",
                )

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        ((rows, columns),) = values
        return self.weights[rows[:, None], columns]

    def factors(self) -> tuple[Factor, ...] | None:
        if self.weights.requires_grad:
            return None
        ((rows, columns),) = self.values()
        return (ClassFactor(rows, columns, len(self.weights), self.weights),)


class SideFeatures(Pairwise):
    """Likeness by features from elsewhere: captions, another encoder, metadata.

    - `softmax`: `W = exp((g - 1) / temperature)`, g the cosine; normalised over a row, X-CLR's softmax of g /
      temperature.
    - `half`: `W = g/2 + 1/2` (CWCL).
    - `cosine`: `W = max(0, g)`.

    Args:
        features: of anchors, floats `a m`, or the name of a column; scaled to unit length here.
        candidates: of candidates, `c m`; None: the same.
        kernel: as above.
        temperature: of `softmax`; a tensor receives its gradient.
        floor: weights below it become 0.
    """

    learnable = ("temperature",)

    def __init__(
        self,
        features: Column = "side",
        candidates: Column | None = None,
        *,
        kernel: str = "softmax",
        temperature: float | Tensor = 0.1,
        floor: float = 0.0,
    ) -> None:
        check_choice("SideFeatures", "kernel", kernel, ("softmax", "half", "cosine"))
        super().__init__(Key(features, candidates))
        if as_number(temperature) <= 0:
            raise InputError("SideFeatures", expected="temperature above 0", got=str(as_number(temperature)))
        self.kernel, self.temperature, self.floor = kernel, temperature, floor
        self.never_zero = kernel == "softmax" and floor == 0
        self._check_keys()

    def check(self, rows: Tensor, columns: Tensor) -> None:
        for features in (rows, columns):
            if features.ndim != 2 or not features.is_floating_point():
                got = f"{features.dtype} of shape {tuple(features.shape)}"
                raise InputError("SideFeatures", expected="floats `n m`", got=got)

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        rows, columns = (torch.nn.functional.normalize(v, dim=1) for v in values[0])
        cosine = rows @ columns.T
        if self.kernel == "softmax":
            weights = torch.exp((cosine - 1) / self.temperature)
        elif self.kernel == "half":
            weights = (cosine / 2 + 0.5).clamp_min(0)
        else:
            weights = cosine.clamp_min(0)
        return weights if self.floor == 0 else weights * (weights >= self.floor)


class Dense(Affinity):
    """Weights that are given: any mask or matrix, graded or not, symmetric or not.

    Args:
        weights: finite and >= 0, `a c`; a tensor that requires it receives its gradient.
        rows: which row of `weights` an anchor reads, int64; None: one after another. With it one `b b` matrix serves
            all views of `b` samples.
        columns: which column of `weights` a candidate reads; None: as `rows`.
    """

    def __init__(self, weights: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
        if weights.ndim != 2:
            raise InputError("Dense", expected="weights `a c`", got=f"shape {tuple(weights.shape)}")
        check_weights("Dense", weights)
        self.weights, self.rows = weights, rows
        self.columns = rows if columns is None else columns

    @property
    def shape(self) -> tuple[int, int]:
        a = self.weights.shape[0] if self.rows is None else len(self.rows)
        return a, self.weights.shape[1] if self.columns is None else len(self.columns)

    @property
    def symmetric(self) -> bool:
        square = self.weights.shape[0] == self.weights.shape[1] and self.rows is self.columns
        return square and bool(torch.equal(self.weights, self.weights.T))

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self

    def tile(self, rows: slice, columns: slice) -> Tensor:
        block = self.weights[rows if self.rows is None else self.rows[rows]]
        block = block[:, columns if self.columns is None else self.columns[columns]]
        return block.to(torch.get_default_dtype()) if not block.is_floating_point() else block

    def parameters(self) -> Iterator[Tensor]:
        return iter([self.weights] if self.weights.requires_grad else [])

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        mapped = copy.copy(self)
        mapped.weights = f(self.weights) if self.weights.requires_grad else self.weights
        return mapped


class Computed(Affinity):
    """A plain function as an affinity: `f(rows, columns) -> weights` of two tables of rows.

    Args:
        function: takes the tables (`Index`) of a block's anchors and candidates and returns weights >= 0, `r c`.
        rows: the anchors' table; None: to be bound.
        columns: the candidates' table; None: the anchors.
    """

    symmetric = False

    def __init__(
        self, function: Callable[[Index, Index], Tensor], rows: Index | None = None, columns: Index | None = None
    ) -> None:
        self.function, self.rows, self.columns = function, rows, columns

    def _tables(self) -> tuple[Index, Index]:
        if self.rows is None:
            raise InputError("Computed", expected="tables of rows", got="none", fix="bind it: affinity.bind(rows)")
        return self.rows, self.rows if self.columns is None else self.columns

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._tables()
        return rows.n, columns.n

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self if self.rows is not None else Computed(self.function, rows, columns)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        anchors, candidates = self._tables()
        weights = self.function(anchors.take(rows), candidates.take(columns))
        check_weights("Computed", weights)
        return weights if weights.is_floating_point() else weights.to(torch.get_default_dtype())


# --------------------------------------------------------------------------------------------- composition


class _Composed(Affinity):
    """Parts that are bound, checked and learned together."""

    def __init__(self, *parts: Affinity) -> None:
        self.parts = parts

    def _with(self, parts: Sequence[Affinity]) -> Affinity:
        made = copy.copy(self)
        made.parts = tuple(parts)
        return made

    @property
    def shape(self) -> tuple[int, int]:
        shapes = {part.shape for part in self.parts}
        if len(shapes) > 1:
            raise InputError(type(self).__name__, expected="parts of one shape `a c`", got=str(sorted(shapes)))
        return shapes.pop()

    @property
    def symmetric(self) -> bool:
        return all(part.symmetric for part in self.parts)

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self._with([part.bind(rows, columns) for part in self.parts])

    def parameters(self) -> Iterator[Tensor]:
        return (parameter for part in self.parts for parameter in part.parameters())

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        return self._with([part.map_parameters(f) for part in self.parts])


class Product(_Composed):
    """`W = A · B`, pair by pair: alike by both."""

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return all(part.never_zero for part in self.parts)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        first, second = self.parts
        return first.tile(rows, columns) * second.tile(rows, columns)

    def factors(self) -> tuple[Factor, ...] | None:
        """Same class by both is same class by the pair of labels; other products are read by tiles."""
        parts = [part.factors() for part in self.parts]
        if not all(
            p is not None and len(p) == 1 and isinstance(p[0], ClassFactor) and p[0].table is None for p in parts
        ):
            return None
        a, b = parts[0][0], parts[1][0]  # pyright: ignore
        pairs = torch.cat([a.rows * b.classes + b.rows, a.columns * b.classes + b.columns])
        known, ids = torch.unique(pairs, return_inverse=True)
        return (ClassFactor(ids[: len(a.rows)], ids[len(a.rows) :], len(known), None, a.scale * b.scale),)


class Sum(_Composed):
    """`W = A + B`: alike by either."""

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return any(part.never_zero for part in self.parts)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        first, second = self.parts
        return first.tile(rows, columns) + second.tile(rows, columns)

    def factors(self) -> tuple[Factor, ...] | None:
        parts = [part.factors() for part in self.parts]
        return None if any(p is None for p in parts) else sum(parts, ())  # pyright: ignore


class Scaled(_Composed):
    """`W = scale · A`."""

    def __init__(self, part: Affinity, scale: float) -> None:
        if not 0 <= scale < float("inf"):
            raise InputError("Affinity", expected="a finite scale >= 0", got=str(scale))
        super().__init__(part)
        self.scale = scale

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return self.scale > 0 and self.parts[0].never_zero

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.parts[0].tile(rows, columns) * self.scale

    def factors(self) -> tuple[Factor, ...] | None:
        parts = self.parts[0].factors()
        return None if parts is None else tuple(_rescaled(part, self.scale) for part in parts)


class Complement(_Composed):
    """`W = max(0, 1 - A)`: all that A leaves."""

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return (1 - self.parts[0].tile(rows, columns)).clamp_min(0)


def _rescaled(factor: Factor, scale: float) -> Factor:
    import dataclasses

    return dataclasses.replace(factor, scale=factor.scale * scale)


def as_affinity(affinity: Any) -> Affinity:
    """An affinity from what a user may pass: an affinity, a matrix of weights, or a function of two tables."""
    if isinstance(affinity, Affinity):
        return affinity
    if isinstance(affinity, Tensor):
        return Dense(affinity)
    if callable(affinity):
        return Computed(affinity)
    raise InputError("affinity", expected="an Affinity, a tensor `a c` or a function", got=type(affinity).__name__)


def check_weights(where: str, weights: Tensor) -> None:
    """Refuse NaN, infinite and negative weights; one pass over them."""
    if weights.numel() == 0 or weights.dtype == torch.bool:
        return
    low, high = (float(bound) for bound in torch.aminmax(weights.detach()))
    if not (low >= 0 and high < float("inf")):
        fix = "clamp or shift the weights to be non-negative, and mask NaN"
        raise InputError(where, expected="finite weights >= 0", got=f"weights from {low} to {high}", fix=fix)


def check_choice(where: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of the known ones."""
    if value not in known:
        raise InputError(
            where, expected=f"{name} one of {', '.join(known)}", got=repr(value), fix=nearest(value, list(known))
        )


def as_number(value: float | Tensor) -> float:
    """The value of a setting, which may be a tensor with a gradient."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
