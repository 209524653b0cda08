"""Contrastive learning for any modality: keyed view generators, one weighted loss, shared spaces.

docs/api.md lists the public names. Each name, and each subpackage, is imported at its first use, so that `import mmcon`
takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmcon.openmp_wait_policy import set_wait_policy as _set_wait_policy

# Here, since torch reads the policy when it is loaded, and every way to start a training imports this package.
_set_wait_policy()

__version__ = "0.1.0"

# Public names by the module that defines them.
_NAMES = {
    "mmcon.random": ("keys",),
    "mmcon.registry": (
        "register_view",
        "register_sampler",
        "register_encoder",
        "register_source",
        "create_view",
        "create_sampler",
        "list_views",
        "list_samplers",
        "list_sources",
        "describe_view",
        "describe_sampler",
        "describe_source",
    ),
    "mmcon.models.encoders": ("create_encoder", "list_encoders", "describe_encoder"),
    "mmcon.sources.factory": ("create_source",),
    "mmcon.views": ("ViewGenerator", "Chain"),
    "mmcon.sources.base": ("Source", "TensorSource"),
    "mmcon.sources.joined": ("JoinedSource",),
    "mmcon.loading.loader": ("ViewLoader",),
    "mmcon.models.contrastive_model": ("ContrastiveModel",),
    "mmcon.models.shared_spaces": ("SharedSpace",),
    "mmcon.inference.loading": ("load",),
    "mmcon.losses": ("SupConLoss", "weighted_supcon"),
    "mmcon.objective.objective": ("Objective",),
    "mmcon.objective.pair_blocks": ("Block",),
    "mmcon.training.config": ("RunConfig", "RunSettings"),
    "mmcon.training.recipe": ("run_recipe",),
    "mmcon.training.run": ("Run",),
}
# Not all of them are in `__all__`: a star import must not replace the standard library's `random`.
_SUBMODULES = (
    "affinity",
    "batch",
    "distributed",
    "errors",
    "evaluation",
    "inference",
    "loading",
    "losses",
    "media",
    "models",
    "objective",
    "operations",
    "random",
    "registry",
    "report",
    "samplers",
    "sources",
    "testing",
    "training",
    "views",
)
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

if TYPE_CHECKING:
    from mmcon import affinity, errors, evaluation, inference, losses, testing, views
    from mmcon.inference.loading import load
    from mmcon.loading.loader import ViewLoader
    from mmcon.losses import SupConLoss, weighted_supcon
    from mmcon.models.contrastive_model import ContrastiveModel
    from mmcon.models.encoders import create_encoder, describe_encoder, list_encoders
    from mmcon.models.shared_spaces import SharedSpace
    from mmcon.objective.objective import Objective
    from mmcon.objective.pair_blocks import Block
    from mmcon.random import keys
    from mmcon.registry import (
        create_sampler,
        create_view,
        describe_sampler,
        describe_source,
        describe_view,
        list_samplers,
        list_sources,
        list_views,
        register_encoder,
        register_sampler,
        register_source,
        register_view,
    )
    from mmcon.sources.base import Source, TensorSource
    from mmcon.sources.factory import create_source
    from mmcon.sources.joined import JoinedSource
    from mmcon.training.config import RunConfig, RunSettings
    from mmcon.training.recipe import run_recipe
    from mmcon.training.run import Run
    from mmcon.views import Chain, ViewGenerator

__all__ = [
    "Block",
    "Chain",
    "ContrastiveModel",
    "JoinedSource",
    "Objective",
    "Run",
    "RunConfig",
    "RunSettings",
    "SharedSpace",
    "Source",
    "SupConLoss",
    "TensorSource",
    "ViewGenerator",
    "ViewLoader",
    "affinity",
    "create_encoder",
    "create_sampler",
    "create_source",
    "create_view",
    "describe_encoder",
    "describe_sampler",
    "describe_source",
    "describe_view",
    "errors",
    "evaluation",
    "inference",
    "keys",
    "list_encoders",
    "list_samplers",
    "list_sources",
    "list_views",
    "load",
    "losses",
    "register_encoder",
    "register_sampler",
    "register_source",
    "register_view",
    "run_recipe",
    "testing",
    "views",
    "weighted_supcon",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"mmcon.{name}")
    raise AttributeError(f"module 'mmcon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
