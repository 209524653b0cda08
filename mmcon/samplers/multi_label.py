"""Multi-label batches: P labels × K samples with the label; a sample may have several labels."""

from __future__ import annotations

from typing import final

import torch

from mmcon.batch import Numbers, as_column
from mmcon.errors import InputError
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder
from mmcon.samplers.block_schedule import BlockSchedule
from mmcon.samplers.class_streams import number_classes
from mmcon.samplers.validation import split_batch


@final
@register_sampler("sampler/multi-label")
class MultiLabelSampler(BatchSampler):
    """P different labels × K samples with the label, for samples with several labels.

    The rarest label of a sample is its class for the sampler. So rare labels keep their samples, and all samples are
    used equally often. The affinity (MultiLabel) accounts for the other labels that two samples share.

    Args:
        labels: the labels of each sample, at least one; a tensor, an array or lists.
        batch_size: samples in a global batch, P·K.
        seed: the seed of the run.
        labels_per_batch: P; or
        samples_per_label: K; with neither, as for sampler/class-aware.
    """

    def __init__(
        self,
        labels: Numbers,
        *,
        batch_size: int,
        seed: int,
        labels_per_batch: int | None = None,
        samples_per_label: int | None = None,
    ) -> None:
        where = "sampler/multi-label"
        matrix = as_column(f"{where}, labels", labels)
        if matrix.dim() != 2 or matrix.dtype != torch.bool:
            raise InputError(
                where,
                expected="labels as a boolean matrix `n c`, a row a sample",
                got=f"{matrix.dtype} of shape {tuple(matrix.shape)}",
                fix="for 0 and 1: labels.bool(); for one label a sample: sampler/class-aware",
            )
        unlabeled = int((~matrix.any(1)).sum())
        if unlabeled or not len(matrix):
            raise InputError(
                where,
                expected="at least one label for every sample",
                got=f"{unlabeled} of {len(matrix)} samples without",
                fix="leave them out: labels[labels.any(1)], and the same samples of the source",
            )
        counts = matrix.sum(0)
        rarest = torch.where(matrix, counts, counts.max() + 1).argmin(1)
        classes = len(number_classes(rarest)[0])
        p, k = split_batch(where, classes, batch_size, labels_per_batch, samples_per_label)
        self.batch_size, self.seed = batch_size, seed
        self.schedule = BlockSchedule(rarest, blocks_per_batch=p, block_size=k, exponent=1.0, seed=seed)
        self.steps_per_epoch = self.schedule.steps

    def epoch_order(self, epoch: int) -> EpochOrder:
        """P blocks of K samples of one label per batch."""
        return self.schedule.epoch_order(epoch)
