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

from mmcon.affinity.base import Affinity, as_number, check_choice
from mmcon.affinity.factors import (
    BandFactor,
    ClassFactor,
    Factor,
    LowRankFactor,
    MixtureFactor,
    factor_sums,
    self_mask,
)
from mmcon.affinity.given import Computed, Dense, as_affinity
from mmcon.affinity.kernels import LabelKernel, TimeKernel
from mmcon.affinity.labels import Hierarchy, MixedLabel, MultiLabel, SameLabel, SameSample, SideFeatures
from mmcon.affinity.pairwise import Column

__all__ = [
    "Affinity",
    "BandFactor",
    "ClassFactor",
    "Column",
    "Computed",
    "Dense",
    "Factor",
    "Hierarchy",
    "LabelKernel",
    "LowRankFactor",
    "MixedLabel",
    "MixtureFactor",
    "MultiLabel",
    "SameLabel",
    "SameSample",
    "SideFeatures",
    "TimeKernel",
    "as_affinity",
    "as_number",
    "check_choice",
    "factor_sums",
    "self_mask",
]
