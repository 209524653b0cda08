"""Class-aware batches: P classes × K samples, whoever else is in the data.

Three steps, each exact rather than random on average, and each a function of the seed and the epoch alone:

1. *How often*: every class is due a share of the places in a batch; an epoch gives it the whole number below or above.
2. *Where*: classes are laid end to end on a line that is folded into P rows of one place a batch. No class is longer
   than a row, so none stands twice in a batch (McNaughton's wrap-around rule); each row is then shuffled.
3. *Which samples*: every class has an endless stream of its samples, one keyed permutation after another, from which
   each place takes the next K. Where an epoch begins in a stream has a closed form, so resuming replays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from mmcon.data.samplers import BatchSampler
from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import register_sampler

# Shares are whole multiples of this part of a place, so that their sums are exact.
_UNIT = 1 << 32
# Rows that are sorted at once: large enough to vectorise, small enough for a cache and a modest memory.
_ROWS_AT_ONCE = 1 << 20


def check_labels(where: str, labels: Any) -> Tensor:
    """Class labels as a sampler takes them: one non-negative int64 a sample."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype != torch.int64 or not len(labels):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            where,
            expected="labels as an int64 tensor with one class number a sample",
            got=got,
            fix="number the classes, such as torch.tensor([classes.index(name) for name in names])",
        )
    missing = int((labels < 0).sum())
    if missing:
        raise InputError(
            where,
            expected="a class number >= 0 for every sample",
            got=f"{missing} of {len(labels)} labels below 0",
            fix="leave samples without a label out, or use sampler/uniform",
        )
    return labels.cpu()


# --- how often -------------------------------------------------------------------------------------------------------


def shares(weights: Tensor, places: int) -> Tensor:
    """Places due to each class in a batch, `c` float64: in proportion to weights, 1 at most, `places` in all.

    What a class cannot take, since it stands only once in a batch, goes to the others in proportion.
    """
    weights = weights.to(torch.float64)
    share = torch.ones_like(weights)
    open_ = torch.ones(len(weights), dtype=torch.bool)
    while bool(open_.any()):
        left = places - int((~open_).sum())
        share[open_] = weights[open_] * (left / float(weights[open_].sum()))
        full = open_ & (share >= 1)
        if not bool(full.any()):
            break
        share[full], open_[full] = 1.0, False
    return share


class Turns:
    """How many places each class takes in an epoch: its due, rounded down or up, so that all places are taken.

    The fractions stand end to end on a line with one tick a unit, shifted by a keyed offset each epoch (systematic
    sampling); a class gets one more place where a tick falls into its fraction. Past epochs are counted by sorting
    their offsets, so the places taken before an epoch are known without planning those epochs.

    Args:
        share: `c` float64, what `shares` gives.
        steps: batches in an epoch.
        places: classes in a batch.
        seed: the run's seed.
    """

    def __init__(self, share: Tensor, *, steps: int, places: int, seed: int) -> None:
        units = (share * steps * _UNIT + 0.5).to(torch.int64).clamp(max=steps * _UNIT)
        units = _repaired(units, total=steps * places * _UNIT, most=steps * _UNIT)
        self.base, fraction = units // _UNIT, units % _UNIT
        ends = torch.cumsum(fraction, 0)
        self._whole, self._rest = ends // _UNIT, ends % _UNIT
        self.seed = seed

    def _ticks(self, first: int, last: int) -> Tensor:
        """How many extra places each class takes in the epochs from `first` up to `last`."""
        epochs = keys(seed=self.seed, epoch=torch.arange(first, last)).child("sampler")
        offsets = epochs.integers("tick", 0, _UNIT).sort().values
        upto = (last - first) * self._whole + torch.searchsorted(offsets, self._rest)
        return torch.diff(upto, prepend=torch.zeros(1, dtype=torch.int64))

    def before(self, epoch: int) -> Tensor:
        """Places taken in all epochs before this one, `c` int64."""
        return epoch * self.base + (self._ticks(0, epoch) if epoch else 0)

    def during(self, epoch: int) -> Tensor:
        """Places taken in this epoch, `c` int64."""
        return self.base + self._ticks(epoch, epoch + 1)


def _repaired(units: Tensor, *, total: int, most: int) -> Tensor:
    """Spread what rounding left over (parts of a billionth of a place) where there is room."""
    error = total - int(units.sum())
    room = (most - units) if error > 0 else units
    order = torch.argsort(room, descending=True, stable=True)
    before = torch.cumsum(room[order], 0) - room[order]
    step = (abs(error) - before).clamp(min=0).minimum(room[order])
    return units.index_add(0, order, step if error > 0 else -step)


# --- where -----------------------------------------------------------------------------------------------------------


