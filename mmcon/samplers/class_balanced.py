"""Class-aware batches: P classes × K samples, whoever else is in the data; with one label a sample or several."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from mmcon.errors import InputError
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_quotas import Blocks
from mmcon.samplers.class_streams import classes_of


def check_labels(where: str, labels: Any) -> Tensor:
    """Class labels as a sampler takes them: one non-negative int64 a sample."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype != torch.int64 or not len(labels):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            where,
            expected="labels as an int64 tensor with one class number a sample",
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


@final
@register_sampler("sampler/class-aware")
class ClassAwareSampler(BatchSampler):
    """P different classes × K samples in every global batch.

    The promise, two classes and two samples a class at least, holds on the *global* batch for any number of processes,
    since losses gather. Over the epochs each class takes its due number of places, give or take one, and each of its
    samples is seen equally often, give or take one. A class with fewer than K samples repeats them; repeats
    have occurrence numbers, and so views of their own.

    Args:
        labels: `n` int64, the class of each sample.
        batch_size: rows in a global batch, P·K.
        seed: the run's seed.
        classes_per_batch: P; or
        samples_per_class: K. With neither, P is the largest divisor of the batch size that leaves four samples a class
            (two, if none does) and is no more than the number of classes.
        frequencies: how often a class stands in a batch: "natural" in proportion to its size n, "balanced" all alike,
            "tempered" in proportion to n^alpha. A class stands once in a batch at most; what a large one cannot take
            goes to the others in proportion.
        alpha: the exponent of "tempered".
        whole_classes: a number of processes, each of which is to get whole classes (two at least), for losses that do
            not gather; 0 spreads every class evenly over the batch.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        classes_per_batch: int | None = None,
        samples_per_class: int | None = None,
        frequencies: str = "natural",
        alpha: float = 0.5,
        whole_classes: int = 0,
    ) -> None:
        where = "sampler/class-aware"
        labels = check_labels(where, labels)
        self.batch_size, self.seed, self.frequencies = batch_size, seed, frequencies
        exponent = {"natural": 1.0, "balanced": 0.0, "tempered": alpha}.get(frequencies)
        if exponent is None:
            raise InputError(
                where, expected="frequencies natural, balanced or tempered", got=repr(frequencies), fix="choose one"
            )
        known = len(classes_of(labels)[0])
        self.classes_per_batch, self.samples_per_class = block_shape(
            where, known, batch_size, classes_per_batch, samples_per_class
        )
        self.whole_classes = whole_classes
        _check_whole(where, self.classes_per_batch, whole_classes)
        self.blocks = Blocks(
            labels,
            places=self.classes_per_batch,
            piece=self.samples_per_class,
            exponent=exponent,
            seed=seed,
            together=bool(whole_classes),
        )

    @property
    def steps_per_epoch(self) -> int:
        """As many batches as the data have rows for, one at least."""
        return self.blocks.steps

    @property
    def due(self) -> Tensor:
        """How many times an epoch a sample of each class is due, `c` float64, ascending by label."""
        return self.blocks.due

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """P places a batch for classes, K samples of each."""
        return self.blocks.plan(epoch)


def block_shape(
    where: str, known: int, batch_size: int, classes_per_batch: int | None, samples_per_class: int | None
) -> tuple[int, int]:
    """P and K from what was given of them, refused unless P·K is the batch size and P classes exist."""
    if known < 2:
        raise InputError(
            where,
            expected="two classes or more",
            got=f"{known} class",
            fix="bring more classes, or train without labels: sampler/uniform with affinity.SameSample",
        )
    p, k = classes_per_batch, samples_per_class
    if p is None and k is None:
        divisors = [d for d in range(2, min(known, batch_size // 2) + 1) if batch_size % d == 0]
        roomy = [d for d in divisors if batch_size // d >= 4]
        p = max(roomy or divisors, default=0)
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
            fix=_nearest_shape(known, batch_size, classes_per_batch, samples_per_class),
        )
    if p > known:
        raise InputError(
            where,
            expected=f"classes_per_batch <= {known}, the number of classes",
            got=f"classes_per_batch={p} (batch_size={batch_size}, samples_per_class={k})",
            fix=_nearest_shape(known, batch_size, min(p, known), None),
        )
    return p, k


def _nearest_shape(known: int, batch_size: int, p: int | None, k: int | None) -> str:
    """The batch size nearest to the one wished for that fits, as an instruction."""
    if p is None and k is not None:
        k = max(k, 2)
        p = min(max(batch_size // k, 2), known)
    p = min(max(p or 2, 2), known)
    k = max(k or round(batch_size / p), 2)
    return f"batch_size={p * k}, classes_per_batch={p}, samples_per_class={k}"


def _check_whole(where: str, places: int, world_size: int) -> None:
    if world_size < 0 or (world_size and (places % world_size or places // world_size < 2)):
        raise InputError(
            where,
            expected="classes_per_batch as a multiple of whole_classes, two classes a process at least",
            got=f"classes_per_batch={places}, whole_classes={world_size}",
            fix=f"classes_per_batch={max(2, round(places / max(world_size, 1))) * max(world_size, 1)}",
        )


@final
@register_sampler("sampler/multi-label")
class MultiLabelSampler(BatchSampler):
    """P different labels × K samples that carry the label, where samples carry several.

    Each sample stands in for the rarest of its labels, so that rare labels keep their samples and every sample is due
    equally often; what else two samples share is left to the affinity (MultiLabel).

    Args:
        labels: `n c` bool, which labels each sample carries, one at least.
        batch_size: rows in a global batch, P·K.
        seed: the run's seed.
        labels_per_batch: P; or
        samples_per_label: K; with neither as for sampler/class-aware.
    """

    def __init__(
        self,
        labels: Bool[Tensor, "n c"],
        *,
        batch_size: int,
        seed: int,
        labels_per_batch: int | None = None,
        samples_per_label: int | None = None,
    ) -> None:
        where = "sampler/multi-label"
        bare = int((~labels.any(1)).sum())
        if bare or not len(labels):
            raise InputError(
                where,
                expected="one label or more for every sample",
                got=f"{bare} of {len(labels)} samples without",
                fix="leave them out: labels[labels.any(1)], and the rows of the source likewise",
            )
        counts = labels.sum(0)
        rarest = torch.where(labels, counts, counts.max() + 1).argmin(1)
        p, k = block_shape(where, len(classes_of(rarest)[0]), batch_size, labels_per_batch, samples_per_label)
        self.batch_size, self.seed = batch_size, seed
        self.blocks = Blocks(rarest, places=p, piece=k, exponent=1.0, seed=seed)

    @property
    def steps_per_epoch(self) -> int:
        """As many batches as the data have rows for, one at least."""
        return self.blocks.steps

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """P places a batch for labels, K samples of each."""
        return self.blocks.plan(epoch)
