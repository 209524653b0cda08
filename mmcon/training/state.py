"""The state of a training run in a checkpoint: full tensors under the names of the model, with either engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmcon.batch import tree_map
from mmcon.distributed.collectives import from_main_rank, gather_objects
from mmcon.distributed.fsdp import full_state, load_model, load_optimizer
from mmcon.errors import CheckpointError, ConfigError
from mmcon.loading.loader import ViewLoader
from mmcon.models.ema import unwrap
from mmcon.sources.fingerprint import fingerprint_changes
from mmcon.training.checkpoint import check_readable

_FAILURES = "failures of the loader"


@dataclass
class TrainingState:
    """Everything that the next step depends on, except for the step number and the loader.

    Attributes:
        model: as the loop calls it, wrapped or sharded.
        optimizer: over its parameters.
        schedule: a torch schedule, or None.
        scaler: the gradient scaler of fp16, or None.
        tracked: by name, everything else that has a state: the objective, a queue, a momentum encoder.

    Raises:
        CheckpointError: a tracked state could not be read again from a checkpoint.
    """

    model: nn.Module
    optimizer: Any
    schedule: Any
    scaler: Any
    tracked: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, module in self.tracked.items():
            check_readable(name, module.state_dict())

    def state_dict(self, *, keep: bool) -> dict[str, Any]:
        """All states. Every rank must call this; a rank without `keep` gets no full tensors."""
        return {
            "model": full_state(unwrap(self.model).state_dict(), keep=keep),
            "optimizer": full_state(self.optimizer.state_dict(), keep=keep),
            "schedule": self.schedule.state_dict() if self.schedule is not None else {},
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "tracked": {name: module.state_dict() for name, module in self.tracked.items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restore all states on the device of this rank.

        Raises:
            CheckpointError: the model, the optimizer or a tracked module is not that of the state.
        """
        try:
            self._load(saved, device)
        except (RuntimeError, ValueError, KeyError) as error:
            lines = [line.strip() for line in str(error).strip().splitlines()]
            raise CheckpointError(
                "--resume",
                expected="the model and the optimizer of the checkpoint",
                got=f"{type(error).__name__}: {' '.join(lines[:2])}" + (" …" if lines[2:] else ""),
                fix="pass the settings that the run began with, such as --encoder, --optimizer and --projection-head"
                " (mlp in earlier versions), or choose another --output-dir",
            ) from error

    def _load(self, saved: Mapping[str, Any], device: torch.device) -> None:
        load_model(unwrap(self.model), saved["model"])
        load_optimizer(self.optimizer, saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        for name, module in self.tracked.items():
            module.load_state_dict(saved["tracked"][name])
            if hasattr(module, "to"):
                module.to(device)


def check_data(
    loader: ViewLoader, saved: Mapping[str, Any] | None, *, force: bool, log: Callable[[str], Any]
) -> dict[str, Any]:
    """Compare the data of a loader with those of a saved state. Every rank must call this.

    Returns:
        The fingerprint of the data, for `data` in later states; empty for streams.

    Raises:
        ConfigError: the data differ, and `force` is not set. Older states hold no fingerprint.
    """
    make = getattr(loader.source, "fingerprint", None)
    now = from_main_rank(make) if make is not None else {}
    before = (saved or {}).get("data")
    changes = fingerprint_changes(before, now) if before and now else []
    meaning = "the batches from here on are others than those of a run without interruption"
    if changes and not force:
        raise ConfigError(
            "--resume",
            expected="the data that the run began with",
            got=f"{', '.join(changes)}: {meaning}",
            fix="restore the data, choose another --output-dir, or add --force to go on with the data of now",
        )
    if changes:
        log(f"resume: the data changed ({', '.join(changes)}): {meaning}")
    return now


def gather_loader_states(loader: ViewLoader | None) -> list[dict[str, Any]]:
    """By rank, the states of the loader's stateful view generators, and its failures. Every rank must call this."""
    components = loader.stateful_components() if loader is not None else {}
    own: dict[str, Any] = {n: tree_map(lambda x: x.detach().cpu(), c.state_dict()) for n, c in components.items()}
    for name, state in own.items():
        check_readable(name, state)
    failures = {} if loader is None else loader.failure_state()
    return gather_objects(own | ({_FAILURES: failures} if failures else {}))


def restore_loader_states(
    loader: ViewLoader, saved: list[dict[str, Any]], *, rank: int, world_size: int, log: Callable[[str], Any]
) -> None:
    """Restore the states of the loader's stateful view generators; with n saved states, rank r gets state r mod n.

    Failures of all ranks are restored, since a sample may belong to another rank after this.
    """
    for state in saved:
        loader.restore_failures(state.get(_FAILURES, {}))
    components = loader.stateful_components()
    if components and len(saved) != world_size:
        log(f"resume: {world_size} rank(s) restore the view generator states of {len(saved)}")
    for name, component in components.items():
        component.load_state_dict(saved[rank % len(saved)].get(name, {}))
