"""A subset with the same few samples of every class, for training with few labels."""

from __future__ import annotations

import torch

from mmcon.errors import ConfigError
from mmcon.random import keys
from mmcon.sources.base import Source, Subset


def few_labels(source: Source, *, per_class: int, seed: int) -> Subset:
    """The first `per_class` samples of each class in keyed order; all of a class that has fewer.

    Raises:
        ConfigError: the source has no labels.
    """
    if source.labels is None:
        raise ConfigError("--labels-per-class", expected="labels", got="none", fix="--label COLUMN")
    order = keys(seed=seed).child("few labels").permutation("order", len(source))[0]
    chosen = [order[source.labels[order] == label][:per_class] for label in source.labels.unique().tolist()]
    return Subset(source, torch.cat(chosen).sort().values)
