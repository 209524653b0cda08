"""Uniform batches: every sample once per epoch, in a new order each epoch."""

from __future__ import annotations

from typing import final

from jaxtyping import Shaped
from torch import Tensor

from mmcon.random import keys
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder, without_repeats
from mmcon.samplers.validation import check_batch_size


@final
@register_sampler("sampler/uniform")
class UniformSampler(BatchSampler):
    """Every sample once per epoch, in a keyed order that changes each epoch; an incomplete last batch is dropped.

    Args:
        labels: any tensor with one entry per sample; only its length is used.
        batch_size: samples in a global batch.
        seed: the seed of the run.
    """

    def __init__(self, labels: Shaped[Tensor, "n ..."], *, batch_size: int, seed: int) -> None:
        check_batch_size("sampler/uniform", batch_size, largest=len(labels), unit="samples")
        self.n, self.batch_size, self.seed = len(labels), batch_size, seed
        self.steps_per_epoch = self.n // batch_size

    def epoch_order(self, epoch: int) -> EpochOrder:
        """A keyed permutation of all samples, cut to whole batches."""
        order = keys(seed=self.seed, epoch=epoch).child("sampler").permutation("order", self.n)[0]
        return without_repeats(order[: self.steps_per_epoch * self.batch_size])
