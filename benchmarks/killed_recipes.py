"""Kill the recipes of every modality, and of several at once, at random steps, resume them, and compare every step.

    python benchmarks/killed_recipes.py --kills 11 --workers 1

Each recipe trains once without a fault on its bundled data (`--tiny`). Then it is killed after a random step, as often
as asked, and resumed from its last checkpoint. The losses and the hashes of all weights of each step are compared with
those of the whole run. The evaluation is left out. A training is a fork of this program, which saves imports.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.cli.recipe import recipes
from mmcon.training.config import parse
from mmcon.training.run import Run

RECIPES = {
    "image": ("imagenet_supcon", ["--ema-decay", "0.9", "--queue-size", "256"]),
    "audio": ("audio_supcon", []),
    "text": ("text_supcon", []),
    "video": ("video_graded", []),
    "multimodal": ("multimodal", []),
}


class TracedRun(Run):
    """A run that writes loss and hash of the weights of each step, is killed at one, and ends before the evaluation.

    Attributes:
        trace: the file of the steps.
        killed_at: the step; 0: never.
    """

    trace: Path
    killed_at = 0

    def step(self, loss: Float[Tensor, ""]) -> None:
        """Step, write the trace, and die if it is time."""
        super().step(loss)
        digest = hashlib.sha256()
        for group in self._stepper.optimizer.param_groups:
            for weight in group["params"]:
                digest.update(weight.detach().numpy().tobytes())
        with self.trace.open("a") as file:
            file.write(json.dumps([self.global_step, loss.item(), digest.hexdigest()]) + "\n")
        if self.global_step == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def full_model(self, model: Any) -> Any:
        """End: the training is over."""
        self.close()
        sys.stdout.flush()
        os._exit(0)


def load_recipe(name: str) -> ModuleType:
    """The module of a recipe."""
    spec = importlib.util.spec_from_file_location(name, recipes()[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def train(module: ModuleType, folder: Path, flags: list[str], *, killed_at: int = 0) -> tuple[int, list[Any]]:
    """Train in a fork; return its status and the trace of its steps."""
    trace = folder.with_suffix(".trace")
    trace.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            with folder.with_suffix(".output").open("a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            TracedRun.trace, TracedRun.killed_at = trace, killed_at
            module.mmcon.Run = TracedRun
            words = ["--tiny", "--cpu", "--checkpoint-every", "2", "--output-dir", str(folder), *flags]
            module.main(parse(module.Config, args=words))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []


def compare(modality: str, folder: Path, *, kills: int, workers: int, draw: random.Random) -> str:
    """Kill a recipe at random steps, and return how many resumed runs have the steps of the whole one."""
    name, flags = RECIPES[modality]
    module, flags = load_recipe(name), [*flags, "--workers", str(workers)]
    status, whole = train(module, folder / "whole", flags)
    if status or not whole:
        raise SystemExit(f"{name}: status {status}\n{(folder / 'whole.output').read_text()[-3000:]}")
    exact = 0
    for number in range(kills):
        at = draw.randint(1, len(whole))
        run = folder / f"killed-{number}"
        status, before = train(module, run, flags, killed_at=at)
        again, rest = train(module, run, [*flags, "--resume"])
        first = rest[0][0] - 1 if rest else len(whole)
        resumed = rest == whole[first:] and first < at
        exact += (status, again) == (-signal.SIGKILL, 0) and before == whole[:at] and resumed
    return f"{modality} ({name}, {len(whole)} steps): {exact} of {kills} kills resumed bit by bit"


def main() -> None:
    """Compare the chosen modalities."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modalities", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork loses the threads of its parent
    draw = random.Random(options.seed)
    for modality in options.modalities:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            said = compare(modality, Path(folder), kills=options.kills, workers=options.workers, draw=draw)
        print(f"{said}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
