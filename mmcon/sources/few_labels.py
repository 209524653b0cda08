"""Subsets with the same few samples, or the same share, of every class, for training with few labels."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import ConfigError, InputError
from mmcon.random import keys
from mmcon.sources.base import Source, Subset


def few_labels(source: Source, *, per_class: int | None = None, share: float | None = None, seed: int) -> Subset:
    """The first samples of each class in keyed order: `per_class` of them or fewer, or a share of the class.

    A share of a source without labels is that of all its samples.

    Raises:
        ConfigError: a number of samples of each class of a source without labels.
        InputError: neither or both are given, the number is below 1, or the share is not in (0, 1].
    """
    labels = source.labels
    if labels is None and per_class is not None:
        raise ConfigError("--labels-per-class", expected="labels", got="none", fix="--label COLUMN")
    labels = torch.zeros(len(source), dtype=torch.int64) if labels is None else labels
    return Subset(source, stratified_rows(labels, per_class=per_class, share=share, seed=seed))


def stratified_rows(
    labels: Int[Tensor, " n"], *, per_class: int | None = None, share: float | None = None, seed: int
) -> Int[Tensor, " m"]:
    """The indices, ascending, of the same number or share of each class, at least one; subsets of a seed are nested."""
    of_class = per_class if share is None else share
    valid = (per_class is None) != (share is None) and of_class is not None and of_class > 0
    if not valid or (share is not None and share > 1):
        expected = "either a number of labels a class of 1 or more, or a fraction in (0, 1]"
        got = f"number {per_class}, fraction {share}"
        raise InputError("few labels", expected=expected, got=got, fix="--labels-per-class 10, or --label-fraction .1")
    order = keys(seed=seed).child("few labels").permutation("order", len(labels))[0]
    order = order[labels[order].argsort(stable=True)]  # by class, in keyed order within each
    _, counts = labels.unique(return_counts=True)
    # Rounded to decimals first, since the product of a share may be a little above a whole number.
    shares = (counts.double() * (share or 0)).round(decimals=6).ceil().long()
    most = shares if per_class is None else torch.full_like(counts, per_class)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < most.repeat_interleave(counts)].sort().values
