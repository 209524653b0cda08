"""The model of a run on one rank: on the device, wrapped by DDP or sharded, with checks of the objective's blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import nn

from mmcon.distributed.collectives import broadcast
from mmcon.distributed.fsdp import check_sharding, compile_encoders, full_state, is_sharded, wrap
from mmcon.loading.loader import ViewLoader
from mmcon.models.batch_norm import synchronize_batch_norm
from mmcon.models.ema import unwrap
from mmcon.training.config import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

M = TypeVar("M", bound=nn.Module)


class RankModel:
    """Prepares the model, the optimizer, and the tracked modules for the ranks of a run.

    Args:
        accelerator: has the device and wraps the model.
        model: on any device.
        optimizer: over its parameters.
        tracked: by name, everything else that has a state; modules among them move to the device.
        settings: `sync_batch_norm` and `compile`.
        sharded: whether ranks keep shards of the weights.

    Attributes:
        wrapped: the model to call in the loop.
        optimizer: the optimizer, prepared by Accelerate.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        tracked: Mapping[str, Any],
        settings: RunSettings,
        *,
        sharded: bool,
    ) -> None:
        self.device = accelerator.device
        modules = [module for module in tracked.values() if isinstance(module, nn.Module)]
        for module in modules:
            module.to(self.device)
            # DDP broadcasts the model alone; an objective or a queue must start equal on all ranks too.
            broadcast([*module.parameters(), *module.buffers()])
        if settings.sync_batch_norm:
            for module in (model, *modules):
                synchronize_batch_norm(module, self.device)
        self._spaces = model.modalities_by_space() if hasattr(model, "modalities_by_space") else None  # type: ignore[operator]
        self._objective = tracked.get("objective")
        self.check_blocks()
        if settings.compile:
            compile_encoders(model)
        self._full_copy: nn.Module | None = None
        if sharded:
            check_sharding(tracked)
            # Copied before sharding, after which the modules hold shards only.
            self._full_copy = copy.deepcopy(model).cpu()
        self.wrapped = wrap(accelerator, model, optimizer, sharded=sharded)
        if self.device.type == "cuda" and not sharded:
            _fuse(optimizer)
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    def check_blocks(self, loader: ViewLoader | None = None) -> None:
        """Check that the model and, if given, the data of the loader can fill the blocks of the objective."""
        if self._spaces is not None and self._objective is not None and hasattr(self._objective, "check"):
            data = () if loader is None else (loader.source, loader.views)
            self._objective.check(self._spaces, *data)

    def full_model(self, model: M) -> M:
        """The model without its wrapper; a sharded one as a copy with full weights. All ranks must call it then."""
        if self._full_copy is None or not is_sharded(model):
            return cast(M, unwrap(model))
        self._full_copy.load_state_dict(full_state(model.state_dict()))
        return cast(M, self._full_copy.to(self.device))


def _fuse(optimizer: Any) -> None:
    """Let an optimizer of torch update all parameters in one kernel, which can leave the update out by itself.

    Where the host waits for the check of the gradients (`Stepper`), the launches of the update come after it: without
    this, for a ResNet-50 some milliseconds, in which the GPU has nothing to do.
    """
    for group in optimizer.param_groups:
        if group.get("fused", False) is None and group.get("foreach") is None:
            group["fused"] = True
