"""Contrastive losses: one weighted core, presets of it, the few that stand apart, and baselines."""

from mmcon.losses.reweighting import HardNegatives
from mmcon.losses.weighted import SupConLoss, explain_backend, row_losses, weighted_supcon

__all__ = ["HardNegatives", "SupConLoss", "explain_backend", "row_losses", "weighted_supcon"]
