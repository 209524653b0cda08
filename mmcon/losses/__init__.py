"""Contrastive losses: one weighted core, presets of it, the few that stand apart, and baselines."""

from mmcon.losses import presets
from mmcon.losses.apart import rank_n_contrast, siglip
from mmcon.losses.baselines import cross_entropy, max_margin, triplet
from mmcon.losses.diagnostics import Diagnostics, diagnose
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.supcon import SupConLoss, explain_backend, row_losses, weighted_supcon
from mmcon.losses.temperature import LearnableTemperature

__all__ = [
    "Diagnostics",
    "HardNegatives",
    "LearnableTemperature",
    "SupConLoss",
    "cross_entropy",
    "diagnose",
    "explain_backend",
    "max_margin",
    "presets",
    "rank_n_contrast",
    "row_losses",
    "siglip",
    "triplet",
    "weighted_supcon",
]