def fold(turns: Tensor, *, steps: int, places: int, seed: int, epoch: int) -> Tensor:
    """The batch of every place: classes end to end, in keyed order, on a line folded into rows of one place a batch.

    Args:
        turns: `c` int64, places of each class, `steps` at most; they sum to steps × places.
        steps: batches in the epoch.
        places: classes in a batch.
        seed: the run's seed.
        epoch: the epoch.

    Returns:
        `steps·places` int64: for class after class (in the order of `turns`), the cells that its places take; cell
        `row·steps + batch`.
    """
    key = keys(seed=seed, epoch=epoch).child("sampler")
    order = key.permutation("classes", len(turns))[0]
    length = turns[order]
    ends = torch.cumsum(length, 0)
    cells = torch.empty(steps * places, dtype=torch.int64)
    words = keys(seed=seed, epoch=epoch, sample=torch.arange(places)).child("sampler").child("row")
    # The class that goes on from one row into the next must not meet itself there: it takes only batches that are free.
    cut = torch.arange(1, places) * steps
    owner = torch.searchsorted(ends, cut, right=True)
    head = torch.zeros(places, dtype=torch.int64)
    head[1:] = cut - (ends[owner] - length[owner])
    tail = torch.zeros(places, dtype=torch.int64)
    tail[1:] = torch.where(head[1:] > 0, ends[owner] - cut, 0)
    previous = torch.empty(0, dtype=torch.int64)
    for row, (a, b) in enumerate(zip(head.tolist(), tail.tolist(), strict=True)):
        batches = _row(words[row], steps, previous[steps - a :] if a else previous[:0], b)
        cells[row * steps : (row + 1) * steps] = row * steps + batches
        previous = batches
    starts = torch.empty_like(ends)
    starts[order] = ends - length
    within = torch.arange(steps * places) - torch.repeat_interleave(torch.cumsum(turns, 0) - turns, turns)
    return cells[torch.repeat_interleave(starts, turns) + within]


def _row(key: Any, steps: int, taken: Tensor, tail: int) -> Tensor:
    """A shuffled row of batches whose first `tail` are none of those taken."""
    order = torch.argsort(key.bits("batches", steps)[0])
    if not tail:
        return order
    busy = torch.zeros(steps, dtype=torch.bool)
    busy[taken] = True
    first = order[~busy[order]][:tail]
    busy.zero_()[first] = True
    again = torch.argsort(key.bits("others", steps)[0])
    return torch.cat([first, again[~busy[again]]])


# --- which samples ---------------------------------------------------------------------------------------------------


class Streams:
    """An endless stream of samples for every class: one keyed permutation after another.

    At any time, the samples of a class have been seen equally often, give or take one. The stream is cut into pieces of
    K; no piece holds a sample twice unless the class has fewer than K. Where a piece lies across two permutations, the
    second lets samples that ended the first wait. Classes too small for that (below 3(K-1) samples, unless K
    divides their number) keep one keyed order in all cycles.

    Args:
        labels: `n` int64, see `check_labels`.
        piece: K.
        seed: the run's seed.

    Attributes:
        classes: `c` int64, the labels that occur, ascending.
        sizes: `c` int64, samples of each.
    """

    def __init__(self, labels: Tensor, *, piece: int, seed: int) -> None:
        self.piece, self.seed = piece, seed
        self.classes, of_row, self.sizes = _classes(labels)
        bits = 63 - max(len(self.classes) - 1, 1).bit_length()
        for at in range(0, len(labels), _ROWS_AT_ONCE):
            part = of_row[at : at + _ROWS_AT_ONCE]
            words = keys(seed=seed, epoch=at).child("sampler").bits("members", len(part))[0]
            part.copy_(_ranked(part, words, bits))
        self.members = torch.argsort(of_row)
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


