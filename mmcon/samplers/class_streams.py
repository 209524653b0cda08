"""Class streams: for each class an infinite sequence of keyed permutations of its samples, cut into blocks of K."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.random import keys

# Samples per key. The draws depend on this number, so it must never change.
_SAMPLES_PER_KEY = 1 << 20
# Samples that are sorted at once: enough to vectorize, few enough to limit memory.
_SAMPLES_PER_CHUNK = 1 << 18


class ClassStreams:
    """For every class an infinite sequence of keyed permutations (cycles) of its samples.

    At any time, the use counts of the samples of a class differ by at most one. The stream is cut into blocks of K; no
    block contains a sample twice unless the class has fewer than K samples. If a block spans two cycles, the samples at
    the end of the first cycle come later in the second. Classes too small for that (below 3(K-1) samples, unless K
    divides their number) keep one keyed order in all cycles.

    Args:
        labels: the class of each sample.
        block_size: K.
        seed: the seed of the run.

    Attributes:
        classes: the labels that occur, ascending.
        sizes: the number of samples of each.
    """

    def __init__(self, labels: Int[Tensor, " n"], *, block_size: int, seed: int) -> None:
        self.block_size, self.seed = block_size, seed
        self.classes, number, self.sizes = number_classes(labels)
        bits = _random_bits(len(self.classes))
        for start in range(0, len(labels), _SAMPLES_PER_KEY):
            chunk = number[start : start + _SAMPLES_PER_KEY]
            words = keys(seed=seed, epoch=start).child("sampler").bits("members", len(chunk))[0]
            chunk.copy_(_sort_keys(chunk, words, bits))
        # NumPy's sort needs half the memory of torch's; a sampler's memory peaks here.
        self.members = torch.from_numpy(number.numpy().argsort(kind="stable"))
        self.starts = offsets(self.sizes)
        k = block_size
        self.reshuffled = (self.sizes >= 3 * (k - 1)) & (self.sizes >= k) | (self.sizes % k == 0)

    def fill_slots(
        self, first: Int[Tensor, " c"], counts: Int[Tensor, " c"], slots: Int[Tensor, " m"], *, stride: int
    ) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"]]:
        """The next blocks of the streams, written to their slots in an epoch.

        Args:
            first: the first block of each class.
            counts: the number of blocks of each class.
            slots: the position of each block's first sample, grouped by class.
            stride: the distance between consecutive samples of a block.

        Returns:
            Indices into the source and occurrences, in the order of the epoch.
        """
        k = self.block_size
        indices, occurrence = torch.empty(2, len(slots) * k, dtype=torch.int64)
        done = 0
        for members, repeats in self.take(first * k, counts * k):
            chunk = slots[done : done + len(members) // k]
            positions = (chunk[:, None] + torch.arange(k) * stride).view(-1)
            indices[positions], occurrence[positions] = members, repeats
            done += len(chunk)
        return indices, occurrence

    def take(
        self, start: Int[Tensor, " c"], count: Int[Tensor, " c"]
    ) -> Iterator[tuple[Int[Tensor, " m"], Int[Tensor, " m"]]]:
        """The `count[i]` samples of class i from position `start[i]` of its stream on, grouped by class, in chunks.

        Yields:
            Indices into the source, and the number of earlier uses of each in this call.
        """
        first, last = start // self.sizes, (start + count - 1) // self.sizes
        # The beginning of a cycle depends on the end of the cycle before it.
        depends = self.reshuffled & (start % self.sizes < 2 * (self.block_size - 1))
        first = torch.where(depends, first - 1, first).clamp(min=0)
        cycles = torch.where(count > 0, last - first + 1, 0)
        for chunk in _chunks(cycles * self.sizes):
            yield self._take(chunk, first[chunk], cycles[chunk], start[chunk], count[chunk])

    def _take(
        self,
        chunk: slice,
        first: Int[Tensor, " c"],
        cycles: Int[Tensor, " c"],
        start: Int[Tensor, " c"],
        count: Int[Tensor, " c"],
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
        """`take` for consecutive classes: `cycles` whole permutations of each, cut to the requested range."""
        owner = torch.repeat_interleave(torch.arange(len(cycles)), cycles)
        cycle = torch.arange(len(owner)) - offsets(cycles)[owner]
        sizes = self.sizes[chunk][owner]
        begins = offsets(sizes)
        member = self._permutations(chunk, owner, first[owner] + cycle, cycle, sizes, begins)
        entry = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        # Positions in the stream, counted from the first cycle of the class.
        position = (cycle * sizes - begins)[entry].add_(torch.arange(len(entry)))
        skip = start - first * self.sizes[chunk]
        of_class = owner[entry]
        wanted = (position >= skip[of_class]) & (position < (skip + count)[of_class])
        member, cycle, of_class = member[wanted], cycle[entry[wanted]], of_class[wanted]
        of_member = member + (self.starts[chunk] - self.starts[chunk][:1])[of_class]
        begin = (skip // self.sizes[chunk])[of_class]
        # A sample occurs once per cycle; its count is one higher if it also occurs in the cycle of the first sample.
        in_first = torch.zeros(int(self.sizes[chunk].sum()), dtype=torch.int64)
        in_first[of_member[cycle == begin]] = 1
        return self.members[of_member + int(self.starts[chunk][0])], cycle - begin - 1 + in_first[of_member]

    def _permutations(
        self,
        chunk: slice,
        owner: Int[Tensor, " p"],
        epoch: Int[Tensor, " p"],
        cycle: Int[Tensor, " p"],
        sizes: Int[Tensor, " p"],
        begins: Int[Tensor, " p"],
    ) -> Int[Tensor, " m"]:
        """Whole permutations, concatenated; each permutes 0 to the size of its class.

        Args:
            chunk: the classes.
            owner: the class of each permutation, relative to the chunk's first class.
            epoch: the cycle of each permutation in its stream, which is a field of its key.
            cycle: the cycle relative to the first one of the class in this call.
            sizes: the length of each permutation.
            begins: the offset of each permutation in the result.
        """
        table = keys(seed=self.seed, epoch=epoch, sample=self.classes[chunk][owner]).child("sampler")
        words = table.ragged_bits("cycle", sizes)
        entry = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        order = torch.argsort(_sort_keys(entry, words, _random_bits(len(sizes))))
        fixed = ~self.reshuffled[chunk][owner]
        if bool(fixed.any()):
            entries = fixed[entry]
            order[entries] = torch.arange(len(entry))[entries]
        member = order - begins[entry]
        follows = (cycle > 0) & ~fixed & (sizes % self.block_size != 0)
        if self.block_size > 1 and bool(follows.any()):
            self._avoid_repeats(member, order, begins, sizes, torch.nonzero(follows)[:, 0])
        return member

    def _avoid_repeats(
        self,
        member: Int[Tensor, " m"],
        order: Int[Tensor, " m"],
        begins: Int[Tensor, " p"],
        sizes: Int[Tensor, " p"],
        follows: Int[Tensor, " f"],
    ) -> None:
        """Avoid repeats within K samples at the boundary of two permutations.

        Of the first 2(K-1) entries of a permutation, those among the last K-1 of the previous one move to the end of
        these entries. Changes `member` in place, for the permutations `follows`.
        """
        reach = self.block_size - 1
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order))
        heads = begins[follows][:, None] + torch.arange(2 * reach)
        previous = begins[follows - 1][:, None]
        late = position[previous + member[heads]] - previous >= (sizes[follows] - reach)[:, None]
        member[heads] = torch.gather(member[heads], 1, torch.argsort(late.to(torch.int8), dim=1, stable=True))


def number_classes(labels: Int[Tensor, " n"]) -> tuple[Int[Tensor, " c"], Int[Tensor, " n"], Int[Tensor, " c"]]:
    """The labels that occur (ascending), the index of each sample's label among them, and the samples per label."""
    if int(labels.max()) < max(len(labels), 1 << 16):  # counting takes less time and memory than sorting
        sizes = torch.bincount(labels)
        classes = torch.nonzero(sizes)[:, 0]
        number = torch.cumsum(sizes > 0, 0) - 1
        return classes, number[labels], sizes[classes]
    return torch.unique(labels, return_inverse=True, return_counts=True)


def offsets(lengths: Int[Tensor, " c"]) -> Int[Tensor, " c"]:
    """The start of each segment in a concatenation of segments of these lengths."""
    return torch.cumsum(lengths, 0) - lengths


def _random_bits(groups: int) -> int:
    """The bits of a sort key that are free next to the group number."""
    return 63 - max(groups - 1, 1).bit_length()


def _sort_keys(group: Int[Tensor, " m"], words: Int[Tensor, " m"], bits: int) -> Int[Tensor, " m"]:
    """Sort keys by group, then by the upper random bits of a word: one sort shuffles all groups."""
    return (group << bits) | ((words >> (64 - bits)) & ((1 << bits) - 1))


def _chunks(lengths: Int[Tensor, " c"]) -> Iterator[slice]:
    """Consecutive classes whose permutations have about `_SAMPLES_PER_CHUNK` entries together."""
    ends = torch.cumsum(lengths, 0)
    start = 0
    while start < len(lengths):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, done + _SAMPLES_PER_CHUNK, right=True)))
        if int(ends[stop - 1]) > done:
            yield slice(start, stop)
        start = stop
