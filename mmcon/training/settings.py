"""What a run is asked to do besides its steps, and what it finds where it begins."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch

from mmcon.distributed.collectives import gather_objects
from mmcon.errors import ConfigError

Engine = Literal["ddp", "fsdp2"]


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Flags that recipes share: how steps are made on the machine at hand, for a recipe's `Config` to build on."""

    engine: Engine = "ddp"
    """several processes with whole copies of the weights (ddp), or with a part each (fsdp2)"""
    compile: bool = False
    """compile the encoders (torch.compile): minutes at first, then quicker steps"""
    accumulate: int = 1
    """batches whose gradients are averaged before the optimizer moves; negatives stay those of one batch"""
    sync_batch_norm: bool = False
    """batch norms look at the rows of all processes"""
    profile: bool = False
    """profile a few early steps: a table, and a trace for a browser, in the run folder"""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
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
        engine: "ddp", each process with a whole copy of the weights, or "fsdp2", with a part of them.
        compile: compile the encoders by torch.compile.
        accumulate: batches whose gradients are averaged before the optimizer moves. This does not enlarge the set of
            negatives, which stays that of one batch: gradient caching (`mmcon.training.gradient_caching`) does.
        profile: profile a few early steps.
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
    engine: str = "ddp"
    compile: bool = False
    accumulate: int = 1
    profile: bool = False

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("stop", "skip"):
            raise ConfigError("--on-nonfinite", expected="stop or skip", got=repr(self.on_nonfinite))
        if self.engine not in ("ddp", "fsdp2"):
            raise ConfigError("--engine", expected="ddp or fsdp2", got=repr(self.engine))
        if self.accumulate < 1:
            raise ConfigError("--accumulate", expected="1 batch or more", got=str(self.accumulate))

    @classmethod
    def of(cls, config: Any) -> RunSettings:
        """Those of a recipe's configuration that go by the same names."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls) if hasattr(config, field.name)})


def unused_folder(folder: str | Path, *, resume: bool = False) -> Path:
    """A run folder that no run has used (`name`, `name-2`, …), or the folder itself where a run is to be resumed."""
    folder = Path(folder)
    if resume or not folder.exists():
        return folder
    return next(f for i in range(2, 1_000_000) if not (f := folder.with_name(f"{folder.name}-{i}")).exists())


def use_all_threads() -> int:
    """Undo the single thread that launchers set: each process its share of the cores that it may use.

    A core counts by how many processes of this machine may use it: all of them, as a rule; its own process alone where
    a cluster ties tasks to cores. Every process must ask.
    """
    known = hasattr(os, "sched_getaffinity")
    cores = os.sched_getaffinity(0) if known else range(os.cpu_count() or 1)
    machines = gather_objects((socket.gethostname(), tuple(cores)))
    threads = share_of_cores(list(cores), [others for name, others in machines if name == socket.gethostname()])
    torch.set_num_threads(threads)
    return threads


def share_of_cores(mine: Iterable[int], world_size: Sequence[Iterable[int]]) -> int:
    """How many threads fall to a process: its cores, each divided by the processes of the machine that may use it."""
    users = Counter(core for cores in world_size for core in cores)
    return max(1, int(sum(Fraction(1, users[core]) for core in mine)))


def precision_of(asked: str) -> str:
    """The precision of a run: that of its flag or, where this leaves it at "no", of Accelerate's launcher."""
    return asked if asked != "no" else os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def check_precision(precision: str, cpu: bool) -> None:
    """Refuse a precision that is not to be had here.

    Raises:
        ConfigError: it is unknown, or the device lacks it.
    """
    known = ("no", "bf16", "fp16")
    if precision not in known:
        raise ConfigError("--mixed-precision", expected=f"one of {known}", got=repr(precision))
    if precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ConfigError("--mixed-precision", expected="a GPU for fp16", got="a CPU", fix="choose bf16 or no")
    if precision == "bf16" and not cpu and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name()
        raise ConfigError("--mixed-precision", expected="a GPU with bfloat16", got=name, fix="choose fp16 or no")


def check_batch(batch_size: int, world_size: int) -> None:
    """Refuse a global batch of which processes would get unequal parts.

    Raises:
        ConfigError: the processes do not divide it.
    """
    if batch_size % world_size:
        near = {batch_size - batch_size % world_size, batch_size + world_size - batch_size % world_size} - {0}
        raise ConfigError(
            "--batch-size",
            expected=f"a global batch that {world_size} processes divide",
            got=str(batch_size),
            fix=f"--batch-size {' or '.join(map(str, sorted(near)))}",
        )


def check_devices(kinds: list[str]) -> None:
    """Refuse processes that compute on different kinds of devices.

    Args:
        kinds: by process, its device with the precision that it computes in.
    """
    if len(set(kinds)) > 1:
        named = ", ".join(f"process {number} on {kind}" for number, kind in enumerate(kinds))
        raise ConfigError(
            "processes",
            expected="one kind of device for all of them",
            got=named,
            fix="give every process a GPU, or --cpu to all",
        )
