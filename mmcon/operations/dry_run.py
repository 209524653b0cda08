"""The report of a recipe's dry run: estimate the memory and GPU hours of the whole run after one step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from mmcon.batch import ViewBatch, tree_map
from mmcon.files import temporary_folder
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

C = TypeVar("C")

#: Images in the training split of ImageNet-1k, for a dry run without them.
IMAGENET = 1_281_167
#: Samples of the step of a dry run.
SMALL_BATCH = 4
DEVICE_GIB = 80


def first_rows(batch: ViewBatch, rows: int, modality: str = "image") -> ViewBatch:
    """The first rows of the first view group of a batch, as a batch."""
    views = tree_map(lambda x: x[:rows].detach(), batch.views[modality][0])
    return ViewBatch({modality: (views,)}, {modality: batch.index[modality].take(slice(0, rows))}, step=batch.step)


def one_step(config: C) -> C:
    """The configuration of the dry run of a recipe: one step of `SMALL_BATCH` samples, in a temporary folder."""
    settings = {"batch_size": SMALL_BATCH, "max_steps": 1, "output_dir": temporary_folder("dry-run-")}
    return dataclasses.replace(config, **settings)  # pyright: ignore[reportArgumentType]


def report(
    config: Any, network: nn.Module, optimizer: Optimizer, batch: ViewBatch, train: Source, *, others: Iterable[Any]
) -> str:
    """Estimate memory and GPU hours, as text.

    Args:
        config: the configuration of the whole run, with `batch_size`, `views`, `epochs`, `chunk_size`, `linear_stage`
            and `linear.epochs`.
        network: the trained network, from a batch to a result with a graph.
        optimizer: the optimizer, after a step.
        batch: the batch of that step, with `SMALL_BATCH` rows in its first view group.
        train: the training split. With bundled images the estimate is for the number of images of ImageNet.
        others: further objects in memory: a queue, a momentum encoder, averaged weights.
    """

    def forward(rows: int) -> Any:
        return network(first_rows(batch, rows))

    is_substitute = train.name.startswith("samples/")
    samples, rows, held = IMAGENET if is_substitute else len(train), config.batch_size * config.views, list(others)
    (views, *_) = batch.views["image"]
    per_row = activation_bytes(forward, parameters=network.parameters()) + byte_count([views]) / len(views)
    embedded = min(rows, config.chunk_size or rows)
    memory = Memory.measure(network, optimizer, activations_per_row=per_row, rows=embedded, copies=held)
    # Gradient caching and a momentum encoder each embed every view once more.
    passes = PASSES + bool(config.chunk_size) + any(isinstance(one, MomentumEncoder) for one in held)
    work = {"samples": samples, "operations": forward_operations(forward)}
    size = "×".join(map(str, views.shape[-2:]))
    lines = (
        [f"bundled images at {size} pixels replace ImageNet; the estimate is for its {IMAGENET:,} images"]
        if is_substitute
        else []
    )
    lines += [
        f"memory of {embedded:,} rows at once on one rank"
        f" (activations measured at 2 and 4 rows on {views.device.type}, extrapolated):",
        memory.describe(),
        _world_size(memory, rows),
        "hours, by arithmetic:",
        "  stage one " + Cost(views=config.views, epochs=config.epochs, passes=passes, **work).describe(),
    ]
    if config.linear_stage == "published":
        lines.append("  stage two " + Cost(views=1, epochs=config.linear.epochs, passes=1, **work).describe())
    return "\n".join(lines)


def _world_size(memory: Memory, rows: int) -> str:
    """The number of devices that hold the batch, and the chunk size for one device."""
    fit = memory.rows_that_fit(DEVICE_GIB * GIB)
    if not fit:
        return f"  the model alone does not fit in {DEVICE_GIB} GiB"
    return (
        f"  {DEVICE_GIB} GiB less {RESERVED:.0%} hold {fit:,} rows: the batch's {rows:,} take"
        f" {math.ceil(rows / fit):,} such GPU(s), or one with --chunk-size {min(rows, 2 ** int(math.log2(fit)))}"
    )
