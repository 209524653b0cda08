# ruff: noqa: D102 — an override does what its base says
"""Alike by what they are: classes, samples, several labels, a tree of classes, features from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmcon.affinity.base import as_number, check_choice, check_weights
from mmcon.affinity.factors import ClassFactor, Factor, LowRankFactor, MixtureFactor
from mmcon.affinity.pairwise import Column, Key, Pairwise
from mmcon.errors import InputError


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


class MixedLabel(Pairwise):
    """Rows mixed of two samples (mixup, CutMix): the chance that a label drawn from each is the same.

    With `share` of the own label and `1 - share` of the partner's, it is what `MultiLabel` gives for the soft labels
    written out, without their matrix.

    Args:
        labels: own, integers `n`, or the name of a column.
        partners: the partners', integers `n`, or the name of a column.
        share: of the own label, floats in [0, 1], `n`, or the name of a column.

    Raises:
        InputError: labels are not integers, or a share is not in [0, 1].

    >>> labels, partners, share = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.75, 1.0])
    >>> MixedLabel(labels, partners, share).dense().tolist()
    [[1.0, 0.75, 0.0], [0.75, 0.625, 0.25], [0.0, 0.25, 1.0]]
    """

    def __init__(self, labels: Column = "label", partners: Column = "partner_label", share: Column = "share") -> None:
        super().__init__(Key(labels), Key(partners), Key(share))
        self._check_keys()

    def _check_keys(self) -> None:
        for key, is_share in zip(self.keys, (False, False, True), strict=True):
            for values in (key.rows, key.columns):
                if isinstance(values, Tensor) and not self._fits(values, is_share):
                    got = f"{values.dtype} of shape {tuple(values.shape)}"
                    if is_share and values.numel():
                        got += f", from {values.min().item():g} to {values.max().item():g}"
                    expected = "a share from 0 to 1, one a row" if is_share else "integers, one a row"
                    raise InputError("MixedLabel", expected=expected, got=got)

    @staticmethod
    def _fits(values: Tensor, is_share: bool) -> bool:
        if values.ndim != 1 or values.is_complex() or values.is_floating_point() != is_share:
            return False
        return not is_share or bool(((values >= 0) & (values <= 1)).all())

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        (own, own_there), (other, other_there), shares = values
        share, share_there = (s.to(torch.get_default_dtype()) for s in shares)

        def mean_over_candidates(label: Tensor) -> Tensor:
            label = label[:, None]
            return (label == own_there) * share_there + (label == other_there) * (1 - share_there)

        return share[:, None] * mean_over_candidates(own) + (1 - share)[:, None] * mean_over_candidates(other)

    def factors(self) -> tuple[Factor, ...]:
        own, other, shares = (torch.cat(pair) for pair in self.values())
        _, ids = torch.unique(torch.stack([own, other], 1), return_inverse=True)
        share, n = shares.to(torch.get_default_dtype()), self.shape[0]
        weights = torch.stack([share, 1 - share], 1)
        return (MixtureFactor(ids[:n], weights[:n], ids[n:], weights[n:], int(ids.max()) + 1 if len(ids) else 0),)


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
