"""What a recipe's dry run tells after its one step: the memory and the hours that the whole run would need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mmcon.batch import ViewBatch, tree_map
from mmcon.models.ema import MomentumEncoder
from mmcon.operations.memory_budget import (
    GIB,
    PASSES,
    RESERVED,
    Cost,
    Memory,
    activation_bytes,
    byte_count,
    forward_operations,
)
from mmcon.sources.base import Source

#: Images in the training part of ImageNet-1k, for a dry run without them.
IMAGENET = 1_281_167
#: Rows of a dry run's own step.
SMALL_BATCH = 4
DEVICE_GIB = 80


def head_of(batch: ViewBatch, rows: int, modality: str = "image") -> ViewBatch:
    """The first rows of the first part of a batch, as a batch."""
    views = tree_map(lambda x: x[:rows].detach(), batch.views[modality][0])
    return ViewBatch({modality: (views,)}, {modality: batch.index[modality].take(slice(0, rows))}, step=batch.step)


def report(
    asked: Any, network: nn.Module, optimizer: Optimizer, batch: ViewBatch, train: Source, *, beside: Iterable[Any]
) -> str:
    """The arithmetic of memory and of hours, for a person to read.

    Args:
        asked: the configuration of the whole run, with `batch_size`, `views`, `epochs`, `chunk_size`, `linear_stage`
            and `linear.epochs`.
        network: what is trained, from a batch to whatever has a graph.
        optimizer: after a step.
        batch: the batch of that step, of `SMALL_BATCH` rows in its first part.
        train: the training part. Bundled images stand in for ImageNet, whose number of images is counted then.
        beside: what else is held: a queue, a momentum encoder, an average of weights.
    """

    def forward(rows: int) -> Any:
        return network(head_of(batch, rows))

    stands_in = train.name.startswith("samples/")
    samples, rows, held = IMAGENET if stands_in else len(train), asked.batch_size * asked.views, list(beside)
    (part, *_) = batch.views["image"]
    per_row = activation_bytes(forward, parameters=network.parameters()) + byte_count([part]) / len(part)
    embedded = min(rows, asked.chunk_size or rows)
    memory = Memory.of(network, optimizer, activations_per_row=per_row, rows=embedded, copies=held)
    # Gradient caching and a momentum encoder each embed every view once more.
    passes = PASSES + bool(asked.chunk_size) + any(isinstance(one, MomentumEncoder) for one in held)
    work = {"samples": samples, "operations": forward_operations(forward)}
    size = "×".join(map(str, part.shape[-2:]))
    lines = [f"bundled images at {size} pixels stand in; counted for ImageNet's {IMAGENET:,}"] if stands_in else []
    lines += [
        f"memory of {embedded:,} rows at once in one process"
        f" (activations measured at 2 and 4 rows on {part.device.type}, extrapolated):",
        memory.describe(),
        _world_size(memory, rows),
        "hours, by arithmetic:",
        "  stage one " + Cost(views=asked.views, epochs=asked.epochs, passes=passes, **work).describe(),
    ]
    if asked.linear_stage == "published":
        lines.append("  stage two " + Cost(views=1, epochs=asked.linear.epochs, passes=1, **work).describe())
    return "\n".join(lines)


def _world_size(memory: Memory, rows: int) -> str:
    """How many devices hold the batch, and what a chunk may be on one."""
    fit = memory.rows_that_fit(DEVICE_GIB * GIB)
    if not fit:
        return f"  the model alone does not fit in {DEVICE_GIB} GiB"
    return (
        f"  {DEVICE_GIB} GiB less {RESERVED:.0%} hold {fit:,} rows: the batch's {rows:,} take"
        f" {math.ceil(rows / fit):,} such GPU(s), or one with --chunk-size {min(rows, 2 ** int(math.log2(fit)))}"
    )
