"""The small real training that faults befall: everything that a checkpoint must hold takes part in it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel
from mmcon.batch import ViewBatch
from mmcon.loading.loader import ViewLoader
from mmcon.models.ema import MomentumEncoder
from mmcon.objective.objective import Objective
from mmcon.objective.queue import Queue
from mmcon.random import Keys
from mmcon.samplers.hard_classes import HardClassSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Subset
from mmcon.sources.factory import create_source
from mmcon.training.run import Run, RunSettings
from mmcon.views import Chain, Meta, Params, ViewGenerator

STEPS_PER_EPOCH, EPOCHS, EVERY = 6, 2, 4
STEPS = STEPS_PER_EPOCH * EPOCHS
SEED = 3


@final
class Echo(ViewGenerator):
    """A stateful view: a share of the mean of the batch before is added to each image."""

    modality: ClassVar[str] = "image"
    scope: ClassVar[Any] = "stateful"

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the share."""
        return {"share": keys.uniform("share", 0.0, 0.2)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add, then remember."""
        before, self._before = self._before, batch.mean(0)
        return batch if before is None else batch + params["share"].to(batch)[:, None, None, None] * before

    def state_dict(self) -> dict[str, Tensor]:
        """The mean of the last batch."""
        return {} if self._before is None else {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        self._before = state.get("before")


@final
class Fatal(ViewGenerator):
    """A view that ends its process at one sample, as a broken decoder does."""

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(self, sample: int) -> None:
        self.sample = sample

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Know who comes."""
        return {"sample": keys.fields[:, 2]}

    def apply(self, batch: Any, params: Params) -> Any:
        """Die, or leave the samples as they are."""
        if bool((params["sample"] == self.sample).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


class Network(nn.Module):
    """28 × 28 pixels to a unit embedding of 8, in float64; with dropout the random state counts."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        layers = nn.Linear(784, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 8)
        self.layers = nn.Sequential(nn.Flatten(), *layers).double()

    def forward(self, batch: ViewBatch) -> dict[str, dict[str, Tensor]]:
        """Embeddings of all views."""
        pixels = torch.cat(batch.views["image"]).double()
        return {"shared": {"image": nn.functional.normalize(self.layers(pixels), dim=1)}}


def train(
    folder: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    stateful: bool = False,
    dropout: float = 0.1,
    fatal: int | None = None,
    epochs: int = EPOCHS,
    max_steps: int | None = None,
    after: Callable[[int], None] | None = None,
    trace: Path | None = None,
) -> None:
    """Train with queue and momentum encoder; every step leaves a line of hashes of all that it made.

    Args:
        folder: of the run.
        resume: go on from the newest checkpoint.
        workers: worker processes.
        stateful: with a view and a sampler that remember earlier steps.
        dropout: its probability.
        fatal: a sample that ends the process in which it is decoded.
        epochs: passes.
        max_steps: stop after so many.
        after: called after each step, before its checkpoint.
        trace: where the lines go, one file a process.
    """
    settings = RunSettings(epochs=epochs, max_steps=max_steps, log_every=1, checkpoint_every=EVERY, keep=4)
    run = Run(folder, seed=SEED, settings=settings, resume=resume, cpu=True)
    source = create_source("samples/fashion", split="train")
    source = Subset(source, range(0, len(source), 100))
    assert source.labels is not None
    if stateful:
        sampler = HardClassSampler(source.labels, batch_size=16, seed=SEED, classes_per_batch=4)
    else:
        sampler = UniformSampler(source.labels, batch_size=16, seed=SEED)
    crop = mmcon.create_view("image/crop-flip", size=28)
    parts = [Fatal(fatal)] if fatal is not None else []
    view = Chain(*parts, crop, *([Echo()] if stateful else []))
    loader = ViewLoader(
        source,
        {"image": [view, view]},
        sampler,
        seed=SEED,
        workers=workers,
        rank=run.rank,
        world_size=run.world_size,
    )
    model = Network(dropout)
    queue, momentum = Queue(size=32), MomentumEncoder(model, momentum=0.9)
    objective = Objective(affinity=SameLabel(), temperature=0.2, queue=queue)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    network = run.prepare(model, optimizer, schedule, objective=objective, queue=queue, momentum=momentum)
    lines: list[dict[str, Any]] = []
    for batch in run.batches(loader):
        embeddings = network(batch)
        loss = objective(embeddings, batch)
        run.step(loss)
        momentum.update(network)
        queue.push(momentum(batch), batch)
        if isinstance(sampler, HardClassSampler) and run.global_step % len(loader) == 0:
            sampler.refresh(embeddings["shared"]["image"], batch.index["image"]["label"])
            loader.load_state_dict({"step": run.global_step})
        table = batch.index["image"]
        lines.append(
            {
                "step": run.global_step,
                "loss": loss.item(),
                "state": _hash([*model.state_dict().values(), *momentum.state_dict().values()]),
                "queue": _hash([v for v in queue.state_dict().values() if isinstance(v, Tensor)]),
                "pixels": _hash(batch.views["image"]),
                "order": _hash([table["sample"]]),
                "samples": table["sample"].tolist(),
                "rows": [_hash([row]) for part in batch.views["image"] for row in part],
            }
        )
        if trace is not None:
            trace.with_suffix(f".{run.rank}.json").write_text(json.dumps(lines))
        if after is not None:
            after(run.global_step)
    run.close()


def _hash(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
