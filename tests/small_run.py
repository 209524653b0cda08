"""A real training of seconds: bundled images, two views, a small network, queue and momentum encoder on request.

Called by the tests of runs, in their process or as a program of its own. Every step leaves a line in the trace: the
loss and a hash of the weights, of the sample ids in order and of the pixels.
"""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path

import torch
from torch import nn

import mmcon
from mmcon.affinity import SameLabel
from mmcon.distributed import fsdp
from mmcon.distributed.collectives import full_tensor
from mmcon.loading.loader import ViewLoader
from mmcon.models.ema import MomentumEncoder
from mmcon.objective.objective import Objective
from mmcon.objective.queue import Queue
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Subset
from mmcon.sources.factory import create_source
from mmcon.training.gradient_caching import cached
from mmcon.training.run import Run, RunSettings

STEPS_PER_EPOCH, EPOCHS = 6, 2


class Crash(Exception):
    """Stands for the death of a process, where a real one would take too long."""


class Network(nn.Module):
    """28 × 28 pixels to a unit embedding of 8, in float64, with dropout so that the random state counts."""

    def __init__(self, norm):
        super().__init__()
        layers = nn.Linear(784, 16), norm, nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8)
        self.layers = nn.Sequential(nn.Flatten(), *layers).double()

    def forward(self, batch):
        pixels = torch.cat(batch.views["image"]).double()
        return {"shared": {"image": nn.functional.normalize(self.layers(pixels), dim=1)}}


def fingerprint(*tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def train(
    folder,
    *,
    resume=False,
    steps=None,
    workers=0,
    memory=False,
    dropout=True,
    at=None,
    act=None,
    config=None,
    score=None,
    chunk_size=None,
    **settings,
):
    """Train; after step `at`, before its checkpoint, do `act(run)`. Returns the trace of this process's steps."""
    settings = {"epochs": EPOCHS, "log_every": 1, "checkpoint_every": 4, **settings}
    run = Run(folder, config=config or {}, seed=3, settings=RunSettings(**settings), resume=resume, cpu=True)
    source = create_source("samples/fashion", split="train")
    source = Subset(source, range(0, len(source), 100))
    view = mmcon.create_view("image/crop-flip", size=28)
    sampler = UniformSampler(source.labels, batch_size=16, seed=3)
    loader = ViewLoader(
        source, {"image": [view, view]}, sampler, seed=3, workers=workers, rank=run.rank, world_size=run.world_size
    )
    batch_norm = settings.get("sync_batch_norm", False)
    model = Network(nn.BatchNorm1d(16) if batch_norm else nn.GroupNorm(4, 16))
    if not dropout:
        model.layers[4].p = 0.0
    queue = Queue(size=32) if memory else None
    objective = Objective(affinity=SameLabel(), temperature=0.2, queue=queue)
    momentum = MomentumEncoder(model, momentum=0.9) if memory else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(sampler_steps(sampler)))
    tracked = {"objective": objective} | ({"queue": queue, "momentum": momentum} if memory else {})
    network = run.prepare(model, optimizer, schedule, **tracked)
    trace = []
    for batch in run.batches(loader, score=score(model, source, view) if score else None):
        if chunk_size:
            loss = cached(network, objective, batch, chunk_size=chunk_size)
        else:
            embeddings = network(batch)
            loss = objective(embeddings, batch)
        if act == "nan" and run.global_step == at:
            loss = loss * float("nan")
        weights_changed = run.step(loss)
        if memory:
            if weights_changed:
                momentum.update(network)
            queue.push(momentum(batch), batch)
        trace.append(
            {
                "step": run.global_step,
                "loss": loss.item(),
                "weights": fingerprint(*map(full_tensor, model.parameters())),
                "samples": fingerprint(batch.index["image"]["sample"]),
                "pixels": fingerprint(*batch.views["image"]),
            }
        )
        if callable(act) and run.global_step == at:
            act(run)
    run.close()
    return trace


def sampler_steps(sampler):
    return range(EPOCHS * sampler.steps_per_epoch)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--at", type=int)
    parser.add_argument("--signal", type=int)
    parser.add_argument("--engine", default="ddp")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--chunk-size", type=int)
    parser.add_argument("--shard-weights", type=int, default=fsdp.MIN_SHARDED_PARAMETERS)
    parser.add_argument("--nan", action="store_true", help="the loss of the last process is no number at --at")
    options = parser.parse_args()
    fsdp.MIN_SHARDED_PARAMETERS = options.shard_weights

    def act(run):
        os.kill(os.getpid(), signal.Signals(options.signal))

    trace = train(
        options.folder,
        resume=options.resume,
        workers=options.workers,
        memory=options.memory,
        dropout=not options.no_dropout,
        sync_batch_norm=options.batch_norm,
        engine=options.engine,
        accumulate=options.accumulate,
        max_steps=options.steps,
        chunk_size=options.chunk_size,
        at=options.at,
        act="nan" if options.nan and os.environ.get("RANK") == "1" else act if options.signal else None,
    )
    if not int(os.environ.get("RANK", 0)):
        options.trace.write_text(json.dumps(trace))


if __name__ == "__main__":
    main()
