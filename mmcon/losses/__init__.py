"""Contrastive losses: the weighted SupCon loss and its presets, Rank-N-Contrast, SigLIP, and baselines."""

from mmcon.losses import presets
from mmcon.losses.baselines import cross_entropy, max_margin, triplet
from mmcon.losses.diagnostics import Diagnostics, diagnose
from mmcon.losses.metric_learning import MetricLearningLoss
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.rank_n_contrast import rank_n_contrast
from mmcon.losses.settings import LossSettings
from mmcon.losses.siglip import siglip
from mmcon.losses.supcon import SupConLoss, explain_backend, weighted_supcon
from mmcon.losses.temperature import LearnableTemperature

__all__ = [
    "Diagnostics",
    "HardNegatives",
    "LearnableTemperature",
    "LossSettings",
    "MetricLearningLoss",
    "SupConLoss",
    "cross_entropy",
    "diagnose",
    "explain_backend",
    "max_margin",
    "presets",
    "rank_n_contrast",
    "siglip",
    "triplet",
    "weighted_supcon",
]
