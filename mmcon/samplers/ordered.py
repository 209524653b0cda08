"""Batches by what stands beside what: one fixed order, no duplicates, whole groups, one data set at a time."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import check_labels
from mmcon.samplers.class_quotas import Blocks
from mmcon.samplers.class_streams import classes_of


@final
@register_sampler("sampler/fixed-order")
class FixedOrderSampler(BatchSampler):
    """One keyed permutation for all epochs: each goes on where the one before ended, so none is left out for long.

    Args:
        labels: `n`, any tensor with a row for each sample (only its length is used).
        batch_size: rows in a global batch.
        seed: the run's seed.
    """

    def __init__(self, labels: Tensor, *, batch_size: int, seed: int) -> None:
        _check_size("sampler/fixed-order", len(labels), batch_size, "samples")
        self.n, self.batch_size, self.seed = len(labels), batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return self.n // self.batch_size

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The next stretch of the one order, which closes into a ring."""
        order = keys(seed=self.seed).child("sampler").permutation("order", self.n)[0]
        rows = self.steps_per_epoch * self.batch_size
        positions = order[(epoch * rows + torch.arange(rows)) % self.n]
        return positions, torch.zeros_like(positions)


@final
@register_sampler("sampler/no-duplicates")
class NoDuplicatesSampler(BatchSampler):
    """Rows of one key never share a batch: equal texts, or captions of one image, would be false negatives.

    Args:
        labels: `n` int64, equal where rows must stay apart, such as mmcon.random.stable_ids of the texts made
            non-negative by torch.unique(..., return_inverse=True).
        batch_size: rows in a global batch, no more than there are keys.
        seed: the run's seed.
    """

    def __init__(self, labels: Tensor, *, batch_size: int, seed: int) -> None:
        where = "sampler/no-duplicates"
        labels = check_labels(where, labels)
        _check_size(where, len(classes_of(labels)[0]), batch_size, "different keys")
        self.batch_size, self.seed = batch_size, seed
        self.blocks = Blocks(labels, places=batch_size, piece=1, exponent=1.0, seed=seed)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return self.blocks.steps

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """As many places as rows, each for another key."""
        return self.blocks.plan(epoch)


@final
@register_sampler("sampler/groups")
class GroupSampler(BatchSampler):
    """Rows of one group stand together: K of each of `batch_size / K` groups (documents, speakers, sources).

    Args:
        labels: `n` int64, the group of each row.
        batch_size: rows in a global batch.
        seed: the run's seed.
        rows_per_group: K; the batch size itself makes every batch of one group.
        tempering: groups of size n stand in proportion to n^tempering: 1 natural, 0 all alike.
    """

    def __init__(
        self, labels: Tensor, *, batch_size: int, seed: int, rows_per_group: int, tempering: float = 1.0
    ) -> None:
        where = "sampler/groups"
        labels = check_labels(where, labels)
        known = len(classes_of(labels)[0])
        if rows_per_group < 1 or batch_size % rows_per_group or batch_size // rows_per_group > known:
            raise InputError(
                where,
                expected=f"batch_size as a multiple of rows_per_group, {known} times at most (the number of groups)",
                got=f"batch_size={batch_size}, rows_per_group={rows_per_group}",
                fix=f"batch_size={max(1, min(known, batch_size // max(1, rows_per_group))) * max(1, rows_per_group)}",
            )
        self.batch_size, self.seed = batch_size, seed
        places = batch_size // rows_per_group
        self.blocks = Blocks(labels, places=places, piece=rows_per_group, exponent=tempering, seed=seed, together=True)

    @property
    def steps_per_epoch(self) -> int:
        """As many batches as there are rows for, one at least."""
        return self.blocks.steps

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Places for groups, then rows of each."""
        return self.blocks.plan(epoch)


@final
@register_sampler("sampler/mixture")
class MixtureSampler(BatchSampler):
    """Several data sets in one run, each batch from one of them, so that no negative is told by its data set alone.

    To mix them within a batch instead, take sampler/class-aware with the data set as the class.

    Args:
        labels: `n` int64, the data set of each row.
        batch_size: rows in a global batch.
        seed: the run's seed.
        order: "proportional" to their sizes; "round-robin" in turn, equally often, small ones repeated;
            "temperature" in proportion to n^(1/temperature).
        temperature: of that order; 1 is proportional, larger is more even.
    """

    def __init__(
        self, labels: Tensor, *, batch_size: int, seed: int, order: str = "proportional", temperature: float = 2.0
    ) -> None:
        where = "sampler/mixture"
        labels = check_labels(where, labels)
        exponents = {"proportional": 1.0, "round-robin": 0.0, "temperature": 1.0 / max(temperature, 1e-9)}
        if order not in exponents:
            raise InputError(where, expected=f"order among {sorted(exponents)}", got=repr(order), fix="choose one")
        _check_size(where, len(labels), batch_size, "rows")
        self.batch_size, self.seed = batch_size, seed
        self.blocks = Blocks(
            labels, places=1, piece=batch_size, exponent=exponents[order], seed=seed, in_turn=order == "round-robin"
        )

    @property
    def steps_per_epoch(self) -> int:
        """As many batches as there are rows for; in turn, the nearest multiple of the number of data sets."""
        return self.blocks.steps

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """One place a batch for data sets, then the next rows of each."""
        return self.blocks.plan(epoch)


def _check_size(where: str, known: int, batch_size: int, what: str) -> None:
    if not 1 <= batch_size <= known:
        raise InputError(
            where,
            expected=f"1 <= batch_size <= {known}, the number of {what}",
            got=f"batch_size={batch_size}",
            fix=f"batch_size={known} or less" if known else "bring data",
        )
