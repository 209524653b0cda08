"""Batches of classes that the embeddings confuse, since what is easily told apart teaches little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import CheckpointError, InputError
from mmcon.random import keys
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import block_shape, check_labels
from mmcon.samplers.class_streams import Streams, classes_of


@final
@register_sampler("sampler/hard-classes")
class HardClassSampler(BatchSampler):
    """P classes × K samples, where the classes of a batch are neighbours in a snapshot of the embeddings.

    Classes are visited in rounds, all of them in each: a walk from class to nearest unvisited class, from a keyed
    start, cut into batches. A round ends on a whole batch, filled up from its own beginning, so classes stand equally
    often, give or take these fillings. Until there is a snapshot the walk is a keyed permutation.

    The snapshot is declared state: put `state_dict()` into the checkpoint beside the step, and restart worker
    processes after a refresh (`loader.load_state_dict(loader.state_dict())`). Refresh at the end of an epoch alone, so
    that a resumed run plans as the one that was interrupted.

    Args:
        labels: `n` int64, the class of each sample.
        batch_size: rows in a global batch, P·K.
        seed: the run's seed.
        classes_per_batch: P; or
        samples_per_class: K; with neither as for sampler/class-aware.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        classes_per_batch: int | None = None,
        samples_per_class: int | None = None,
    ) -> None:
        where = "sampler/hard-classes"
        labels = check_labels(where, labels)
        known = len(classes_of(labels)[0])
        self.places, self.piece = block_shape(where, known, batch_size, classes_per_batch, samples_per_class)
        self.batch_size, self.seed, self.known = batch_size, seed, known
        self._steps = max(1, len(labels) // batch_size)
        self.streams = Streams(labels, piece=self.piece, seed=seed)
        self.snapshot: Tensor | None = None

    @property
    def steps_per_epoch(self) -> int:
        """As many batches as the data have rows for, one at least."""
        return self._steps

    def refresh(self, embeddings: Float[Tensor, "m d"], labels: Tensor) -> None:
        """Take a new snapshot: the mean direction of each class; a class without a row keeps to the origin."""
        number = torch.searchsorted(self.streams.classes, labels.cpu()).clamp(max=self.known - 1)
        if not torch.equal(self.streams.classes[number], labels.cpu()):
            raise InputError("sampler/hard-classes", expected="labels of the training data", got="others")
        rows = torch.nn.functional.normalize(embeddings.detach().cpu().double(), dim=1)
        means = torch.zeros(self.known, rows.shape[1], dtype=torch.float64).index_add_(0, number, rows)
        self.snapshot = torch.nn.functional.normalize(means, dim=1).float()
        self._planned = None

    def state_dict(self) -> dict[str, Any]:
        """The snapshot."""
        return {} if self.snapshot is None else {"snapshot": self.snapshot}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a snapshot that was saved."""
        snapshot = state.get("snapshot")
        if snapshot is not None and len(snapshot) != self.known:
            raise CheckpointError(
                "sampler/hard-classes", expected=f"a snapshot of {self.known} classes", got=f"one of {len(snapshot)}"
            )
        self.snapshot, self._planned = snapshot, None

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Rounds of neighbours, then the next samples of each class."""
        per_round = -(-self.known // self.places) * self.places
        total = self._steps * self.places
        rounds = -(-total // per_round)
        walks = [self._walk(epoch, number)[:per_round] for number in range(rounds)]
        classes = torch.cat(walks)[:total]
        turns = torch.bincount(classes, minlength=self.known)
        # Streams move on by what every class is sure to get; fillings draw ahead without moving it.
        start = torch.full_like(turns, epoch * max(1, total // per_round) * self.piece)
        slots = torch.argsort(classes, stable=True)
        batches, rows = slots // self.places, slots % self.places
        target = (batches * self.batch_size + rows)[:, None] + torch.arange(self.piece) * self.places
        positions, occurrence = torch.empty(2, total * self.piece, dtype=torch.int64)
        pieces = list(self.streams.take(start, turns * self.piece))
        positions[target.view(-1)] = torch.cat([taken for taken, _ in pieces])
        occurrence[target.view(-1)] = torch.cat([seen for _, seen in pieces])
        return positions, occurrence

    def _walk(self, epoch: int, number: int) -> Tensor:
        """All classes, each next to one that it is confused with, and then the first ones again."""
        order = keys(seed=self.seed, epoch=epoch, sample=number).child("sampler").permutation("walk", self.known)[0]
        if self.snapshot is not None:
            left = torch.ones(self.known, dtype=torch.bool)
            at, visited = int(order[0]), []
            for _ in range(self.known):
                visited.append(at)
                left[at] = False
                at = int((self.snapshot @ self.snapshot[at]).masked_fill(~left, -torch.inf).argmax())
            order = torch.tensor(visited)
        return torch.cat([order, order])
