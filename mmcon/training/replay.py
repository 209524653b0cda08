"""A step once more: what the model saw, as files that a person can look at, and the loss that it had.

Everything in a run is keyed, so a replay *is* the run: the program that `run.json` names is started again in the same
folder, goes on from the newest whole checkpoint before the step, writes nothing into the run folder, and stops after
the step. No recipe has to know of it. Where too many steps lie between, the batch alone is made again, which needs none
of them, and the loss is read from metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcon.batch import ViewBatch, rows_of, tree_map
from mmcon.errors import InputError
from mmcon.loading.loader import ViewLoader
from mmcon.loading.pipeline import ViewGroup
from mmcon.random import stable_id
from mmcon.training.checkpoint import Checkpoints, load
from mmcon.training.metrics_log import Journal
from mmcon.views import params_to_json, select_samples

VARIABLE = "MMCON_REPLAY"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is to be shown.

    Attributes:
        folder: of the run.
        step: as metrics.jsonl counts, from 1.
        sample: the identity of a sample, or the name that it is made from.
        output: a folder for what the model saw.
        repeat: at most so many steps are done again for the loss.
    """

    folder: str
    step: int
    sample: str
    output: str
    repeat: int = 500

    @staticmethod
    def asked() -> Replay | None:
        """What the environment asks this process to replay, if anything."""
        text = os.environ.get(VARIABLE)
        return Replay(**json.loads(text)) if text else None

    def environment(self) -> dict[str, str]:
        """The environment of a process that replays."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    def begin(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint before the step."""
        place = checkpoints.newest(before=self.step)
        saved = load(place) if place else None
        done = int(saved["step"]) if saved else 0
        told = f"checkpoint {place.name}" if place else "the beginning"
        print(f"replay: step {self.step} of {self.folder}, {self.step - 1 - done} step(s) after {told}", flush=True)
        return saved

    def place(self, loader: ViewLoader) -> None:
        """Leave the loader where it is, or, where that is too far from the step, show the batch at once and stop."""
        if self.step - 1 - loader.step <= self.repeat:
            return
        if any(part.generator.scope == "stateful" for part in loader.view_groups):
            print("replay: the views remember earlier steps, which are not repeated: they differ in that part")
        loader.load_state_dict({"step": self.step - 1})
        self.show(loader, next(iter(loader)))
        logged = self.logged()
        told = "is not in metrics.jsonl" if logged is None else f"was {logged!r}, as metrics.jsonl says"
        print(f"loss of step {self.step} {told}; --repeat {self.step} computes it again")
        sys.exit(0)

    def logged(self) -> float | None:
        """The loss of the step in metrics.jsonl."""
        lines = Journal(Path(self.folder) / "metrics.jsonl").lines()
        return next((line["loss"] for line in lines if line["step"] == self.step and "loss" in line), None)

    def tell(self, loss: float) -> None:
        """Print the loss, beside the one that was logged."""
        logged = self.logged()
        beside = "which was not logged" if logged is None else f"logged as {logged!r}"
        print(f"loss of step {self.step}: {loss!r}, {beside}", flush=True)

    def show(self, loader: ViewLoader, batch: ViewBatch) -> None:
        """Write the views of the sample, a file each, and what was drawn for them."""
        wanted = int(self.sample) if self.sample.lstrip("-").isdigit() else stable_id(self.sample)
        folder = Path(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for modality, parts in batch.views.items():
            first, own = 0, [part for part in loader.view_groups if part.modality == modality]
            for number, part in enumerate(parts):
                table = batch.index[modality].take(slice(first, first + rows_of(part)))
                first += rows_of(part)
                for row in torch.nonzero(table["sample"] == wanted).flatten().tolist():
                    name = f"{modality}-view{int(table['view'][row])}"
                    if int(table["occurrence"][row]):
                        name += f"-occurrence{int(table['occurrence'][row])}"
                    view = tree_map(lambda x, row=row: x[row].detach().cpu(), part)
                    made = own[number]
                    drawn = select_samples(tree_map(Tensor.cpu, batch.params[modality][number]), [row])
                    (folder / f"{name}.json").write_text(params_to_json(drawn) + "\n")
                    if modality == "text":
                        at = int(torch.nonzero(loader.source.members[modality].ids == wanted)[0])
                        written.append(_text(folder / name, loader, made, at, drawn, view))
                    written += write_view(folder / name, modality, view, made.generator)
        if not written:
            known = sorted(set(torch.cat([t["sample"] for t in batch.index.values()]).tolist()))
            raise InputError(
                "mmcon replay",
                expected=f"a sample of step {self.step}: {known}",
                got=self.sample,
                fix="name one of these with --sample",
            )
        print("what the model saw: " + ", ".join(map(str, written)), flush=True)


def describe_run(loader: ViewLoader, seed: int, world_size: int) -> str:
    """What run.json holds: the program, and what its batches are made of, for a person and for `mmcon replay`."""
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
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return json.dumps(about, indent=1) + "\n"


def program_of(folder: Path) -> tuple[list[str], str]:
    """The words that started a run, and where.

    Raises:
        InputError: the folder holds no run, or its program is gone.
    """
    try:
        about = json.loads((folder / "run.json").read_text())
        words, directory = list(about["program"]), str(about["directory"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "mmcon replay", expected="a run folder with run.json", got=f"{folder}: {type(error).__name__}"
        ) from error
    if not Path(directory).is_dir() or not Path(words[0]).exists():
        got = f"{words[0]} in {directory}, of which one is gone"
        raise InputError("mmcon replay", expected="the program of the run", got=got, fix="edit run.json")
    return words, directory


# --- files -----------------------------------------------------------------------------------------------------------


def write_view(stem: Path, modality: str, view: Any, generator: Any) -> list[Path]:
    """Write one view as a picture or a sound, and its very numbers beside it as a tensor file."""
    exact = stem.with_suffix(".pt")
    torch.save(view, exact)
    if isinstance(view, Mapping) and "signal" in view:
        return [_sound(stem, view, generator), exact]
    values = view["log_mel"] if isinstance(view, Mapping) and "log_mel" in view else view
    if isinstance(values, Tensor) and modality == "audio" and values.dim() <= 2 and values.shape[-1] > 4000:
        return [_sound(stem, {"signal": values}, generator), exact]
    if isinstance(values, Tensor) and values.dim() >= 2:
        return [_picture(stem, values), exact]
    return [exact]


def _picture(stem: Path, values: Tensor) -> Path:
    """Pixels between their least and greatest; frames of a clip one beside another; mel bands from the bottom up."""
    from PIL import Image

    x = values.float()
    if x.dim() == 4:  # t c h w
        x = torch.cat(list(x), dim=-1)
    if x.dim() == 3 and x.shape[0] not in (1, 3):
        x = x.mean(0, keepdim=True)
    x = x if x.dim() == 3 else x[None]
    low, high = (0.0, 255.0) if values.dtype == torch.uint8 else (float(x.min()), float(x.max()))
    x = ((x - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
    picture = Image.fromarray((x[0] if len(x) == 1 else x.permute(1, 2, 0)).numpy())
    scale = max(1, 224 // max(picture.size))
    path = stem.with_suffix(".png")
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
    return path


def _sound(stem: Path, view: Mapping[str, Tensor], generator: Any) -> Path:
    import soundfile

    signal = view["signal"].float()
    signal = signal if signal.dim() == 2 else signal[None]
    if "length" in view:
        signal = signal[:, : int(view["length"])]
    path = stem.with_suffix(".wav")
    soundfile.write(path, (signal / max(1.0, float(signal.abs().max()))).T.numpy(), _rate_hz(generator))
    return path


def _rate_hz(generator: Any) -> int:
    """The sample rate that a chain leaves, as the last of its parts that knows says; else 16,000."""
    rates = [
        int(rate)
        for _, part in generator.children()
        for name in ("sample_rate_hz", "rate_hz")
        if (rate := getattr(part, name, None))
    ]
    return rates[-1] if rates else 16_000


def _text(stem: Path, loader: ViewLoader, part: ViewGroup, row: int, params: Any, tokens: Any) -> Path:
    """A text as it stood where a tokenizer took it, and the numbers that became of it."""
    source = loader.source.members[part.modality]
    current, words = source.open([row])[0], ""
    for name, generator in part.generator.children():
        words = getattr(current, "value", current if isinstance(current, str) else words)
        current = generator.apply([current], params if generator is part.generator else params[name])[0]
        if isinstance(current, Mapping):
            break
    else:
        words = getattr(current, "value", current)
    path = stem.with_suffix(".txt")
    ids = tokens["input_ids"][tokens["attention_mask"].bool()].tolist() if isinstance(tokens, Mapping) else []
    path.write_text(f"{words}\n" + (f"\ntokens: {' '.join(map(str, ids))}\n" if ids else ""))
    return path
