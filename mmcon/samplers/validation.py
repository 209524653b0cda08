"""Validation of the arguments of samplers: class labels, batch size, and its split into classes × samples."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import InputError, check_whole


def check_batch_size(where: str, batch_size: int, *, largest: int, unit: str) -> None:
    """Raise InputError unless 1 <= batch_size <= largest, where `largest` counts `unit`."""
    if not 1 <= check_whole(where, "batch_size", batch_size, least=1) <= largest:
        raise InputError(
            where,
            expected=f"1 <= batch_size <= {largest}, the number of {unit}",
            got=f"batch_size={batch_size}",
            fix=f"batch_size={largest} or less, or more data" if largest else "add data",
        )


def check_labels(where: str, labels: Any) -> Int[Tensor, " n"]:
    """Convert class labels to one non-negative int64 number per sample, on the CPU.

    Raises:
        InputError: labels have another type or shape, or some are negative.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype != torch.int64 or not len(labels):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            where,
            expected="labels as an int64 tensor with one class number per sample",
            got=got,
            fix="number the classes, such as torch.tensor([classes.index(name) for name in names])",
        )
    missing = int((labels < 0).sum())
    if missing:
        raise InputError(
            where,
            expected="a class number >= 0 for every sample",
            got=f"{missing} of {len(labels)} labels below 0",
            fix="leave samples without a label out, or use sampler/uniform",
        )
    return labels.cpu()


def split_batch(
    where: str, classes: int, batch_size: int, classes_per_batch: int | None, samples_per_class: int | None
) -> tuple[int, int]:
    """P classes × K samples of a batch, completed from the given P, K, both or neither.

    With neither, P is the largest divisor of the batch size that leaves at least four samples per class (two, if no
    divisor leaves four) and is at most the number of classes.

    Args:
        where: the name of the sampler, for messages.
        classes: the number of classes in the data.
        batch_size: samples in a global batch.
        classes_per_batch: P, or None.
        samples_per_class: K, or None.

    Raises:
        InputError: there is only one class, P·K is not the batch size, or P exceeds the number of classes.
    """
    if classes < 2:
        raise InputError(
            where,
            expected="two classes or more",
            got=f"{classes} class",
            fix="add classes, or train without labels: sampler/uniform with affinity.SameSample",
        )
    check_whole(where, "batch_size", batch_size, least=1)
    for name, given in (("classes_per_batch", classes_per_batch), ("samples_per_class", samples_per_class)):
        if given is not None:
            check_whole(where, name, given, least=1)
    p, k = classes_per_batch, samples_per_class
    if p is None and k is None:
        divisors = [d for d in range(2, min(classes, batch_size // 2) + 1) if batch_size % d == 0]
        with_four_samples = [d for d in divisors if batch_size // d >= 4]
        p = max(with_four_samples or divisors, default=0)
    if p is None:
        p = batch_size // k if k else 0
    if k is None:
        k = batch_size // p if p else 0
    if p < 2 or k < 2 or p * k != batch_size:
        raise InputError(
            where,
            expected="batch_size = classes_per_batch × samples_per_class, both 2 or more",
            got=f"batch_size={batch_size}, classes_per_batch={classes_per_batch}, "
            f"samples_per_class={samples_per_class}",
            fix=_nearest_split(classes, batch_size, classes_per_batch, samples_per_class),
        )
    if p > classes:
        raise InputError(
            where,
            expected=f"classes_per_batch <= {classes}, the number of classes",
            got=f"classes_per_batch={p} (batch_size={batch_size}, samples_per_class={k})",
            fix=_nearest_split(classes, batch_size, min(p, classes), None),
        )
    return p, k


def _nearest_split(classes: int, batch_size: int, p: int | None, k: int | None) -> str:
    """The valid split nearest to the requested one, as Python arguments."""
    if p is None and k is not None:
        k = max(k, 2)
        p = min(max(batch_size // k, 2), classes)
    p = min(max(p or 2, 2), classes)
    k = max(k or round(batch_size / p), 2)
    return f"batch_size={p * k}, classes_per_batch={p}, samples_per_class={k}"
