"""Hard-negative batches: classes with similar mean embeddings together, since distant ones give small gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from mmcon.errors import CheckpointError, InputError
from mmcon.random import keys
from mmcon.registry import register_sampler
from mmcon.samplers.base import BatchSampler, EpochOrder
from mmcon.samplers.class_streams import ClassStreams, number_classes
from mmcon.samplers.validation import check_labels, split_batch


@final
@register_sampler("sampler/hard-classes")
class HardClassSampler(BatchSampler):
    """P classes × K samples, where the classes of a batch are neighbors in a snapshot of the embeddings.

    Classes are visited in rounds. A round is a greedy nearest-neighbor order of all classes, from a keyed first class
    on, and is cut into batches. The last batch of a round is filled from the start of the round; without these fill
    blocks, all classes are visited equally often. Without a snapshot a round is a keyed permutation.

    The snapshot is state: save `state_dict()` in the checkpoint together with the step, and restart the worker
    processes after a refresh (`loader.load_state_dict(loader.state_dict())`). Refresh only at the end of an epoch, so
    that a resumed run has the same batches as an uninterrupted one.

    Args:
        labels: the class of each sample.
        batch_size: samples in a global batch, P·K.
        seed: the seed of the run.
        classes_per_batch: P; or
        samples_per_class: K; with neither, as for sampler/class-aware.
    """

    def __init__(
        self,
        labels: Shaped[Tensor, " n"],
        *,
        batch_size: int,
        seed: int,
        classes_per_batch: int | None = None,
        samples_per_class: int | None = None,
    ) -> None:
        where = "sampler/hard-classes"
        labels = check_labels(where, labels)
        self.n_classes = len(number_classes(labels)[0])
        p, k = split_batch(where, self.n_classes, batch_size, classes_per_batch, samples_per_class)
        self.classes_per_batch, self.samples_per_class = p, k
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = max(1, len(labels) // batch_size)
        self.streams = ClassStreams(labels, block_size=k, seed=seed)
        self.snapshot: Float[Tensor, "c d"] | None = None

    def refresh(self, embeddings: Float[Tensor, "m d"], labels: Int[Tensor, " m"]) -> None:
        """Replace the snapshot by the mean direction of each class; a class without an embedding gets zeros.

        Raises:
            InputError: a label does not occur in the training data.
        """
        number = torch.searchsorted(self.streams.classes, labels.cpu()).clamp(max=self.n_classes - 1)
        if not torch.equal(self.streams.classes[number], labels.cpu()):
            raise InputError("sampler/hard-classes", expected="labels of the training data", got="others")
        directions = normalize(embeddings.detach().cpu().double(), dim=1)
        sums = torch.zeros(self.n_classes, directions.shape[1], dtype=torch.float64).index_add_(0, number, directions)
        self.snapshot = normalize(sums, dim=1).float()
        self._cached_epoch = None

    def state_dict(self) -> dict[str, Any]:
        """The snapshot, if there is one."""
        return {} if self.snapshot is None else {"snapshot": self.snapshot}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved snapshot.

        Raises:
            CheckpointError: the snapshot has another number of classes.
        """
        snapshot = state.get("snapshot")
        if snapshot is not None and len(snapshot) != self.n_classes:
            raise CheckpointError(
                "sampler/hard-classes",
                expected=f"a snapshot of {self.n_classes} classes",
                got=f"one of {len(snapshot)}",
            )
        self.snapshot, self._cached_epoch = snapshot, None

    def epoch_order(self, epoch: int) -> EpochOrder:
        """Rounds of neighboring classes, with the next K samples of each visited class."""
        p = self.classes_per_batch
        visits = self.steps_per_epoch * p
        per_round = -(-self.n_classes // p) * p
        rounds = [self._round(epoch, number)[:per_round] for number in range(-(-visits // per_round))]
        visited = torch.cat(rounds)[:visits]
        counts = torch.bincount(visited, minlength=self.n_classes)
        # A stream advances per epoch by the number of full rounds, so that its start has a closed form; fill blocks
        # are beyond that and are used again in the next epoch.
        start = torch.full_like(counts, epoch * max(1, visits // per_round))
        order = torch.argsort(visited, stable=True)
        slots = order // p * self.batch_size + order % p
        return self.streams.fill_slots(start, counts, slots, stride=p)

    def _round(self, epoch: int, number: int) -> Int[Tensor, " m"]:
        """Greedy nearest-neighbor order of the classes, repeated once for the fill blocks of the last batch."""
        order = keys(seed=self.seed, epoch=epoch, sample=number).child("sampler").permutation("walk", self.n_classes)[0]
        if self.snapshot is not None:
            unvisited = torch.ones(self.n_classes, dtype=torch.bool)
            current, walk = int(order[0]), []
            for _ in range(self.n_classes):
                walk.append(current)
                unvisited[current] = False
                similarity = self.snapshot @ self.snapshot[current]
                current = int(similarity.masked_fill(~unvisited, -torch.inf).argmax())
            order = torch.tensor(walk)
        return torch.cat([order, order])
