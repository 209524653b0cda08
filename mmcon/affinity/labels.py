# ruff: noqa: D102 — an override does what its base says
"""Weights by classes, samples, several labels, a tree of classes, or features of another model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.affinity.base import as_number, can_check, check_choice, check_weights, has_values
from mmcon.affinity.factors import ClassFactor, Factor, LowRankFactor, MixtureFactor
from mmcon.affinity.groups import Groups
from mmcon.affinity.pairwise import LEAST_WEIGHT, OF_COLUMNS, Column, ColumnPair, Pair, Pairwise, at_least, equal
from mmcon.errors import InputError


class SameLabel(Pairwise, flattened=OF_COLUMNS):
    """1 for rows of one class, else 0: supervised contrastive learning.

    Args:
        labels: of anchors, integers `a` in a tensor, an array or a list, or the name of a column.
        candidates: of candidates, integers `c` or a name; None: the same.

    Raises:
        InputError: labels are not integers, or not one a row.

    >>> SameLabel(torch.tensor([0, 0, 1])).dense().tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, labels: Column = "label", candidates: Column | None = None) -> None:
        super().__init__(ColumnPair(labels, candidates))
        self.check_values()

    def check(self, rows: Shaped[Tensor, "..."], columns: Shaped[Tensor, "..."]) -> None:
        for labels in (rows, columns):
            if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
                raise InputError(
                    type(self).__name__,
                    expected="integers, one a row",
                    got=f"{labels.dtype} of shape {tuple(labels.shape)}",
                    fix="use LabelKernel for numbers and MultiLabel for label vectors, or labels.long()",
                )

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        ((rows, columns),) = values
        return equal(rows, columns, self.dtype)

    def groups(self) -> Groups:
        return Groups(*self.values()[0])

    def factors(self) -> tuple[Factor, ...]:
        ((rows, columns),) = self.values()
        known, ids = torch.unique(rows if self.symmetric else torch.cat([rows, columns]), return_inverse=True)
        return (ClassFactor(ids[: len(rows)], ids if self.symmetric else ids[len(rows) :], len(known)),)


class SameSample(SameLabel, flattened=OF_COLUMNS):
    """1 for views of one sample, else 0: SimCLR, CLIP, MoCo.

    Rows are compared by sample id, across modalities, ranks and the queue. A sample that is twice in a batch counts as
    one: all its views are positives of one another.

    Args:
        samples: of anchors, integers `a`, or the name of a column.
        candidates: of candidates, integers `c` or a name; None: the same.
    """

    def __init__(self, samples: Column = "sample", candidates: Column | None = None) -> None:
        super().__init__(samples, candidates)


class MixedLabel(Pairwise, flattened=OF_COLUMNS):
    """The probability that labels sampled from two mixed rows (mixup, CutMix) are equal.

    A row has its own label with probability `share`, else that of its partner. The weights equal those of `MultiLabel`
    for the same soft labels, without their matrix.

    Args:
        labels: own labels, integers `n`, or the name of a column.
        partners: labels of the partners, integers `n`, or the name of a column.
        share: of the own label, floats in [0, 1], `n`, or the name of a column.

    Raises:
        InputError: labels are not integers, or a share is not in [0, 1].

    >>> labels, partners, share = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.75, 1.0])
    >>> MixedLabel(labels, partners, share).dense().tolist()
    [[1.0, 0.75, 0.0], [0.75, 0.625, 0.25], [0.0, 0.25, 1.0]]
    """

    def __init__(self, labels: Column = "label", partners: Column = "partner_label", share: Column = "share") -> None:
        super().__init__(ColumnPair(labels), ColumnPair(partners), ColumnPair(share))
        self.check_values()

    def _check_columns(self) -> None:
        for pair, is_share in zip(self.column_pairs, (False, False, True), strict=True):
            for values in (pair.rows, pair.columns):
                if isinstance(values, Tensor) and not self._fits(values, is_share):
                    got = f"{values.dtype} of shape {tuple(values.shape)}"
                    if is_share and values.numel():
                        got += f", from {values.min().item():g} to {values.max().item():g}"
                    expected = "a share from 0 to 1, one a row" if is_share else "integers, one a row"
                    raise InputError("MixedLabel", expected=expected, got=got)

    @staticmethod
    def _fits(values: Shaped[Tensor, "..."], is_share: bool) -> bool:
        if values.ndim != 1 or values.is_complex() or values.is_floating_point() != is_share:
            return False
        return not is_share or not has_values(values) or bool(((values >= 0) & (values <= 1)).all())

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        (own, candidate_own), (partner, candidate_partner), shares = values
        share, candidate_share = (s.to(self.dtype) for s in shares)

        def candidate_probability(label: Int[Tensor, " r"]) -> Float[Tensor, "r c"]:
            same_own, same_partner = label[:, None] == candidate_own, label[:, None] == candidate_partner
            return same_own * candidate_share + same_partner * (1 - candidate_share)

        return share[:, None] * candidate_probability(own) + (1 - share)[:, None] * candidate_probability(partner)

    def factors(self) -> tuple[Factor, ...]:
        own, partner, shares = (torch.cat(pair) for pair in self.values())
        _, ids = torch.unique(torch.stack([own, partner], 1), return_inverse=True)
        share, n = shares.to(self.dtype), self.shape[0]
        weights = torch.stack([share, 1 - share], 1)
        return (MixtureFactor(ids[:n], weights[:n], ids[n:], weights[n:], int(ids.max()) + 1 if len(ids) else 0),)


