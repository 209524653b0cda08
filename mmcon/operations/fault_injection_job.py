"""The training job of fault injection: a small one with every kind of state that a checkpoint must hold."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Shaped
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
from mmcon.sources.base import Source, Subset
from mmcon.sources.factory import create_source
from mmcon.training.run import Run, RunSettings
from mmcon.views import Chain, Meta, Params, ViewGenerator

STEPS_PER_EPOCH, EPOCHS, CHECKPOINT_EVERY = 6, 2, 4
STEPS = STEPS_PER_EPOCH * EPOCHS
SEED = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of the training job.

    Attributes:
        resume: continue from the newest checkpoint.
        workers: worker processes of the loader.
        stateful: use a view and a sampler whose state depends on earlier steps.
        dropout: probability of dropout in the network.
        fatal_sample: the id of a sample whose decoding kills the process, or None.
        max_steps: stop after this number of steps.
        restart: start anew elsewhere if all checkpoints are damaged.
        force: resume in spite of changed data.
        left_out: samples that are missing at the end of the data.
    """

    resume: bool = False
    restart: bool = False
    force: bool = False
    left_out: int = 0
    workers: int = 0
    stateful: bool = False
    dropout: float = 0.1
    fatal_sample: int | None = None
    max_steps: int | None = None


@final
class AddPreviousMean(ViewGenerator):
    """A stateful view: a share of the mean of the previous batch is added to each image."""

    modality: ClassVar[str] = "image"
    scope: ClassVar[Any] = "stateful"

    def __init__(self) -> None:
        self._previous: Tensor | None = None

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the share."""
        return {"share": keys.uniform("share", 0.0, 0.2)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the previous mean, and store that of this batch."""
        previous, self._previous = self._previous, batch.mean(0)
        return batch if previous is None else batch + params["share"].to(batch)[:, None, None, None] * previous

    def state_dict(self) -> dict[str, Float[Tensor, "c h w"]]:
        """The mean of the last batch."""
        return {} if self._previous is None else {"previous": self._previous}

    def load_state_dict(self, state: Mapping[str, Float[Tensor, "c h w"]]) -> None:
        """Restore the mean of the last batch."""
        self._previous = state.get("previous")


@final
class KillAtSample(ViewGenerator):
    """A view that kills its process at one sample, as a crash in a decoder does."""

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(self, sample: int) -> None:
        self.sample = sample

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Record the ids of the samples."""
        return {"sample": keys.fields[:, 2]}

    def apply(self, batch: Any, params: Params) -> Any:
        """Kill the process if the sample is in the batch; leave the batch unchanged otherwise."""
        if bool((params["sample"] == self.sample).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


class Network(nn.Module):
    """Maps 28 × 28 pixels to a unit embedding of width 8, in float64; dropout makes it depend on the random state."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        layers = nn.Linear(784, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 8)
        self.layers = nn.Sequential(nn.Flatten(), *layers).double()

    def forward(self, batch: ViewBatch) -> dict[str, dict[str, Float[Tensor, "n 8"]]]:
        """Embeddings of all views."""
        pixels = torch.cat(batch.views["image"]).double()
        return {"shared": {"image": nn.functional.normalize(self.layers(pixels), dim=1)}}


def train(
    folder: Path, job: Job, *, after_step: Callable[[int], None] | None = None, trace: Path | None = None
) -> None:
    """Train with a queue and a momentum encoder, and write hashes of the state of every step.

    Args:
        folder: the run folder.
        job: the settings.
        after_step: called with the number of each finished step, before its checkpoint.
        trace: the file of the hashes; the rank is inserted before the ending.
    """
    settings = RunSettings(
        epochs=EPOCHS,
        max_steps=job.max_steps,
        log_every=1,
        checkpoint_every=CHECKPOINT_EVERY,
        keep=4,
        restart=job.restart,
        force=job.force,
    )
    run = Run(folder, seed=SEED, settings=settings, resume=job.resume, cpu=True)
    loader = _loader(run, job)
    sampler = loader.sampler
    model = Network(job.dropout)
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
        states = {"state": [model, momentum], "queue": [queue]}
        lines.append(
            {"step": run.global_step, "loss": loss.item()}
            | {name: _hash(_tensors(modules)) for name, modules in states.items()}
            | _hashes_of_batch(batch)
        )
        if trace is not None:
            trace.with_suffix(f".{run.rank}.json").write_text(json.dumps(lines))
        if after_step is not None:
            after_step(run.global_step)
    run.close()


@cache
def images() -> Source:
    """Every hundredth bundled image. A program that forks trainings calls this first, so that they need not decode."""
    source = create_source("samples/fashion", split="train")
    return Subset(source, range(0, len(source), 100))


def _loader(run: Run, job: Job) -> ViewLoader:
    """Two views of bundled images, from the plain or from the stateful sampler and view."""
    source = Subset(images(), range(len(images()) - job.left_out))
    assert source.labels is not None
    if job.stateful:
        sampler = HardClassSampler(source.labels, batch_size=16, seed=SEED, classes_per_batch=4)
    else:
        sampler = UniformSampler(source.labels, batch_size=16, seed=SEED)
    first = [KillAtSample(job.fatal_sample)] if job.fatal_sample is not None else []
    last = [AddPreviousMean()] if job.stateful else []
    view = Chain(*first, mmcon.create_view("image/crop-flip", size=28), *last)
    return ViewLoader(
        source,
        {"image": [view, view]},
        sampler,
        seed=SEED,
        workers=job.workers,
        rank=run.rank,
        world_size=run.world_size,
    )


def _hashes_of_batch(batch: ViewBatch) -> dict[str, Any]:
    samples, views = batch.index["image"]["sample"], batch.views["image"]
    return {
        "pixels": _hash(views),
        "order": _hash([samples]),
        "samples": samples.tolist(),
        "rows": [_hash([row]) for group in views for row in group],
    }


def _tensors(modules: Iterable[Any]) -> list[Shaped[Tensor, "..."]]:
    return [value for module in modules for value in module.state_dict().values() if isinstance(value, Tensor)]


def _hash(tensors: Iterable[Shaped[Tensor, "..."]]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
