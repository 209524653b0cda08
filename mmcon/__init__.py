"""Contrastive learning for any modality: keyed view generators, one weighted loss, shared spaces.

The public names stand here; each is loaded when it is first used, so that `import mmcon` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it.
_HOMES = {
    "ViewGenerator": "mmcon.view",
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
    "Objective": "mmcon.training.objective",
    "ContrastiveModel": "mmcon.models.spaces",
    "SharedSpace": "mmcon.models.spaces",
    "Run": "mmcon.training.run",
}
_MODULES = ("affinity", "losses", "random", "registry", "testing", "view")

__all__ = [*sorted(_HOMES), *_MODULES]

if TYPE_CHECKING:
    from mmcon import affinity, losses, random, registry, testing, view
    from mmcon.losses import SupConLoss, weighted_supcon
    from mmcon.models.spaces import ContrastiveModel, SharedSpace
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
    from mmcon.training.objective import Objective
    from mmcon.training.run import Run
    from mmcon.view import ViewGenerator


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"mmcon.{name}")
    raise AttributeError(f"module 'mmcon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