def _classes(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


# --- the sampler -----------------------------------------------------------------------------------------------------


@final
@register_sampler("sampler/class-aware")
class ClassAwareSampler(BatchSampler):
    """P different classes × K samples in every global batch.

    The promise, two classes and two samples a class at least, holds on the *global* batch for any number of processes,
    since losses gather. Over the epochs each class takes its due number of places, give or take one, and each of its
    samples is seen equally often, give or take one. A class with fewer than K samples repeats them; repeats
    have occurrence numbers, and so views of their own.

    Args:
        labels: `n` int64, the class of each sample.
        batch_size: rows in a global batch, P·K.
        seed: the run's seed.
        classes_per_batch: P; or
        samples_per_class: K. With neither, P is the largest divisor of the batch size that leaves four samples a class
            (two, if none does) and is no more than the number of classes.
        frequencies: how often a class stands in a batch: "natural" in proportion to its size n, "balanced" all alike,
            "tempered" in proportion to n^alpha. A class stands once in a batch at most; what a large one cannot take
            goes to the others in proportion.
        alpha: the exponent of "tempered".
        whole_classes: a number of processes, each of which is to get whole classes (two at least), for losses that do
            not gather; 0 spreads every class evenly over the batch.
    """

    def __init__(
        self,
        labels: Tensor,
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
        self.batch_size, self.seed, self.frequencies = batch_size, seed, frequencies
        exponent = {"natural": 1.0, "balanced": 0.0, "tempered": alpha}.get(frequencies)
        if exponent is None:
            raise InputError(
                where, expected="frequencies natural, balanced or tempered", got=repr(frequencies), fix="choose one"
            )
        known = int(_classes(labels)[0].numel())
        self.classes_per_batch, self.samples_per_class = block_shape(
            where, known, batch_size, classes_per_batch, samples_per_class
        )
        self.whole_classes = whole_classes
        _check_whole(where, self.classes_per_batch, whole_classes)
        self._steps = max(1, len(labels) // batch_size)
        self.streams = Streams(labels, piece=self.samples_per_class, seed=seed)
        self.share = shares(self.streams.sizes.to(torch.float64) ** exponent, self.classes_per_batch)
        self.turns = Turns(self.share, steps=self._steps, places=self.classes_per_batch, seed=seed)

    @property
    def steps_per_epoch(self) -> int:
        """As many batches as the data have rows for, one at least."""
        return self._steps

    @property
    def due(self) -> Tensor:
        """How many times an epoch a sample of each class is due, `c` float64, in the order of `streams.classes`."""
        return self.share * (self._steps * self.samples_per_class) / self.streams.sizes

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Places for classes, then the next samples of each class's stream."""
        turns, before = self.turns.during(epoch), self.turns.before(epoch)
        places, piece = self.classes_per_batch, self.samples_per_class
        cells = fold(turns, steps=self._steps, places=places, seed=self.seed, epoch=epoch)
        rows, batches = cells // self._steps, cells % self._steps
        # A class's samples stand together, or one in each P, so that every process gets some of them.
        within, stride = (piece, 1) if self.whole_classes else (1, places)
        slots = batches.mul_(self.batch_size).add_(rows.mul_(within))
        positions, occurrence = torch.empty(2, self._steps * self.batch_size, dtype=torch.int64)
        done = 0
        for taken, seen in self.streams.take(before * piece, turns * piece):
            here = slots[done : done + len(taken) // piece]
            target = (here[:, None] + torch.arange(piece) * stride).view(-1)
            positions[target], occurrence[target] = taken, seen
            done += len(here)
        return positions, occurrence


def block_shape(
    where: str, known: int, batch_size: int, classes_per_batch: int | None, samples_per_class: int | None
) -> tuple[int, int]:
    """P and K from what was given of them, refused unless P·K is the batch size and P classes exist."""
    if known < 2:
        raise InputError(
            where,
            expected="two classes or more",
            got=f"{known} class",
            fix="bring more classes, or train without labels: sampler/uniform with affinity.SameSample",
        )
    p, k = classes_per_batch, samples_per_class
    if p is None and k is None:
        divisors = [d for d in range(2, min(known, batch_size // 2) + 1) if batch_size % d == 0]
        roomy = [d for d in divisors if batch_size // d >= 4]
        p = max(roomy or divisors, default=0)
    if p is None:
        p = batch_size // k if k else 0
    if k is None:
        k = batch_size // p if p else 0
    if p < 2 or k < 2 or p * k != batch_size:
        raise InputError(
            where,
            expected="batch_size = classes_per_batch × samples_per_class, both 2 or more",
            got=f"batch_size={batch_size}, classes_per_batch={classes_per_batch}, "
            f"samples_per_class={samples_per_class}",
            fix=_nearest_shape(known, batch_size, classes_per_batch, samples_per_class),
        )
    if p > known:
        raise InputError(
            where,
            expected=f"classes_per_batch <= {known}, the number of classes",
            got=f"classes_per_batch={p} (batch_size={batch_size}, samples_per_class={k})",
            fix=_nearest_shape(known, batch_size, min(p, known), None),
        )
    return p, k


def _nearest_shape(known: int, batch_size: int, p: int | None, k: int | None) -> str:
    """The batch size nearest to the one wished for that fits, as an instruction."""
    if p is None and k is not None:
        k = max(k, 2)
        p = min(max(batch_size // k, 2), known)
    p = min(max(p or 2, 2), known)
    k = max(k or round(batch_size / p), 2)
    return f"batch_size={p * k}, classes_per_batch={p}, samples_per_class={k}"


def _check_whole(where: str, places: int, processes: int) -> None:
    if processes < 0 or (processes and (places % processes or places // processes < 2)):
        raise InputError(
            where,
            expected="classes_per_batch as a multiple of whole_classes, two classes a process at least",
            got=f"classes_per_batch={places}, whole_classes={processes}",
            fix=f"classes_per_batch={max(2, round(places / max(processes, 1))) * max(processes, 1)}",
        )
