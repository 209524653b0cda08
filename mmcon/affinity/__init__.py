"""Pairwise affinities (positive weights), computed by tiles.

An affinity gives a weight `W[i, j] >= 0` to every pair of an anchor and a candidate. A pair is positive where its
weight is above 0 and negative where it is 0. Weights are a function of columns of the index (sample id, label, time,
features of another model), never of the embeddings under training.

Only `Dense` stores an n × n matrix. A loss reads the weights by `tile(rows, columns)` or, where they have
structure, by `factors()`, which cost O(n). `.dense()` computes the full matrix.

An affinity is built from tensors, or from column names that `bind` replaces by the columns of a batch:

    SameLabel(torch.tensor([0, 0, 1]))         # ready
    SameLabel("label")                         # ready after .bind(rows, columns)
    TimeKernel("time", group="sample", width_seconds=2.0) * SameLabel()
"""

from mmcon.affinity.base import Affinity, as_number, check_choice, has_values, transforms_active
from mmcon.affinity.custom import CandidateWeights, Computed, Dense, as_affinity
from mmcon.affinity.factors import (
    BandFactor,
    ClassFactor,
    Factor,
    LowRankFactor,
    MixtureFactor,
    factor_row_sums,
    self_mask,
)
from mmcon.affinity.groups import Groups, coarser
from mmcon.affinity.guided import GuidedNegatives
from mmcon.affinity.kernels import LabelKernel, ScoreKernel, TimeKernel
from mmcon.affinity.labels import Hierarchy, MixedLabel, MultiLabel, SameLabel, SameSample, SideFeatures
from mmcon.affinity.pairwise import Column
from mmcon.affinity.spans import SpanOverlap

__all__ = [
    "Affinity",
    "BandFactor",
    "CandidateWeights",
    "ClassFactor",
    "Column",
    "Computed",
    "Dense",
    "Factor",
    "Groups",
    "GuidedNegatives",
    "Hierarchy",
    "LabelKernel",
    "LowRankFactor",
    "MixedLabel",
    "MixtureFactor",
    "MultiLabel",
    "SameLabel",
    "SameSample",
    "ScoreKernel",
    "SideFeatures",
    "SpanOverlap",
    "TimeKernel",
    "as_affinity",
    "as_number",
    "check_choice",
    "coarser",
    "factor_row_sums",
    "has_values",
    "self_mask",
    "transforms_active",
]
