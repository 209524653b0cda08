"""The P×K sampler: P classes × K samples in every global batch, at a chosen class frequency.

`block_schedule` chooses the classes of each batch, and `class_streams` the samples of each class.
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder
from mmcon.samplers.block_schedule import BlockSchedule
from mmcon.samplers.class_streams import number_classes
from mmcon.samplers.validation import check_labels, split_batch


@final
@register_sampler("sampler/class-aware")
class ClassAwareSampler(BatchSampler):
    """P different classes × K samples in every global batch.

    The guarantee (at least two classes, at least two samples of each) holds for the *global* batch at any world size,
    since losses gather. Over the epochs, the number of blocks of each class deviates from its share by less than one
    per epoch, and the use counts of the samples of a class differ by at most one. A class with fewer than K samples
    repeats them; repeats have different occurrence numbers, and therefore independent views.

    Args:
        labels: the class of each sample.
        batch_size: samples in a global batch, P·K.
        seed: the seed of the run.
        classes_per_batch: P; or
        samples_per_class: K. With neither, P is the largest divisor of the batch size that leaves at least four
            samples per class (two, if no divisor leaves four) and is at most the number of classes.
        frequencies: how often a class is in a batch: "natural" in proportion to its size n, "balanced" all classes
            equally, "tempered" in proportion to n^alpha. A class is in a batch at most once; the share of a large
            class beyond that goes to the other classes in proportion.
        alpha: the exponent of "tempered".
        whole_classes: a world size; each rank's shard then holds whole classes (at least two), for losses that do
            not gather. 0 spreads every class evenly over the batch.
    """

    def __init__(
        self,
        labels: Shaped[Tensor, " n"],
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
        exponent = {"natural": 1.0, "balanced": 0.0, "tempered": alpha}.get(frequencies)
        if exponent is None:
            raise InputError(
                where, expected="frequencies natural, balanced or tempered", got=repr(frequencies), fix="choose one"
            )
        classes = len(number_classes(labels)[0])
        p, k = split_batch(where, classes, batch_size, classes_per_batch, samples_per_class)
        _check_whole_classes(where, p, whole_classes)
        self.batch_size, self.seed, self.frequencies, self.whole_classes = batch_size, seed, frequencies, whole_classes
        self.classes_per_batch, self.samples_per_class = p, k
        self.schedule = BlockSchedule(
            labels, blocks_per_batch=p, block_size=k, exponent=exponent, seed=seed, contiguous=bool(whole_classes)
        )
        self.steps_per_epoch = self.schedule.steps

    @property
    def uses_per_epoch(self) -> Float[Tensor, " c"]:
        """The expected uses of a sample per epoch, for each class in ascending order of labels."""
        return self.schedule.uses_per_epoch

    def epoch_order(self, epoch: int) -> EpochOrder:
        """P blocks of K samples of one class per batch."""
        return self.schedule.epoch_order(epoch)


def _check_whole_classes(where: str, classes_per_batch: int, world_size: int) -> None:
    if world_size < 0 or (world_size and (classes_per_batch % world_size or classes_per_batch // world_size < 2)):
        raise InputError(
            where,
            expected="classes_per_batch as a multiple of whole_classes, at least two classes per rank",
            got=f"classes_per_batch={classes_per_batch}, whole_classes={world_size}",
            fix=f"classes_per_batch={max(2, round(classes_per_batch / max(world_size, 1))) * max(world_size, 1)}",
        )