class MultiLabel(Pairwise, flattened=(*OF_COLUMNS, "measure")):
    """Rows with several labels, or a distribution over them (GenSCL).

    - `distribution`: rows scaled to sum to 1; `W = Y Yᵀ`, the probability that labels sampled from two rows are equal.
      Low rank.
    - `cosine`: rows scaled to length 1; `W = Y Yᵀ`. Low rank.
    - `jaccard`: |both| / |either|, of label sets.

    Args:
        targets: weights of labels >= 0, `a k`, or the name of a column. Rows of zeros have no positives.
        candidates: those of candidates, `c k`; None: the same.
        measure: `distribution`, `cosine` or `jaccard`.

    Raises:
        InputError: targets that are not a matrix, or not finite and >= 0.

    >>> MultiLabel(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).dense().tolist()
    [[0.5, 0.5], [0.5, 1.0]]
    """

    def __init__(
        self, targets: Column = "labels", candidates: Column | None = None, *, measure: str = "distribution"
    ) -> None:
        check_choice("MultiLabel", "measure", measure, ("distribution", "cosine", "jaccard"))
        super().__init__(ColumnPair(targets, candidates))
        self.measure = measure
        self.check_values()

    def check(self, rows: Shaped[Tensor, "..."], columns: Shaped[Tensor, "..."]) -> None:
        for targets in (rows, columns):
            if targets.ndim != 2:
                raise InputError("MultiLabel", expected="targets `n k`", got=f"shape {tuple(targets.shape)}")
            check_weights("MultiLabel", targets)

    def _scaled(self, targets: Shaped[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        targets = targets.to(self.dtype) if not targets.is_floating_point() else targets
        if self.measure == "jaccard":
            return (targets > 0).to(targets.dtype)
        order = 1 if self.measure == "distribution" else 2
        return torch.nn.functional.normalize(targets, p=order, dim=1)

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        rows, columns = map(self._scaled, values[0])
        both = rows @ columns.T
        if self.measure != "jaccard":
            return both
        # Two empty sets have no union; their weight is 0.
        return both / (rows.sum(1)[:, None] + columns.sum(1) - both).clamp_min(1)

    def factors(self) -> tuple[Factor, ...] | None:
        if self.measure == "jaccard":
            return None
        rows, columns = map(self._scaled, self.values()[0])
        return (LowRankFactor(rows, columns),)


class Hierarchy(Pairwise, flattened=(*OF_COLUMNS, "weights", "symmetric_weights")):
    """Classes in a tree: a table of weights by pair of classes.

    Args:
        labels: of anchors, class indices `a`, or the name of a column.
        candidates: of candidates; None: the same.
        table: weights >= 0 of class pairs, `k k`; `Hierarchy.table` builds one from paths in a tree. A
            tensor that requires it receives its gradient.

    Raises:
        InputError: labels that are not class indices of the table, or a table that is not square, finite and >= 0.
    """

    learnable_attributes = ("weights",)

    def __init__(
        self, labels: Column = "label", candidates: Column | None = None, *, table: Shaped[Tensor, "..."]
    ) -> None:
        super().__init__(ColumnPair(labels, candidates))
        if table.ndim != 2 or table.shape[0] != table.shape[1]:
            raise InputError("Hierarchy", expected="a table of class pairs `k k`", got=f"shape {tuple(table.shape)}")
        self.weights = table
        self.check_values()

    def check_values(self) -> None:
        check_weights("Hierarchy", self.weights)
        self.symmetric_weights = has_values(self.weights) and bool(torch.equal(self.weights, self.weights.T))
        super().check_values()

    @staticmethod
    def table(paths: Int[Tensor, "k depth"], weights: Sequence[float]) -> Float[Tensor, "k k"]:
        """Weights by depth of the common ancestor.

        Args:
            paths: each class's ancestors from coarse to fine, itself last, integers `k depth`.
            weights: of pairs whose paths agree in the first 0, 1, … depth steps: `depth + 1` numbers.

        >>> Hierarchy.table(torch.tensor([[0, 0], [0, 1]]), [0.0, 0.5, 1.0]).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
        """
        if len(weights) != paths.shape[1] + 1:
            raise InputError("Hierarchy.table", expected=f"{paths.shape[1] + 1} weights", got=str(len(weights)))
        agree = (paths[:, None] == paths).cumprod(2).sum(2)
        return torch.tensor(weights)[agree]

    def check(self, rows: Shaped[Tensor, "..."], columns: Shaped[Tensor, "..."]) -> None:
        for labels in (rows, columns):
            fits = labels.ndim == 1 and not labels.is_floating_point()
            checked = fits and labels.numel() > 0 and has_values(labels)
            if not fits or (checked and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.weights)):
                raise InputError(
                    "Hierarchy",
                    expected=f"class indices from 0 to {len(self.weights) - 1}, one a row",
                    got=f"{labels.dtype} of shape {tuple(labels.shape)}",
                )

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        ((rows, columns),) = values
        return self.weights[rows[:, None], columns]

    def factors(self) -> tuple[Factor, ...] | None:
        if self.weights.requires_grad:
            return None
        ((rows, columns),) = self.values()
        return (ClassFactor(rows, columns, len(self.weights), self.weights),)


class SideFeatures(Pairwise, flattened=(*OF_COLUMNS, "kernel", "temperature", "floor")):
    """The similarity of features of another model: of captions, of a frozen encoder, of metadata.

    - `softmax`: `W = exp((g - 1) / temperature)`, g the cosine; normalized over a row, the softmax of g / temperature
      of X-CLR.
    - `half`: `W = g/2 + 1/2` (CWCL).
    - `cosine`: `W = max(0, g)`.

    Args:
        features: of anchors, floats `a m`, or the name of a column; scaled to unit length here.
        candidates: of candidates, `c m`; None: the same.
        kernel: `softmax`, `half` or `cosine`.
        temperature: of `softmax`; a tensor receives its gradient.
        floor: weights below it become 0.

    Raises:
        InputError: features that are not a matrix of floats, or a temperature that is not above 0.
    """

    learnable_attributes = ("temperature",)

    def __init__(
        self,
        features: Column = "side",
        candidates: Column | None = None,
        *,
        kernel: str = "softmax",
        temperature: float | Float[Tensor, "..."] = 0.1,
        floor: float = 0.0,
    ) -> None:
        check_choice("SideFeatures", "kernel", kernel, ("softmax", "half", "cosine"))
        super().__init__(ColumnPair(features, candidates))
        self.kernel, self.temperature, self.floor = kernel, temperature, floor
        self.check_values()

    def check_values(self) -> None:
        if can_check(self.temperature) and not as_number(self.temperature) > 0:
            raise InputError("SideFeatures", expected="temperature above 0", got=str(as_number(self.temperature)))
        super().check_values()

    @property
    def infinite_support(self) -> bool:
        return self.kernel == "softmax" and self.floor == 0

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        """Whether the weight of opposite features, `exp(-2 / temperature)`, is above 0: weights below 2⁻¹⁰⁰ are 0."""
        return self.infinite_support and math.exp(-2 / as_number(self.temperature)) > LEAST_WEIGHT

    def check(self, rows: Shaped[Tensor, "..."], columns: Shaped[Tensor, "..."]) -> None:
        for features in (rows, columns):
            if features.ndim != 2 or not features.is_floating_point():
                got = f"{features.dtype} of shape {tuple(features.shape)}"
                raise InputError("SideFeatures", expected="floats `n m`", got=got)

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        rows, columns = (torch.nn.functional.normalize(v, dim=1) for v in values[0])
        cosine = rows @ columns.T
        if self.kernel == "softmax":
            # The shift by the largest cosine keeps weights in (0, 1]; normalization over a row cancels it.
            # Exponentials to base 2 take a third of the time on a CPU.
            scale, exponents = self.temperature * math.log(2), cosine.sub_(1)
            weights = (exponents / scale if isinstance(scale, Tensor) else exponents.div_(scale)).exp2_()
        elif self.kernel == "half":
            # Rounding may give a cosine below -1.
            weights = (cosine / 2 + 0.5).clamp_min(0)
        else:
            weights = cosine.clamp_min(0)
        return at_least(weights, self.floor) if self.floor or self.kernel == "softmax" else weights
