"""Endless streams of samples by class: one keyed permutation after another, cut into pieces of K."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmcon.random import keys

# Rows that one key numbers at a time: part of what is drawn, so never to be changed.
_ROWS_PER_KEY = 1 << 20
# Rows of whole permutations that are sorted at once: large enough to vectorise, small enough for a modest memory.
_ROWS_AT_ONCE = 1 << 18


class Streams:
    """An endless stream of samples for every class: one keyed permutation after another.

    At any time, the samples of a class have been seen equally often, give or take one. The stream is cut into pieces of
    K; no piece holds a sample twice unless the class has fewer than K. Where a piece lies across two permutations, the
    second lets samples that ended the first wait. Classes too small for that (below 3(K-1) samples, unless K
    divides their number) keep one keyed order in all cycles.

    Args:
        labels: `n` int64, class numbers.
        piece: K.
        seed: the run's seed.

    Attributes:
        classes: `c` int64, the labels that occur, ascending.
        sizes: `c` int64, samples of each.
    """

    def __init__(self, labels: Tensor, *, piece: int, seed: int) -> None:
        self.piece, self.seed = piece, seed
        self.classes, of_row, self.sizes = classes_of(labels)
        bits = 63 - max(len(self.classes) - 1, 1).bit_length()
        for at in range(0, len(labels), _ROWS_PER_KEY):
            part = of_row[at : at + _ROWS_PER_KEY]
            words = keys(seed=seed, epoch=at).child("sampler").bits("members", len(part))[0]
            part.copy_(_ranked(part, words, bits))
        # NumPy's sort, which needs half the memory of torch's: this is where a sampler's memory peaks.
        self.members = torch.from_numpy(of_row.numpy().argsort(kind="stable"))
        self.starts = torch.cumsum(self.sizes, 0) - self.sizes
        self.reshuffled = (self.sizes >= 3 * (piece - 1)) & (self.sizes >= piece) | (self.sizes % piece == 0)

    def take(self, start: Tensor, count: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The `count[i]` samples of class i from place `start[i]` of its stream, class after class, some at a time.

        Yields:
            Rows of the source and their occurrence within what is taken, both int64.
        """
        first, last = start // self.sizes, (start + count - 1) // self.sizes
        # The permutation before the first decides its beginning.
        first = torch.where(self.reshuffled & (start % self.sizes < 2 * (self.piece - 1)), first - 1, first).clamp(
            min=0
        )
        cycles = torch.where(count > 0, last - first + 1, 0)
        for part in _runs(cycles * self.sizes):
            yield self._take(part, first[part], cycles[part], start[part], count[part])

    def _take(self, part: slice, first: Tensor, cycles: Tensor, start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """`take` for consecutive classes: `cycles` whole permutations of each, then the stretch that is asked for."""
        owner = torch.repeat_interleave(torch.arange(len(cycles)), cycles)
        turn = torch.arange(len(owner)) - (torch.cumsum(cycles, 0) - cycles)[owner]
        sizes = self.sizes[part][owner]
        begins = torch.cumsum(sizes, 0) - sizes
        member = self._permutations(part, owner, first[owner] + turn, turn, sizes, begins)
        entry = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        # Places in the stream, counted from the first permutation of the class.
        place = (turn * sizes - begins)[entry].add_(torch.arange(len(entry)))
        skip = start - first * self.sizes[part]
        of_class = owner[entry]
        wanted = (place >= skip[of_class]) & (place < (skip + count)[of_class])
        member, cycle, of_class = member[wanted], turn[entry[wanted]], of_class[wanted]
        of_member = member + (self.starts[part] - self.starts[part][:1])[of_class]
        begin = (skip // self.sizes[part])[of_class]
        # A sample stands once a cycle; it is ahead by one if it already stood in the cycle where the stretch begins.
        in_first = torch.zeros(int(self.sizes[part].sum()), dtype=torch.int64)
        in_first[of_member[cycle == begin]] = 1
        return self.members[of_member + int(self.starts[part][0])], cycle - begin - 1 + in_first[of_member]

    def _permutations(
        self, part: slice, owner: Tensor, cycle: Tensor, turn: Tensor, sizes: Tensor, begins: Tensor
    ) -> Tensor:
        """Whole permutations one after another, each by the numbers of its class's members."""
        table = keys(seed=self.seed, epoch=cycle, sample=self.classes[part][owner]).child("sampler")
        words = table.ragged_bits("cycle", sizes)
        entry = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        bits = 63 - max(len(sizes) - 1, 1).bit_length()
        order = torch.argsort(_ranked(entry, words, bits))
        fixed = ~self.reshuffled[part][owner]
        if bool(fixed.any()):
            rows = fixed[entry]
            order[rows] = torch.arange(len(entry))[rows]
        member = order - begins[entry]
        follows = (turn > 0) & ~fixed & (sizes % self.piece != 0)
        if self.piece > 1 and bool(follows.any()):
            self._let_wait(member, order, begins, sizes, torch.nonzero(follows)[:, 0])
        return member

    def _let_wait(self, member: Tensor, order: Tensor, begins: Tensor, sizes: Tensor, follows: Tensor) -> None:
        """Among the first 2(K-1) of a permutation, put those last that were among the last K-1 of the one before."""
        reach = self.piece - 1
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        rows = begins[follows][:, None] + torch.arange(2 * reach)
        before = begins[follows - 1][:, None]
        late = place[before + member[rows]] - before >= (sizes[follows] - reach)[:, None]
        member[rows] = torch.gather(member[rows], 1, torch.argsort(late.to(torch.int8), dim=1, stable=True))


def classes_of(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The labels that occur, the number of each row's among them, and how many rows each has."""
    if int(labels.max()) < max(len(labels), 1 << 16):
        sizes = torch.bincount(labels)
        classes = torch.nonzero(sizes)[:, 0]
        number = torch.cumsum(sizes > 0, 0) - 1
        return classes, number[labels], sizes[classes]
    return torch.unique(labels, return_inverse=True, return_counts=True)


def _ranked(group: Tensor, words: Tensor, bits: int) -> Tensor:
    """One sortable number a row: its group, then the first random bits of its word."""
    return (group << bits) | ((words >> (64 - bits)) & ((1 << bits) - 1))


def _runs(weights: Tensor) -> Iterator[slice]:
    """Consecutive stretches of classes of about `_ROWS_AT_ONCE` rows each."""
    ends = torch.cumsum(weights, 0)
    at = 0
    while at < len(weights):
        reach = (int(ends[at - 1]) if at else 0) + _ROWS_AT_ONCE
        to = max(at + 1, int(torch.searchsorted(ends, reach, right=True)))
        if int(ends[to - 1]) > (int(ends[at - 1]) if at else 0):
            yield slice(at, to)
        at = to
