"""Replay of a step: write the inputs of the model as files, and recompute the loss.

All randomness of a run is keyed. So a replay restarts the recorded command of `run.json` from the newest valid
checkpoint before the step, writes nothing to the run folder, and stops after the step. Recipes need no code for it. If
the checkpoint is too many steps away, only the batch is recomputed, which needs no earlier step, and the loss is read
from metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import mmcon
from mmcon.batch import ViewBatch, count_rows, tree_map
from mmcon.errors import InputError
from mmcon.files import replace_file
from mmcon.loading.loader import ViewLoader
from mmcon.random import stable_id
from mmcon.training.checkpoint import Checkpoints, load_checkpoint
from mmcon.training.logging import MetricsLog
from mmcon.training.step import first_ids
from mmcon.training.view_files import write_text, write_view
from mmcon.views import params_to_json, select_samples

VARIABLE = "MMCON_REPLAY"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The request of a replay.

    Attributes:
        folder: the run folder.
        step: counted from 1, as in metrics.jsonl.
        sample: the id of a sample, or the name that the id is a hash of.
        output: the folder for the views.
        repeat: the largest number of steps that are repeated for the loss.
    """

    folder: str
    step: int
    sample: str
    output: str
    repeat: int = 500

    @staticmethod
    def from_environment() -> Replay | None:
        """The request in the environment of this process, or None."""
        text = os.environ.get(VARIABLE)
        return Replay(**json.loads(text)) if text else None

    def environment(self) -> dict[str, str]:
        """The environment of a process that executes the request."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    def load_state(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """The state of the newest valid checkpoint before the step, or None."""
        path = checkpoints.newest(before=self.step)
        saved = load_checkpoint(path) if path else None
        done = int(saved["step"]) if saved else 0
        start = f"checkpoint {path.name}" if path else "the beginning"
        print(f"replay: step {self.step} of {self.folder}, {self.step - 1 - done} step(s) after {start}", flush=True)
        return saved

    def seek(self, loader: ViewLoader) -> None:
        """Keep the loader at its step or, if the replayed step is too far away, show its batch and exit."""
        if self.step - 1 - loader.step <= self.repeat:
            return
        if any(group.generator.scope == "stateful" for group in loader.view_groups):
            print("replay: the views depend on earlier steps, which are not repeated, so they differ")
        loader.load_state_dict({"step": self.step - 1})
        self.show(loader, next(iter(loader)))
        logged = self.logged_loss()
        text = "is not in metrics.jsonl" if logged is None else f"was {logged!r} in metrics.jsonl"
        print(f"loss of step {self.step} {text}; --repeat {self.step} recomputes it")
        sys.exit(0)

    def batches(
        self,
        loader: ViewLoader,
        one_step: Callable[[ViewBatch], Iterator[ViewBatch]],
        loss: Callable[[], Float[Tensor, ""]],
    ) -> Iterator[ViewBatch]:
        """The batches up to the replayed step, whose views are written and whose loss is printed.

        Args:
            loader: at the first step.
            one_step: yields a batch for a step of the loop.
            loss: the loss of the last step.
        """
        self.seek(loader)
        while loader.step < self.step:
            for batch in loader:
                if batch.step + 1 == self.step:
                    self.show(loader, batch)
                yield from one_step(batch)
                if batch.step + 1 == self.step:
                    self.print_loss(float(loss()))
                    return

    def logged_loss(self) -> float | None:
        """The loss of the step in metrics.jsonl."""
        lines = MetricsLog(Path(self.folder) / "metrics.jsonl").lines()
        return next((line["loss"] for line in lines if line["step"] == self.step and "loss" in line), None)

    def print_loss(self, loss: float) -> None:
        """Print the loss and the logged one."""
        logged = self.logged_loss()
        comparison = "which was not logged" if logged is None else f"logged as {logged!r}"
        print(f"loss of step {self.step}: {loss!r}, {comparison}", flush=True)

    def show(self, loader: ViewLoader, batch: ViewBatch) -> None:
        """Write the views of the sample and their parameters, as files."""
        wanted = int(self.sample) if self.sample.lstrip("-").isdigit() else stable_id(self.sample)
        folder = Path(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for modality, view_groups in batch.views.items():
            first, groups = 0, [group for group in loader.view_groups if group.modality == modality]
            for number, views in enumerate(view_groups):
                table = batch.index[modality].take(slice(first, first + count_rows(views)))
                first += count_rows(views)
                for row in torch.nonzero(table["sample"] == wanted).flatten().tolist():
                    name = f"{modality}-view{int(table['view'][row])}"
                    if int(table["occurrence"][row]):
                        name += f"-occurrence{int(table['occurrence'][row])}"
                    view = tree_map(lambda x, row=row: x[row].detach().cpu(), views)
                    params = select_samples(tree_map(Tensor.cpu, batch.params[modality][number]), [row])
                    (folder / f"{name}.json").write_text(params_to_json(params) + "\n")
                    if modality == "text":
                        index = int(torch.nonzero(loader.source.members[modality].ids == wanted)[0])
                        written.append(write_text(folder / name, loader, groups[number], index, params, view))
                    written += write_view(folder / name, modality, view, groups[number].generator)
        if not written:
            known = sorted(set(torch.cat([t["sample"] for t in batch.index.values()]).tolist()))
            raise InputError(
                "mmcon replay",
                expected=f"a sample of step {self.step}: {first_ids(known)}",
                got=self.sample,
                fix="name one of these with --sample",
            )
        print("inputs of the model: " + ", ".join(map(str, written)), flush=True)


def describe_run(folder: Path, loader: ViewLoader, seed: int, world_size: int) -> None:
    """Write run.json: the program, and what its batches consist of."""
    about = {
        "program": [sys.executable, *sys.orig_argv[1:]],
        "directory": os.getcwd(),
        "seed": seed,
        "world_size": world_size,
        "source": loader.source.describe(),
        "views": [
            {"modality": p.modality, "views": list(p.views), "made by": repr(p.generator)} for p in loader.view_groups
        ],
        "sampler": {
            "kind": type(loader.sampler).__name__,
            "batch_size": loader.sampler.batch_size,
            "seed": loader.sampler.seed,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "mmcon": mmcon.__version__},
    }
    replace_file(folder / "run.json", json.dumps(about, indent=1) + "\n")


def program_of(folder: Path) -> tuple[list[str], str]:
    """The command line that started a run, and its working directory.

    Raises:
        InputError: the folder has no run.json, or its program does not exist.
    """
    try:
        about = json.loads((folder / "run.json").read_text())
        words, directory = list(about["program"]), str(about["directory"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "mmcon replay", expected="a run folder with run.json", got=f"{folder}: {type(error).__name__}"
        ) from error
    if not Path(directory).is_dir() or not Path(words[0]).exists():
        got = f"{words[0]} in {directory}, one of which does not exist"
        raise InputError("mmcon replay", expected="the program of the run", got=got, fix="edit run.json")
    return words, directory
