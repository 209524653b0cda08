"""Contrastive learning for any modality: keyed view generators, one weighted loss, shared spaces.

The public names stand here; each is loaded when it is first used, so that `import mmcon` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it.
_HOMES = {
    "ViewGenerator": "mmcon.views",
    "Chain": "mmcon.views",
    "Source": "mmcon.sources.base",
    "TensorSource": "mmcon.sources.base",
    "keys": "mmcon.random",
    "register_view": "mmcon.registry",
    "register_sampler": "mmcon.registry",
    "register_encoder": "mmcon.registry",
    "register_source": "mmcon.registry",
    "create_view": "mmcon.registry",
    "list_views": "mmcon.registry",
    "describe_view": "mmcon.registry",
    "SupConLoss": "mmcon.losses",
    "weighted_supcon": "mmcon.losses",
    "Objective": "mmcon.objective.objective",
    "Block": "mmcon.objective.pair_blocks",
    "ContrastiveModel": "mmcon.models.shared_spaces",
    "SharedSpace": "mmcon.models.shared_spaces",
    "Run": "mmcon.training.run",
}

__all__ = [
    "Block",
    "Chain",
    "ContrastiveModel",
    "Objective",
    "Run",
    "SharedSpace",
    "Source",
    "SupConLoss",
    "TensorSource",
    "ViewGenerator",
    "affinity",
    "create_view",
    "describe_view",
    "keys",
    "list_views",
    "register_encoder",
    "register_sampler",
    "register_source",
    "register_view",
    "weighted_supcon",
]

if TYPE_CHECKING:
    from mmcon import affinity
    from mmcon.losses import SupConLoss, weighted_supcon
    from mmcon.models.shared_spaces import ContrastiveModel, SharedSpace
    from mmcon.objective.objective import Objective
    from mmcon.objective.pair_blocks import Block
    from mmcon.random import keys
    from mmcon.registry import (
        create_view,
        describe_view,
        list_views,
        register_encoder,
        register_sampler,
        register_source,
        register_view,
    )
    from mmcon.sources.base import Source, TensorSource
    from mmcon.training.run import Run
    from mmcon.views import Chain, ViewGenerator


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "affinity":
        return importlib.import_module("mmcon.affinity")
    raise AttributeError(f"module 'mmcon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
