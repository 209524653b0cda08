"""The schedule of P×K batches: the number of blocks of each class in an epoch, their batches, and their samples.

A *block* is K samples of one class in one batch; a batch consists of P blocks. The schedule has three steps. Each is
exact, not only correct in expectation, and depends only on the seed and the epoch:

1. *Quotas*: every class has a share of the blocks of an epoch; its quota is the share rounded down or up.
2. *Batches*: McNaughton's wrap-around rule. The quotas of the classes are laid end to end and cut into P slots, each
   with one block per batch. A quota is at most one slot long, so no class is in a batch twice. Each slot is then
   shuffled.
3. *Samples*: every class has an infinite stream of its samples, a sequence of keyed permutations, and each block takes
   the next K of them. The start of an epoch in a stream has a closed form, so resuming needs no replay.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.random import Keys, keys
from mmcon.samplers.base import EpochOrder
from mmcon.samplers.class_streams import ClassStreams, offsets

# Shares are whole multiples of this fraction of a block, so that their sums are exact.
_UNITS_PER_BLOCK = 1 << 32


class BlockSchedule:
    """The samples of every epoch, for batches of P blocks of K samples.

    Args:
        labels: the class of each sample.
        blocks_per_batch: P.
        block_size: K.
        exponent: a class of size n gets blocks in proportion to n^exponent.
        seed: the seed of the run.
        contiguous: whether the K samples of a block are adjacent in the batch; otherwise they are P apart, so that
            every rank's shard gets some of them.
        round_robin: with one block per batch, classes take turns.

    Attributes:
        steps: batches in an epoch: the number of samples over the batch size, rounded down, at least one; with
            `round_robin`, rounded down to a multiple of the number of classes.
        share: the mean number of blocks of each class in a batch.
    """

    def __init__(
        self,
        labels: Int[Tensor, " n"],
        *,
        blocks_per_batch: int,
        block_size: int,
        exponent: float,
        seed: int,
        contiguous: bool = False,
        round_robin: bool = False,
    ) -> None:
        self.blocks_per_batch, self.block_size, self.seed = blocks_per_batch, block_size, seed
        self.contiguous, self.round_robin = contiguous, round_robin
        self.steps = max(1, len(labels) // (blocks_per_batch * block_size))
        self.streams = ClassStreams(labels, block_size=block_size, seed=seed)
        if round_robin:
            classes = len(self.streams.classes)
            self.steps = max(1, self.steps // classes) * classes
        self.share: Float[Tensor, " c"] = block_shares(self.streams.sizes.double() ** exponent, blocks_per_batch)
        self.quotas = BlockQuotas(self.share, steps=self.steps, blocks_per_batch=blocks_per_batch, seed=seed)

    @property
    def uses_per_epoch(self) -> Float[Tensor, " c"]:
        """The expected uses of a sample per epoch, by class."""
        return self.share * (self.steps * self.block_size) / self.streams.sizes

    def epoch_order(self, epoch: int) -> EpochOrder:
        """The samples of an epoch in the order of its batches."""
        quotas = self.quotas.during(epoch)
        if self.round_robin:
            cells = torch.arange(self.steps).view(-1, len(quotas)).T.reshape(-1)
        else:
            cells = assign_batches(
                quotas, steps=self.steps, blocks_per_batch=self.blocks_per_batch, seed=self.seed, epoch=epoch
            )
        slots, batches = cells // self.steps, cells % self.steps
        slot_width, stride = (self.block_size, 1) if self.contiguous else (1, self.blocks_per_batch)
        # In place, to save memory: for blocks of one sample these are as long as the epoch.
        starts = batches.mul_(self.blocks_per_batch * self.block_size).add_(slots.mul_(slot_width))
        return self.streams.fill_slots(self.quotas.before(epoch), quotas, starts, stride=stride)


# --- quotas ----------------------------------------------------------------------------------------------------------


def block_shares(weights: Float[Tensor, " c"], blocks_per_batch: int) -> Float[Tensor, " c"]:
    """The mean number of blocks of each class in a batch, float64: in proportion to the weights, at most 1.

    A class is in a batch at most once. Its share beyond 1 goes to the other classes in proportion, so that all shares
    sum to `blocks_per_batch`.
    """
    weights = weights.to(torch.float64)
    share = torch.ones_like(weights)
    below_one = torch.ones(len(weights), dtype=torch.bool)
    while bool(below_one.any()):
        remaining = blocks_per_batch - int((~below_one).sum())
        share[below_one] = weights[below_one] * (remaining / float(weights[below_one].sum()))
        capped = below_one & (share >= 1)
        if not bool(capped.any()):
            break
        share[capped], below_one[capped] = 1.0, False
    return share


class BlockQuotas:
    """The number of blocks of each class in an epoch: its share, rounded down or up, so that all blocks are used.

    Systematic sampling: the fractional parts of the shares are laid end to end and sampled at unit distance, with a
    keyed offset in each epoch; a class whose fraction contains a sampling point gets one more block. Counting past
    epochs needs only their sorted offsets, so the blocks before an epoch are known without computing past orders.

    Args:
        share: the result of `block_shares`.
        steps: batches in an epoch.
        blocks_per_batch: P.
        seed: the seed of the run.
    """

    def __init__(self, share: Float[Tensor, " c"], *, steps: int, blocks_per_batch: int, seed: int) -> None:
        most = steps * _UNITS_PER_BLOCK
        units = (share * steps * _UNITS_PER_BLOCK + 0.5).to(torch.int64).clamp(max=most)
        # Rounding must neither lose nor add a block: the slots contain exactly steps × P blocks.
        units = _with_exact_sum(units, total=blocks_per_batch * most, most=most)
        self.base, fraction = units // _UNITS_PER_BLOCK, units % _UNITS_PER_BLOCK
        ends = torch.cumsum(fraction, 0)
        self._whole, self._rest = ends // _UNITS_PER_BLOCK, ends % _UNITS_PER_BLOCK
        self.seed = seed

    def before(self, epoch: int) -> Int[Tensor, " c"]:
        """The blocks in all epochs before this one."""
        return epoch * self.base + (self._extra(0, epoch) if epoch else 0)

    def during(self, epoch: int) -> Int[Tensor, " c"]:
        """The blocks in this epoch."""
        return self.base + self._extra(epoch, epoch + 1)

    def _extra(self, first: int, last: int) -> Int[Tensor, " c"]:
        """The blocks above `base` in the epochs from `first` to `last`, exclusive."""
        epochs = keys(seed=self.seed, epoch=torch.arange(first, last)).child("sampler")
        ticks = epochs.integers("tick", 0, _UNITS_PER_BLOCK).sort().values
        up_to = (last - first) * self._whole + torch.searchsorted(ticks, self._rest)
        return torch.diff(up_to, prepend=torch.zeros(1, dtype=torch.int64))


def _with_exact_sum(units: Int[Tensor, " c"], *, total: int, most: int) -> Int[Tensor, " c"]:
    """Distribute the rounding error (billionths of a block) to classes with room, so that the sum is `total`."""
    error = total - int(units.sum())
    room = (most - units) if error > 0 else units
    order = torch.argsort(room, descending=True, stable=True)
    before = offsets(room[order])
    change = (abs(error) - before).clamp(min=0).minimum(room[order])
    return units.index_add(0, order, change if error > 0 else -change)


# --- batches ---------------------------------------------------------------------------------------------------------


def assign_batches(
    quotas: Int[Tensor, " c"], *, steps: int, blocks_per_batch: int, seed: int, epoch: int
) -> Int[Tensor, " m"]:
    """The batch and slot of every block, with no class twice in a batch (McNaughton's wrap-around rule).

    The quotas of the classes, in keyed order, are laid end to end and cut into slots, which have one block per batch.

    Args:
        quotas: blocks of each class, at most `steps`; they sum to steps × P.
        steps: batches in the epoch.
        blocks_per_batch: P.
        seed: the seed of the run.
        epoch: the epoch.

    Returns:
        The cells `slot·steps + batch` of all blocks, grouped by class in the order of `quotas`.
    """
    order = keys(seed=seed, epoch=epoch).child("sampler").permutation("classes", len(quotas))[0]
    ordered = quotas[order]
    ends = torch.cumsum(ordered, 0)
    # A class that is cut at the end of a slot must not be twice in a batch: its last `head` blocks in a slot and its
    # first `tail` blocks in the next slot get different batches.
    cut = torch.arange(1, blocks_per_batch) * steps
    owner = torch.searchsorted(ends, cut, right=True)
    head, tail = torch.zeros(2, blocks_per_batch, dtype=torch.int64)
    head[1:] = cut - (ends[owner] - ordered[owner])
    tail[1:] = torch.where(head[1:] > 0, ends[owner] - cut, 0)
    slot_keys = keys(seed=seed, epoch=epoch, sample=torch.arange(blocks_per_batch)).child("sampler").child("row")
    cells = torch.empty(steps * blocks_per_batch, dtype=torch.int64)
    batches = torch.empty(0, dtype=torch.int64)
    for slot, (before, after) in enumerate(zip(head.tolist(), tail.tolist(), strict=True)):
        used = batches[len(batches) - before :]
        batches = _shuffled_slot(slot_keys[slot], steps, used, after)
        cells[slot * steps : (slot + 1) * steps] = slot * steps + batches
    starts = torch.empty_like(ends)
    starts[order] = ends - ordered
    within = torch.arange(steps * blocks_per_batch) - torch.repeat_interleave(offsets(quotas), quotas)
    return cells[torch.repeat_interleave(starts, quotas) + within]


def _shuffled_slot(key: Keys, steps: int, used: Int[Tensor, " u"], tail: int) -> Int[Tensor, " {steps}"]:
    """A permutation of all batches whose first `tail` entries are not in `used`."""
    order = torch.argsort(key.bits("batches", steps)[0])
    if not tail:
        return order
    taken = torch.zeros(steps, dtype=torch.bool)
    taken[used] = True
    first = order[~taken[order]][:tail]
    taken.zero_()[first] = True
    rest = torch.argsort(key.bits("others", steps)[0])
    return torch.cat([first, rest[~taken[rest]]])
