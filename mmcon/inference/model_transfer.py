"""Transfer of several models to many data sets: linear probes and fine-tuning, then the paired tests of all pairs.

    result = evaluate_transfer(["runs/supcon", "runs/cross_entropy"], ["photos/flowers", "photos/birds"])
    print(result.table())

A model may be a folder of several seeds (`seed-0`, `seed-1`, …), all of which are evaluated. What is in the output
folder already, of the same model, data and settings, is kept, so an interrupted command goes on. Results of seeds that
the models do not have are refused: the comparison would count them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import DataError, InputError
from mmcon.evaluation.comparison import distinct_names
from mmcon.evaluation.saved_predictions import FOLDER
from mmcon.evaluation.transfer import TransferResult, compare_transfer
from mmcon.files import replace_file
from mmcon.inference.model_evaluation import METRIC_OF, check_evaluation, evaluate_model

#: The evaluations of `mmcon evaluate` by protocol.
PROTOCOLS = {"linear": "probe", "fine-tuned": "fine-tuning"}


def evaluate_transfer(
    models: Sequence[str | Path],
    data: Sequence[str],
    *,
    output: str | Path = "transfer",
    protocols: Sequence[str] = ("linear",),
    options: Mapping[str, Any] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> TransferResult:
    """Evaluate every model on every data set, write the table, the numbers and the picture, and return the result.

    Args:
        models: two or more that `mmcon.load` opens, or folders of several seeds of such.
        data: sources by name or path, with labels.
        output: the folder of features, predictions, and `transfer.txt`, `transfer.json` and `transfer.png`.
        protocols: "linear" (a probe on frozen features) and "fine-tuned" (all weights trained further).
        options: of the evaluations and of the sources, by name.
        draws: exchanges of a permutation test.
        seed: of all draws.
        batch_size: samples that are encoded at once.
        workers: processes that read and decode samples.
        device: the device of the encoder.

    Raises:
        InputError, DataError, CheckpointError: before any work, if there are fewer than two models or no data set, a
            name of a model, a data set or a protocol is wrong, or the output folder has results of other seeds.
        DataError: an evaluation failed, with its reason.
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or not protocols:
        raise InputError("transfer", expected=f"protocols among {list(PROTOCOLS)}", got=str(unknown or "none"))
    if len(models) < 2 or not data:
        raise InputError(
            "transfer", expected="two models and a data set, or more", got=f"{len(models)} and {len(data)}"
        )
    folder, on = Path(output), [PROTOCOLS[name] for name in dict.fromkeys(protocols)]
    methods, sets = distinct_names(models), distinct_names(data)
    seeds = {method: _seeds(model) for method, model in zip(methods, models, strict=True)}
    settings: dict[str, Any] = {"on": on, "options": options, "device": device}
    _check_all([path for of in seeds.values() for path in of.values()], data, settings)
    for of_set, (method, of) in product(sets, seeds.items()):
        _check_seeds(folder / of_set / method, [*of])
    settings |= {"seed": seed, "batch_size": batch_size, "workers": workers}
    for of_set, source in zip(sets, data, strict=True):
        for method, inner, path in ((m, inner, path) for m, of in seeds.items() for inner, path in of.items()):
            print(f"\n{method} {inner} on {of_set}", flush=True)
            for done in evaluate_model(path, source, output=folder / of_set / method / inner, **settings):
                if done.error:
                    raise DataError(f"transfer of {method} to {of_set}", expected="an evaluation", got=done.error)
    metrics = [METRIC_OF.get(name, name) for name in on]
    result = compare_transfer(folder, data=sets, methods=methods, metrics=metrics, draws=draws, seed=seed)
    replace_file(folder / "transfer.txt", result.table() + "\n")
    replace_file(folder / "transfer.json", json.dumps(result.to_json(), indent=1) + "\n")
    figure = result.plot()
    replace_file(folder / "transfer.png", lambda file: figure.savefig(file, dpi=150, format="png"))
    return result


def _seeds(model: str | Path) -> dict[str, str | Path]:
    """The runs of several seeds by the names of their folders; of one model, itself under ""."""
    found = {path.name: path for path in sorted(Path(model).expanduser().glob("seed-*")) if path.is_dir()}
    return dict(found) or {"": model}


def _check_all(models: Sequence[str | Path], data: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Open every model and every data set once, so that a wrong name does not end the first hour of work."""
    for model, source in [*((model, data[0]) for model in models), *((models[0], source) for source in data[1:])]:
        check_evaluation(model, source, **settings)


def _check_seeds(folder: Path, seeds: list[str]) -> None:
    """Check that the results of a method that are there already are of its seeds."""
    there = [path.name for path in sorted(folder.glob("seed-*")) if path.is_dir()]
    there += [""] if (folder / FOLDER).is_dir() else []
    others = [name for name in there if name not in seeds]
    if others:
        got = f"results of {', '.join(name or 'one model without seeds' for name in others)} in {folder}"
        expected = f"an output folder with results of {', '.join(seeds) if any(seeds) else 'one model'} alone"
        raise InputError("transfer", expected=expected, got=got, fix="another --output, or remove these results")
