"""What a run is asked to do besides its steps, and what it finds where it begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mmcon.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does besides its steps.

    Attributes:
        epochs: passes over the data; the schedule is made for them.
        max_steps: stop after this many steps in all, or None; leaves the schedule as it is.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints, or None for one an epoch.
        keep: how many of the newest checkpoints stay.
        sync_batch_norm: batch norms look at the rows of all processes (`mmcon.models.batch_norm`).
        clip_norm: the norm to which gradients are clipped, or None.
        on_nonfinite: "stop", or "skip" the step and go on, up to `max_skips` in a row.
        max_skips: see above.
        trackers: names of Accelerate's trackers beside the JSONL log.
        force: resume although settings changed that alter the steps.
    """

    epochs: int = 1
    max_steps: int | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    keep: int = 2
    sync_batch_norm: bool = False
    clip_norm: float | None = None
    on_nonfinite: str = "stop"
    max_skips: int = 10
    trackers: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("stop", "skip"):
            raise ConfigError("--on-nonfinite", expected="stop or skip", got=repr(self.on_nonfinite))


def unused_folder(folder: str | Path, *, resume: bool = False) -> Path:
    """A run folder that no run has used (`name`, `name-2`, …), or the folder itself where a run is to be resumed."""
    folder = Path(folder)
    if resume or not folder.exists():
        return folder
    return next(f for i in range(2, 1_000_000) if not (f := folder.with_name(f"{folder.name}-{i}")).exists())


def use_all_threads(local_processes: int) -> int:
    """Undo the single thread that launchers set: the cores, shared evenly by the processes of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // max(1, local_processes))
    torch.set_num_threads(threads)
    return threads


def check_precision(precision: str, cpu: bool) -> None:
    """Refuse a precision that is not to be had here.

    Raises:
        ConfigError: it is unknown, or needs a GPU.
    """
    known = ("no", "bf16", "fp16")
    if precision not in known:
        raise ConfigError("--mixed-precision", expected=f"one of {known}", got=repr(precision))
    if precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ConfigError("--mixed-precision", expected="a GPU for fp16", got="a CPU", fix="choose bf16 or no")
