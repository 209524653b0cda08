"""Create the sampler of a recipe's flags, and check it against the labels of the source before the first step."""

from __future__ import annotations

from typing import Any

import torch

from mmcon.errors import ConfigError
from mmcon.registry import create
from mmcon.samplers.base import BatchSampler
from mmcon.sources.base import Source

# Short names of the class-aware sampler, with the class frequency of each.
FREQUENCIES = {"class-aware": "natural", "balanced": "balanced", "tempered": "tempered"}


def create_batch_sampler(
    source: Source,
    name: str,
    *,
    batch_size: int,
    seed: int,
    objective: str,
    views: int,
    batch_flag: str = "--batch-size",
) -> BatchSampler:
    """Build the sampler of a `--sampler` flag.

    Args:
        source: the training split.
        name: "uniform"; "class-aware" (at least two classes and two samples of each), "balanced" (the same, all
            classes equally often) or "tempered" (in proportion to √n); or a registered name without `sampler/`.
        batch_size: samples in a global batch.
        seed: the seed of the run.
        objective: the value of `--objective`; all but "simclr" need labels.
        views: views per sample; with one view, a sample has positives only among samples of its class.
        batch_flag: the flag of the batch size, for messages.

    Raises:
        ConfigError: labels are missing, or batches would have no positives.
    """
    _check_labels(source, name, objective)
    if objective == "supcon" and views < 2 and name == "uniform" and batch_size < 2 * len(source.classes):
        raise ConfigError(
            batch_flag,
            expected=f"two samples per class: at least {2 * len(source.classes)} for {len(source.classes)} classes",
            got=f"{batch_size}, and one view per sample",
            fix=f"raise {batch_flag}, set --views 2, or use --sampler class-aware",
        )
    labels = source.labels if source.labels is not None else torch.zeros(len(source), dtype=torch.int64)
    options: dict[str, Any] = {"labels": labels, "batch_size": batch_size, "seed": seed}
    if name in FREQUENCIES:
        return create("sampler", "sampler/class-aware", frequencies=FREQUENCIES[name], **options)
    return create("sampler", f"sampler/{name}", **options)


def _check_labels(source: Source, name: str, objective: str) -> None:
    """Raise ConfigError if the objective or the sampler needs labels and the source has none."""
    labels = source.labels
    if objective != "simclr" and (labels is None or len(labels.unique()) < 2):
        raise ConfigError(
            f"--objective {objective}",
            expected="labels of at least two classes",
            got=source.describe().partition("\n")[0],
            fix="use one sub-folder per class, name the label column, or use --objective simclr",
        )
    if name in FREQUENCIES and labels is None:
        raise ConfigError(f"--sampler {name}", expected="labels", got="samples without labels", fix="--sampler uniform")
