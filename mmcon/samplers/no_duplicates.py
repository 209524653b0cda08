"""Batches without duplicates: at most one sample of each key."""

from __future__ import annotations

from typing import final

from jaxtyping import Shaped
from torch import Tensor

from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder
from mmcon.samplers.block_schedule import BlockSchedule
from mmcon.samplers.class_streams import number_classes
from mmcon.samplers.validation import check_batch_size, check_labels


@final
@register_sampler("sampler/no-duplicates")
class NoDuplicatesSampler(BatchSampler):
    """Batches in which no two samples share a key.

    In the same batch, equal texts or two captions of one image would be false negatives of one another.

    Args:
        labels: the key of each sample, such as mmcon.random.stable_ids of the texts, made non-negative by
            torch.unique(..., return_inverse=True).
        batch_size: samples in a global batch, at most the number of different keys.
        seed: the seed of the run.
    """

    def __init__(self, labels: Shaped[Tensor, " n"], *, batch_size: int, seed: int) -> None:
        where = "sampler/no-duplicates"
        labels = check_labels(where, labels)
        check_batch_size(where, batch_size, largest=len(number_classes(labels)[0]), unit="different keys")
        self.batch_size, self.seed = batch_size, seed
        self.schedule = BlockSchedule(labels, blocks_per_batch=batch_size, block_size=1, exponent=1.0, seed=seed)
        self.steps_per_epoch = self.schedule.steps

    def epoch_order(self, epoch: int) -> EpochOrder:
        """Blocks of one sample, all of different keys in a batch."""
        return self.schedule.epoch_order(epoch)
