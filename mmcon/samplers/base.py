"""Batch samplers: the samples of each global batch, as a function of the seed, the epoch and the step.

A sampler computes the global batch of a step only from the seed and the step; each rank takes its shard of it. So the
batches do not depend on the world size, and the state of a sampler is one integer, the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

EpochOrder = tuple[Int[Tensor, " m"], Int[Tensor, " m"]]
"""The samples of an epoch in the order of its batches: indices into the source, and occurrences."""


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one batch.

    Attributes:
        indices: indices into the source.
        occurrence: 0 for the first use of a sample in the epoch, 1 for the second, …
        epoch: the epoch of the batch.
        step: the global step of the batch.
    """

    indices: Int[Tensor, " b"]
    occurrence: Int[Tensor, " b"]
    epoch: int
    step: int

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: Any) -> BatchPlan:
        """A subset of the batch, by slice, indices or mask."""
        return BatchPlan(self.indices[positions], self.occurrence[positions], self.epoch, self.step)

    def shard(self, rank: int, world_size: int) -> BatchPlan:
        """The consecutive samples of one rank; shard sizes differ by at most one."""
        return self.take(self.shard_slice(rank, world_size))

    def shard_slice(self, rank: int, world_size: int) -> slice:
        """The range of one rank's shard in the global batch."""
        return slice(*(len(self) * r // world_size for r in (rank, rank + 1)))


class BatchSampler(ABC):
    """Orders the samples of an epoch into global batches. A subclass implements `epoch_order`.

    Attributes:
        batch_size: samples in a global batch.
        seed: the seed of the run.
        steps_per_epoch: batches in an epoch.
    """

    batch_size: int
    seed: int
    steps_per_epoch: int
    _cached_epoch: int | None = None
    _cached_order: EpochOrder

    @abstractmethod
    def epoch_order(self, epoch: int) -> EpochOrder:
        """The samples of an epoch: indices and occurrences, both of `steps_per_epoch · batch_size` entries."""

    @final
    def batch(self, step: int) -> BatchPlan:
        """The global batch of a step. The order of the last epoch is cached."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if self._cached_epoch != epoch:
            self._cached_order, self._cached_epoch = self.epoch_order(epoch), epoch
        indices, occurrence = self._cached_order
        batch = slice(step_in_epoch * self.batch_size, (step_in_epoch + 1) * self.batch_size)
        return BatchPlan(indices[batch], occurrence[batch], epoch, step)


def without_repeats(indices: Int[Tensor, " m"]) -> EpochOrder:
    """The order of an epoch that uses no sample twice: every occurrence is 0."""
    return indices, torch.zeros_like(indices)
