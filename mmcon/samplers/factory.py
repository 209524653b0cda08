"""Which sampler a recipe's flags mean, refused at once where the data cannot serve it."""

from __future__ import annotations

from typing import Any

import torch

from mmcon.errors import ConfigError
from mmcon.registry import create
from mmcon.samplers.base import BatchSampler
from mmcon.sources.base import Source

# Names of a recipe's flag for the class-aware sampler at other frequencies of classes.
FREQUENCIES = {"class-aware": "natural", "balanced": "balanced", "tempered": "tempered"}


def sampler_for(
    source: Source,
    name: str,
    *,
    batch_size: int,
    seed: int,
    objective: str,
    views: int,
    batch_flag: str = "--batch-size",
) -> BatchSampler:
    """Whole global batches by the name of a flag.

    Args:
        source: the training part.
        name: "uniform"; "class-aware" (two classes and two samples of each at least), "balanced" (the same, every
            class alike) or "tempered" (in proportion to √n); or what follows `sampler/` in a registered name.
        batch_size: samples in a step.
        seed: the run's seed.
        objective: "simclr" needs no labels; others do.
        views: of each sample; a lone view has positives only in samples of its class.
        batch_flag: how messages call the batch size.

    Raises:
        ConfigError: labels are missing, or batches would have no positives.
    """
    labelled = source.labels is not None
    if objective != "simclr" and (source.labels is None or len(source.labels.unique()) < 2):
        raise ConfigError(
            f"--objective {objective}",
            expected="labels of at least two classes",
            got=source.describe().partition("\n")[0],
            fix="use one sub-folder a class, name the label column, or --objective simclr",
        )
    lone = objective == "supcon" and views < 2 and name == "uniform"
    if lone and batch_size < 2 * len(source.classes):
        raise ConfigError(
            batch_flag,
            expected=f"two samples a class: {2 * len(source.classes)} or more for {len(source.classes)} classes",
            got=f"{batch_size}, and one view a sample",
            fix=f"raise {batch_flag}, give --views 2, or use --sampler class-aware",
        )
    if name in FREQUENCIES and not labelled:
        raise ConfigError(f"--sampler {name}", expected="labels", got="rows without labels", fix="--sampler uniform")
    labels = source.labels if source.labels is not None else torch.zeros(len(source), dtype=torch.int64)
    options: dict[str, Any] = {"labels": labels, "batch_size": batch_size, "seed": seed}
    if name in FREQUENCIES:
        return create("sampler", "sampler/class-aware", frequencies=FREQUENCIES[name], **options)
    return create("sampler", f"sampler/{name}", **options)
