"""Samplers: which rows stand together in a batch.

A sampler decides the *whole global batch* of a step from the seed and the step alone; each process then takes its part.
So the number of processes changes speed and nothing else, and the state of a sampler is one integer, the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import register_sampler


@dataclass(frozen=True)
class BatchPlan:
    """The rows of one batch.

    Attributes:
        positions: `b` int64, rows of the source.
        occurrence: `b` int64, 0 for the first time that a sample stands in the epoch, 1 for the second, …
        epoch: the epoch of the batch.
        step: the global step of the batch.
    """

    positions: Tensor
    occurrence: Tensor
    epoch: int
    step: int

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, part: Any) -> BatchPlan:
        """Some of the rows, by slice, positions or mask."""
        return BatchPlan(self.positions[part], self.occurrence[part], self.epoch, self.step)

    def shard(self, rank: int, world_size: int) -> BatchPlan:
        """The part of one process: consecutive rows, sizes differing by one at most."""
        return self.take(self.part(rank, world_size))

    def part(self, rank: int, world_size: int) -> slice:
        """Where the part of one process stands."""
        return slice(*(len(self) * p // world_size for p in (rank, rank + 1)))


class BatchSampler(ABC):
    """Plans epochs of whole global batches.

    Attributes:
        batch_size: rows in a global batch.
        seed: the run's seed.
    """

    batch_size: int
    seed: int

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The rows of an epoch in order: positions and occurrences, each `steps·batch_size` int64."""

    @final
    def batch(self, step: int) -> BatchPlan:
        """The global batch of a step; the plan of the epoch is kept until another is asked for."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if getattr(self, "_planned", None) != epoch:
            self._plan, self._planned = self.plan(epoch), epoch
        part = slice(at * self.batch_size, (at + 1) * self.batch_size)
        positions, occurrence = self._plan
        return BatchPlan(positions[part], occurrence[part], epoch, step)


@final
@register_sampler("sampler/uniform")
class UniformSampler(BatchSampler):
    """Every sample once an epoch, in an order that is drawn anew each epoch; an incomplete last batch is left out.

    Args:
        labels: `n`, any tensor with a row for each sample (only its length is used).
        batch_size: rows in a global batch.
        seed: the run's seed.
    """

    def __init__(self, labels: Tensor, *, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= len(labels):
            raise InputError(
                "sampler/uniform",
                expected=f"1 <= batch_size <= {len(labels)}, the number of samples",
                got=f"batch_size={batch_size}",
                fix="lower --batch-size or bring more data",
            )
        self.n, self.batch_size, self.seed = len(labels), batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return self.n // self.batch_size

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """A keyed permutation of all rows."""
        order = keys(seed=self.seed, epoch=epoch).child("sampler").permutation("order", self.n)[0]
        order = order[: self.steps_per_epoch * self.batch_size]
        return order, torch.zeros_like(order)
