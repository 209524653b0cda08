"""Fixed-order batches: one permutation for all epochs."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.random import keys
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder, without_repeats
from mmcon.samplers.validation import check_batch_size


@final
@register_sampler("sampler/fixed-order")
class FixedOrderSampler(BatchSampler):
    """One keyed permutation for all epochs, read cyclically.

    Each epoch continues at the end of the previous one, so samples of an incomplete last batch are first in the next.

    Args:
        labels: any tensor with one entry per sample; only its length is used.
        batch_size: samples in a global batch.
        seed: the seed of the run.
    """

    def __init__(self, labels: Shaped[Tensor, "n ..."], *, batch_size: int, seed: int) -> None:
        check_batch_size("sampler/fixed-order", batch_size, largest=len(labels), unit="samples")
        self.n, self.batch_size, self.seed = len(labels), batch_size, seed
        self.steps_per_epoch = self.n // batch_size

    def epoch_order(self, epoch: int) -> EpochOrder:
        """The next consecutive range of the cyclic permutation."""
        order = keys(seed=self.seed).child("sampler").permutation("order", self.n)[0]
        samples = self.steps_per_epoch * self.batch_size
        return without_repeats(order[(epoch * samples + torch.arange(samples)) % self.n])
