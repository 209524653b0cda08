"""One row a sample from the rows of its views: their mean, or the unit rows of all views side by side."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mmcon.evaluation.features import Features


def combine_views(features: Features, *, views: int, how: Literal["mean", "concatenate"]) -> Features:
    """Combine the rows of each sample, in the order of the samples.

    Args:
        features: rows with the columns `sample`, `view` and any others, of which a sample keeps that of its first view.
        views: the number of views of each sample.
        how: "mean" of the rows as they are, or "concatenate": unit rows in the order of the views.
    """
    if views == 1:
        return features
    by_view = [features.take(features.index["view"] == view) for view in range(views)]
    # Views by different generators may fail apart, so that only samples with all views are kept.
    complete = torch.tensor([*set.intersection(*({*own.index["sample"].tolist()} for own in by_view))])
    by_view = [own.take(torch.isin(own.index["sample"], complete)) for own in by_view]
    rows = torch.stack([own.values for own in by_view], dim=1)
    combined = rows.mean(1) if how == "mean" else nn.functional.normalize(rows, dim=2).flatten(1)
    return Features(combined, by_view[0].index, features.metadata)
