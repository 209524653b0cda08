"""Features with labels, in Gaussian classes around fixed centers."""

import torch

from mmcon.batch import Index
from mmcon.evaluation.features import Features


def labeled_features(n: int, seed: int, d: int = 8, classes: int = 5) -> Features:
    """Rows of random classes, whose centers are the same for every seed."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=g)
    centers = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    values = centers[label] + torch.randn(n, d, generator=g)
    return Features(values, Index({"sample": torch.arange(n), "label": label}))
