"""What is trained, as a checkpoint holds it: whole tensors under the model's own names, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmcon.batch import tree_map
from mmcon.distributed.collectives import gather_objects
from mmcon.distributed.fsdp import full_state, load_model, load_optimizer
from mmcon.loading.loader import ViewLoader
from mmcon.models.ema import unwrap


@dataclass
class Trained:
    """All that the next step depends on, beside the position.

    Attributes:
        model: as it is called, in its wrapper or in parts.
        optimizer: over its parameters.
        schedule: a torch schedule, or None.
        scaler: of gradients in fp16, or None.
        tracked: by name, whatever else has a state: the objective, a queue, a momentum encoder.
    """

    model: nn.Module
    optimizer: Any
    schedule: Any
    scaler: Any
    tracked: Mapping[str, Any]

    def state(self, *, keep: bool) -> dict[str, Any]:
        """The states of all; every process must ask, and those that do not `keep` it hold no whole tensors."""
        return {
            "model": full_state(unwrap(self.model).state_dict(), keep=keep),
            "optimizer": full_state(self.optimizer.state_dict(), keep=keep),
            "schedule": self.schedule.state_dict() if self.schedule is not None else {},
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "tracked": {name: part.state_dict() for name, part in self.tracked.items()},
        }

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Put everything back as it was, on this process's device."""
        load_model(unwrap(self.model), saved["model"])
        load_optimizer(self.optimizer, saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        for name, part in self.tracked.items():
            part.load_state_dict(saved["tracked"][name])
            if hasattr(part, "to"):
                part.to(device)


# --- what a loader remembers -----------------------------------------------------------------------------------------


def memories_of(loader: ViewLoader | None) -> list[dict[str, Any]]:
    """By process, what its loader remembers of earlier batches."""
    parts = loader.stateful_components() if loader is not None else {}
    own = {name: tree_map(lambda x: x.detach().cpu(), part.state_dict()) for name, part in parts.items()}
    return gather_objects(own) if parts else [own]


def remember(
    loader: ViewLoader, saved: list[dict[str, Any]], *, rank: int, world_size: int, tell: Callable[[str], Any]
) -> None:
    """Give the loader its memories back; of another number of processes, each takes one of theirs."""
    parts = loader.stateful_components()
    if parts and len(saved) != world_size:
        tell(f"resume: memories of {len(saved)} process(es) go on in {world_size}")
    for name, part in parts.items():
        part.load_state_dict(saved[rank % len(saved)].get(name, {}))
