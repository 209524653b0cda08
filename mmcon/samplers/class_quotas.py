"""Places in batches: how many each class takes, in which batches, and the plan that follows.

Three steps, each exact rather than random on average, and each a function of the seed and the epoch alone:

1. *How often*: every class is due a share of the places in a batch; an epoch gives it the whole number below or above.
2. *Where*: classes are laid end to end on a line that is folded into P rows of one place a batch. No class is longer
   than a row, so none stands twice in a batch (McNaughton's wrap-around rule); each row is then shuffled.
3. *Which samples*: every class has an endless stream of its samples, one keyed permutation after another, from which
   each place takes the next K. Where an epoch begins in a stream has a closed form, so resuming replays nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcon.random import keys
from mmcon.samplers.class_streams import Streams

# Shares are whole multiples of this part of a place, so that their sums are exact.
_UNIT = 1 << 32

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


# --- together --------------------------------------------------------------------------------------------------------


class Blocks:
    """Epochs of batches of P places × K samples: how often, where and which, put together.

    Args:
        labels: `n` int64, the class of each row.
        places: P.
        piece: K.
        exponent: a class of size n is due places in proportion to n^exponent.
        seed: the run's seed.
        together: whether the K samples of a place stand side by side rather than P apart.
        in_turn: with one place a batch, classes take it in turn.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        places: int,
        piece: int,
        exponent: float,
        seed: int,
        together: bool = False,
        in_turn: bool = False,
    ) -> None:
        self.places, self.piece, self.seed, self.together, self.in_turn = places, piece, seed, together, in_turn
        self.steps = max(1, len(labels) // (places * piece))
        self.streams = Streams(labels, piece=piece, seed=seed)
        if in_turn:
            known = len(self.streams.classes)
            self.steps = max(1, self.steps // known) * known
        self.share = shares(self.streams.sizes.to(torch.float64) ** exponent, places)
        self.turns = Turns(self.share, steps=self.steps, places=places, seed=seed)

    @property
    def due(self) -> Tensor:
        """How many times an epoch a row of each class is due, `c` float64."""
        return self.share * (self.steps * self.piece) / self.streams.sizes

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Places for classes, then the next samples of each class's stream: rows and occurrences in order."""
        turns, before = self.turns.during(epoch), self.turns.before(epoch)
        if self.in_turn:
            cells = torch.arange(self.steps).view(-1, len(turns)).T.reshape(-1)
        else:
            cells = fold(turns, steps=self.steps, places=self.places, seed=self.seed, epoch=epoch)
        rows, batches = cells // self.steps, cells % self.steps
        # A class's samples stand together, or one in each P, so that every process gets some of them.
        within, stride = (self.piece, 1) if self.together else (1, self.places)
        slots = batches.mul_(self.places * self.piece).add_(rows.mul_(within))
        positions, occurrence = torch.empty(2, self.steps * self.places * self.piece, dtype=torch.int64)
        done = 0
        for taken, seen in self.streams.take(before * self.piece, turns * self.piece):
            here = slots[done : done + len(taken) // self.piece]
            target = (here[:, None] + torch.arange(self.piece) * stride).view(-1)
            positions[target], occurrence[target] = taken, seen
            done += len(here)
        return positions, occurrence
