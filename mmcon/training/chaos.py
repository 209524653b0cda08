"""Faults made on purpose: a small real training is killed, starved and split, and must end as if nothing had happened.

`mmcon doctor --chaos` runs all of `FAULTS` on the user's machine, and the tests run the same functions. Every fault
works in a program of its own (`python -m mmcon.training.chaos`), which forks before it computes anything, so that a
training costs its steps and not its imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel
from mmcon.batch import ViewBatch
from mmcon.candidates.queue import Queue
from mmcon.data.hard_batches import HardClassSampler
from mmcon.data.loading import ViewLoader
from mmcon.data.samplers import UniformSampler
from mmcon.data.sources import Subset, create_source
from mmcon.models.momentum import MomentumEncoder
from mmcon.random import Keys
from mmcon.registry import load_plugins
from mmcon.training import checkpoint
from mmcon.training.objective import Objective
from mmcon.training.run import Run, Settings
from mmcon.training.signals import STOPPED
from mmcon.view import Chain, Meta, Params, ViewGenerator

STEPS_PER_EPOCH, EPOCHS, EVERY = 6, 2, 4
STEPS = STEPS_PER_EPOCH * EPOCHS
SEED = 3
#: How soon the other processes end when one has died.
MINUTE = 60


class Survived(AssertionError):
    """What a fault did that it must not do."""


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
    settings = Settings(epochs=epochs, max_steps=max_steps, log_every=1, checkpoint_every=EVERY, keep=4)
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
        process=run.process,
        processes=run.processes,
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
            trace.with_suffix(f".{run.process}.json").write_text(json.dumps(lines))
        if after is not None:
            after(run.global_step)
    run.close()


def _hash(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# --- in the program: forked trainings --------------------------------------------------------------------------------


def forked(folder: Path, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """Train in a fork; its exit status (minus the signal's number, if one ended it), and its trace."""
    trace = folder / "trace"
    file = folder / "trace.0.json"
    file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (folder / "output.txt").open("a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            torch.set_num_threads(1)
            train(folder, trace=trace, **options)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(file.read_text()) if file.exists() else []


def kills(number: int, at: int) -> Callable[[int], None]:
    """Send this process a signal after a step."""
    return lambda step: os.kill(os.getpid(), number) if step == at else None


def must(holds: bool, told: str) -> None:
    """Raise where a promise is broken."""
    if not holds:
        raise Survived(told)


def every_step(folder: Path, *, workers: int, stateful: bool) -> str:
    """Kill at each step, resume, and compare all that followed."""
    options = {"workers": workers, "stateful": stateful}
    status, whole = forked(folder / "whole", **options)
    must(status == 0 and len(whole) == STEPS, f"the run itself ended with {status}")
    for at in range(1, STEPS + 1):
        place = folder / str(at)
        status, before = forked(place, after=kills(signal.SIGKILL, at), **options)
        must(status == -signal.SIGKILL and before == whole[:at], f"killed at {at}: {status}")
        status, rest = forked(place, resume=True, **options)
        must(status == 0 and rest == whole[(at - 1) // EVERY * EVERY :], f"killed at {at}: other steps follow")
    return f"killed at each of {STEPS} steps, resumed bit by bit, {workers} workers"


def torn_write(folder: Path) -> str:
    """Kill within the writing of a checkpoint: at the state, at the manifest, and before the rename."""
    _, whole = forked(folder / "whole")
    write = checkpoint._write
    for name in (checkpoint.MANIFEST, "state.pt"):
        for finished in (False, True):

            def dying(path: Path, content: Any, name: str = name, finished: bool = finished) -> None:
                if path.parent.name.startswith(".step-000000008") and path.name == name:
                    write(path, content if finished else lambda file: file.write(b"half"))
                    os.kill(os.getpid(), signal.SIGKILL)
                write(path, content)

            place = folder / f"{name}-{finished}"
            checkpoint._write = dying
            status, _ = forked(place)
            checkpoint._write = write
            must(status == -signal.SIGKILL, f"within {name}: {status}")
            must(forked(place, resume=True) == (0, whole[EVERY:]), f"within {name}: other steps follow")
    return "killed at four points of a checkpoint's writing; the one before was used"


def terminated(folder: Path) -> str:
    """SIGTERM and SIGINT after a step between checkpoints."""
    _, whole = forked(folder / "whole")
    for number in (signal.SIGTERM, signal.SIGINT):
        place = folder / str(int(number))
        status, _ = forked(place, after=kills(number, 5))
        must(status == STOPPED, f"exit status {status}, not {STOPPED}")
        must(forked(place, resume=True) == (0, whole[5:]), "steps were lost")
    return f"SIGTERM and SIGINT: status {STOPPED}, no step lost"


def worker_dies(folder: Path) -> str:
    """A sample that ends the worker process that decodes it."""
    _, whole = forked(folder / "whole")
    sample = whole[2]["samples"][5]
    status, _ = forked(folder / "run", workers=2, fatal=sample)
    told = (folder / "run" / "output.txt").read_text()
    must(status == 1 and f"sample={sample}," in told and "worker process" in told, told[-2000:])
    return "a worker died of a sample, which the error names"


PROGRAMS: dict[str, Callable[[Path], str]] = {
    "every-step": lambda folder: every_step(folder, workers=0, stateful=False),
    "every-step-workers": lambda folder: every_step(folder, workers=2, stateful=False),
    "every-step-stateful": lambda folder: every_step(folder, workers=0, stateful=True),
    "torn-write": torn_write,
    "signals": terminated,
    "worker-dies": worker_dies,
}


# --- from outside: the programs, alone and several together ----------------------------------------------------------


def start(folder: Path, *words: Any, processes: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the program, by torch's launcher if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", __name__, str(folder), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def forks(name: str) -> Callable[[Path], str]:
    """A fault that a program of its own goes through."""

    def fault(folder: Path) -> str:
        done = start(folder, "--fault", name)
        must(done.returncode == 0, done.stderr[-2000:])
        return done.stdout.strip().splitlines()[-1]

    return fault


def elastic(folder: Path) -> str:
    """Save on two processes and go on with one, and the other way round."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for name, lives in {"1": [1], "2": [2], "1 to 2": [1, 2], "2 to 1": [2, 1]}.items():
        place = folder / name.replace(" ", "-")
        for life, processes in enumerate(lives):
            more = ["--max-steps", 5] if life + 1 < len(lives) else []
            done = start(place, "--train", "--resume", *more, processes=processes)
            must(done.returncode == 0, f"{name}: {done.stderr[-2000:]}")
            traces.setdefault(name, []).extend(_together(place, processes))
    worst = 0.0
    for name, lines in traces.items():
        for line, alone in zip(lines, traces["1"], strict=True):
            must(line["views"] == alone["views"], f"{name}: other samples or views at step {line['step']}")
            worst = max(worst, abs(line["loss"] / alone["loss"] - 1))
    must(worst < 1e-10, f"losses differ by {worst:.1e}")
    return f"1 -> 2 and 2 -> 1 processes: the same samples and views, losses within {worst:.0e} (float64)"


def _together(folder: Path, processes: int) -> list[dict[str, Any]]:
    """The steps of all processes: the loss, and the views of every sample in any order."""
    own = [json.loads((folder / f"trace.{p}.json").read_text()) for p in range(processes)]
    return [
        {
            "step": lines[0]["step"],
            "loss": lines[0]["loss"],
            "views": sorted(pair for line in lines for pair in zip(line["samples"], line["rows"], strict=True)),
        }
        for lines in zip(*own, strict=True)
    ]


def process_dies(folder: Path) -> str:
    """One of two processes is killed; the other must not wait for it."""
    began = time.monotonic()
    done = start(folder, "--train", "--die", 5, processes=2)
    seconds = time.monotonic() - began
    must(done.returncode != 0 and seconds < MINUTE, f"status {done.returncode} after {seconds:.0f} s")
    again = start(folder, "--train", "--resume", processes=2)
    must(again.returncode == 0 and "from step-000000004" in again.stdout, again.stderr[-2000:])
    return f"a process of two was killed: all ended within {seconds:.0f} s, imports included, and resumed"


#: By name, what makes a fault in an empty folder, and tells how the run came through.
FAULTS: dict[str, Callable[[Path], str]] = {
    **{name: forks(name) for name in PROGRAMS},
    "process-dies": process_dies,
    "elastic": elastic,
}


def main() -> None:
    """Go through a fault, or train as one of several processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fault", choices=list(PROGRAMS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--die", type=int, default=0, help="process 1 is killed after this step")
    options = parser.parse_args()
    if options.fault:
        # What every fork would import again; nothing is computed yet, so that no thread is lost in a fork.
        load_plugins()
        Run(options.folder / "imports", cpu=True).close()
        print(PROGRAMS[options.fault](options.folder))
        return
    die = options.die if os.environ.get("RANK") == "1" else 0
    train(
        options.folder,
        resume=options.resume,
        dropout=0.0,
        max_steps=options.max_steps,
        after=kills(signal.SIGKILL, die),
        trace=options.folder / "trace",
    )


if __name__ == "__main__":
    main()
