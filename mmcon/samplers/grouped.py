"""Grouped batches: K samples of each of several groups, adjacent in the batch."""

from __future__ import annotations

from typing import final

from jaxtyping import Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder
from mmcon.samplers.block_schedule import BlockSchedule
from mmcon.samplers.class_streams import number_classes
from mmcon.samplers.validation import check_labels


@final
@register_sampler("sampler/groups")
class GroupSampler(BatchSampler):
    """K adjacent samples of each of `batch_size / K` groups, such as documents, speakers or data sets.

    Args:
        labels: the group of each sample.
        batch_size: samples in a global batch.
        seed: the seed of the run.
        samples_per_group: K; with the batch size itself, every batch comes from one group.
        tempering: a group of size n is sampled in proportion to n^tempering: 1 natural, 0 all groups equally.
    """

    def __init__(
        self,
        labels: Shaped[Tensor, " n"],
        *,
        batch_size: int,
        seed: int,
        samples_per_group: int,
        tempering: float = 1.0,
    ) -> None:
        where = "sampler/groups"
        labels = check_labels(where, labels)
        groups, k = len(number_classes(labels)[0]), max(1, samples_per_group)
        if samples_per_group < 1 or batch_size % k or batch_size // k > groups:
            raise InputError(
                where,
                expected=f"batch_size as a multiple of samples_per_group, at most {groups} times, the number of groups",
                got=f"batch_size={batch_size}, samples_per_group={samples_per_group}",
                fix=f"batch_size={max(1, min(groups, batch_size // k)) * k}",
            )
        self.batch_size, self.seed = batch_size, seed
        self.schedule = BlockSchedule(
            labels, blocks_per_batch=batch_size // k, block_size=k, exponent=tempering, seed=seed, contiguous=True
        )
        self.steps_per_epoch = self.schedule.steps

    def epoch_order(self, epoch: int) -> EpochOrder:
        """Blocks of K adjacent samples of one group."""
        return self.schedule.epoch_order(epoch)
