"""Checks of the environment at the start of a run: threads, precision, devices, and the split of the global batch."""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from mmcon.distributed.collectives import gather_objects
from mmcon.errors import ConfigError
from mmcon.loading.pipeline import Views
from mmcon.sources.base import Source
from mmcon.training.cpu_quota import quota_cores
from mmcon.views.generator import ViewGenerator

#: Where worker processes leave their batches.
SHARED_MEMORY = Path("/dev/shm")
#: The shared memory that counts for a view in a batch: at least, and where its size is not known.
LEAST_VIEW_BYTES, UNKNOWN_VIEW_BYTES = 2**20, 2**22
#: The cores of a rank that stay with the training process and its copies to the GPU.
OWN_CORES = 2


def use_all_threads() -> int:
    """Set the threads of this rank to its share of the cores, since launchers set them to one.

    Every rank must call this. A core is divided among the ranks of a machine that may use it: usually all ranks may use
    all cores; a cluster that binds tasks to cores gives each rank its own. A quota of processor time, as containers
    have it, is divided among the ranks of its machine: more threads than it allows would wait for each other.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = os.sched_getaffinity(0) if has_affinity else range(os.cpu_count() or 1)
    ranks = gather_objects((socket.gethostname(), tuple(cores)))
    here = [others for host, others in ranks if host == socket.gethostname()]
    threads, quota = threads_of_rank(list(cores), here), quota_cores()
    if quota is not None:
        threads = max(1, min(threads, int(quota / len(here))))
    torch.set_num_threads(threads)
    return threads


def threads_of_rank(own_cores: Iterable[int], cores_by_rank: Sequence[Iterable[int]]) -> int:
    """The number of threads of a rank: the sum over its cores of 1 / (ranks of the machine that may use the core)."""
    users = Counter(core for cores in cores_by_rank for core in cores)
    # Fractions: sums of 1/3 in floating point may fall below a whole number.
    return max(1, int(sum(Fraction(1, users[core]) for core in own_cores)))


def choose_workers(
    given: int | None,
    source: Source,
    views: Views,
    batch_size: int,
    device: torch.device,
    threads: int,
    log: Callable[[str], Any],
) -> int:
    """The number of worker processes of a rank: the given one, else those that decode files beside a GPU.

    There they take the cores that training leaves idle. On a CPU they would take the cores of the training, and media
    in memory need none. Each has two batches in shared memory, of which containers may have little; so views of other
    modalities than images and audio, such as clips of video, have workers only where they are asked for.

    Args:
        given: `--workers`.
        source: the data.
        views: by modality, the generators of its views.
        batch_size: of all ranks.
        device: of the rank.
        threads: the cores of the rank.
        log: receives the number that was chosen.
    """
    if given is not None:
        return given
    first = [(member, row) for member in source.members.values() for row in range(min(len(member), 16))]
    sizes = [_view_bytes(view) for generators in views.values() for view in generators]
    is_bounded = bool(sizes) and views.keys() <= {"image", "audio"}
    if device.type != "cuda" or not is_bounded or all(member.file(row) is None for member, row in first):
        return 0
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    of_worker = 2 * batch_size * sum(sizes)
    workers = max(0, min(threads - OWN_CORES, free // of_worker))
    log(f"{workers} worker(s) decode files: {threads} core(s), {free / 2**30:.1f} GiB of shared memory; or --workers N")
    return workers


def _view_bytes(view: ViewGenerator) -> int:
    """A bound of the memory of a view: of an image, three channels in float32 and those of a partner's."""
    sizes = (getattr(child, "size", None) for _, child in view.children())
    pixels = [math.prod(size) for size in sizes if isinstance(size, tuple) and all(isinstance(n, int) for n in size)]
    return max(LEAST_VIEW_BYTES, 2 * 3 * 4 * max(pixels)) if pixels else UNKNOWN_VIEW_BYTES


def describe_start(world_size: int, threads: int, device: torch.device, precision: str | None, batches: int) -> str:
    """The ranks, threads, device and precision of a run, and its batches per optimizer step, for its first message."""
    where = f"{device} in {precision}" if precision not in (None, "no") else f"{device}"
    text = f"{world_size} process(es) with {threads} thread(s) on {where}"
    if batches == 1:
        return text
    return (
        f"{text}\ngradients of {batches} batches are averaged before each optimizer step; the negatives are those of"
        " one batch (gradient caching, --chunk-size, adds negatives)"
    )


def resolve_precision(requested: str) -> str:
    """The precision of a run: the flag's value or, if that is "no", the value of Accelerate's launcher."""
    return requested if requested != "no" else os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def check_precision(precision: str, cpu: bool) -> None:
    """Check that the device supports a precision.

    Raises:
        ConfigError: the name is unknown, or the device does not support it.
    """
    known = ("no", "bf16", "fp16")
    if precision not in known:
        raise ConfigError("--mixed-precision", expected=f"one of {known}", got=repr(precision))
    if precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ConfigError("--mixed-precision", expected="a GPU for fp16", got="a CPU", fix="choose bf16 or no")
    if precision == "bf16" and not cpu and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name()
        raise ConfigError("--mixed-precision", expected="a GPU with bfloat16", got=name, fix="choose fp16 or no")


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Check that the global batch splits into equal shards.

    Raises:
        ConfigError: the world size does not divide the batch size.
    """
    if batch_size % world_size:
        near = {batch_size - batch_size % world_size, batch_size + world_size - batch_size % world_size} - {0}
        raise ConfigError(
            "--batch-size",
            expected=f"a global batch size that is divisible by {world_size} ranks",
            got=str(batch_size),
            fix=f"--batch-size {' or '.join(map(str, sorted(near)))}",
        )


def check_devices(device_kinds: list[str]) -> None:
    """Check that all ranks compute on the same kind of device in the same precision.

    Args:
        device_kinds: the device and the precision of each rank.
    """
    if len(set(device_kinds)) > 1:
        named = ", ".join(f"rank {rank} on {kind}" for rank, kind in enumerate(device_kinds))
        raise ConfigError(
            "ranks",
            expected="one kind of device and one precision for all of them",
            got=named,
            fix="run every rank on a GPU, or pass --cpu",
        )
