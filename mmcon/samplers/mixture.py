"""Mixtures of data sets: each batch comes from one of them."""

from __future__ import annotations

from typing import final

from jaxtyping import Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder
from mmcon.samplers.block_schedule import BlockSchedule
from mmcon.samplers.validation import check_batch_size, check_labels


@final
@register_sampler("sampler/mixture")
class MixtureSampler(BatchSampler):
    """Several data sets in one run, each batch from one of them, so negatives never differ merely by data set.

    To mix data sets within a batch, use sampler/class-aware with the data set as the class.

    Args:
        labels: the data set of each sample.
        batch_size: samples in a global batch.
        seed: the seed of the run.
        order: the frequency of data sets: "proportional" to their size n; "round-robin", in turn, with small data sets
            repeated; "temperature", in proportion to n^(1/temperature).
        temperature: for order "temperature"; 1 is proportional, a larger one is closer to uniform.
    """

    def __init__(
        self,
        labels: Shaped[Tensor, " n"],
        *,
        batch_size: int,
        seed: int,
        order: str = "proportional",
        temperature: float = 2.0,
    ) -> None:
        where = "sampler/mixture"
        labels = check_labels(where, labels)
        # All exponents are computed for every order, so that a temperature of 0 must not divide by zero.
        exponents = {"proportional": 1.0, "round-robin": 0.0, "temperature": 1.0 / max(temperature, 1e-9)}
        if order not in exponents:
            raise InputError(where, expected=f"order among {sorted(exponents)}", got=repr(order), fix="choose one")
        check_batch_size(where, batch_size, largest=len(labels), unit="samples")
        self.batch_size, self.seed = batch_size, seed
        self.schedule = BlockSchedule(
            labels,
            blocks_per_batch=1,
            block_size=batch_size,
            exponent=exponents[order],
            seed=seed,
            round_robin=order == "round-robin",
        )
        self.steps_per_epoch = self.schedule.steps

    def epoch_order(self, epoch: int) -> EpochOrder:
        """One block of one data set per batch."""
        return self.schedule.epoch_order(epoch)
