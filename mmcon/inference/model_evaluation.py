"""Evaluate a trained model, or one of another library, on data: the features once, then every evaluation from them.

    for done in evaluate_model("runs/imagenet_supcon", on=["probe", "knn", "few-labels"]):
        print(done.table)

The folder gets `NAME.json`, `NAME.txt` and `NAME.png` of each evaluation as soon as it is done, the predictions of
classifiers for `mmcon compare`, and the features. What is there already, of the same model, data and options, is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import mmcon
from mmcon.errors import InputError, MmconError, StorageError
from mmcon.evaluation.checked_splits import check_encoded, check_labels
from mmcon.evaluation.classification_report import ClassificationResult
from mmcon.evaluation.dump import write_dump
from mmcon.evaluation.evaluation_list import EVALUATIONS, Evaluation, EvaluationInput, EvaluationResult, find_evaluation
from mmcon.evaluation.features import Features
from mmcon.evaluation.saved_predictions import save_predictions
from mmcon.evaluation.view_rows import combine_views
from mmcon.files import read_json, read_yaml, replace_file
from mmcon.inference.inputs import check_modality
from mmcon.inference.loaded_model import LoadedModel, check_speed
from mmcon.inference.loading import load
from mmcon.sources.base import Source
from mmcon.sources.factory import create_source
from mmcon.training.run_lock import RunLock
from mmcon.views import ViewGenerator

_log = logging.getLogger(__name__)

#: The name of an evaluation's predictions, where it differs: recipes save those of a metric by the same name.
METRIC_OF = {"probe": "linear_probe"}
#: The folder of what evaluations that are not done have found.
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class FinishedEvaluation:
    """An evaluation that is done.

    Attributes:
        name: of the evaluation.
        folder: the folder of its files.
        table: the result as text; empty after an error.
        values: the result as plain values.
        cached: whether the result was there already.
        error: why it failed; empty if it did not.
    """

    name: str
    folder: Path
    table: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    cached: bool = False
    error: str = ""


def evaluate_model(
    model: LoadedModel | str | Path,
    data: str | None = None,
    *,
    on: Sequence[str] = ("probe", "knn"),
    output: str | Path | None = None,
    modality: str | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[FinishedEvaluation]:
    """Run evaluations one by one; a failed one does not end the others.

    Args:
        model: a loaded model, or what `mmcon.load` opens.
        data: a source by name or path; None: the data of the run.
        on: names in `EVALUATIONS`; "all": those for which model and data have what they need.
        output: the folder; by default `evaluation` in the run folder, else `evaluation-` and the name of the model.
        modality: of a model of several.
        near: names of sources of other classes that resemble the data.
        far: names of sources that do not.
        options: of evaluations and of the source, by name.
        seed: of splits and draws.
        batch_size: samples that are encoded at once.
        workers: processes that read and decode samples.
        device: the device of the encoder.
        rank: the number of this process among those that share the features. Only the main one evaluates.
        world_size: the number of such processes.

    Raises:
        InputError, DataError, UnknownNameError: before any long work, if the model lacks the modality, labels are
            missing or of one class, test classes are not in the training split, or a name is not known.
        StorageError: the folder cannot be written to.
    """
    check_speed("evaluate_model", batch_size, workers)
    opened, runnable = _open(model, data, on, output, modality, near, far, options or {}, device)
    if rank == 0:
        print(f"train {opened.train.describe()}\ntest  {opened.test.describe()}", flush=True)
    speed: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers}
    ranks: dict[str, Any] = {"rank": rank, "world_size": world_size}
    with RunLock(opened.folder, flag="--output") if rank == 0 else nullcontext():
        train, test = (opened.features(split, **speed, **ranks) for split in ("train", "test"))
        given = opened.given(train, test, seed=seed, **speed)
        for number, evaluation in enumerate(runnable if rank == 0 else [], 1):
            print(f"{evaluation.name} ({number} of {len(runnable)})", flush=True)
            yield _run(evaluation, given, opened.folder)


def check_evaluation(
    model: str | Path,
    data: str,
    *,
    on: Sequence[str],
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Raise what `evaluate_model` would raise before its work, such as for a mistyped name or missing labels."""
    _open(model, data, on, None, None, (), (), options or {}, device)


@dataclass(frozen=True)
class _Opened:
    """A model with the splits on which it is evaluated."""

    model: LoadedModel
    modality: str
    train: Source
    test: Source
    near: dict[str, Source]
    far: dict[str, Source]
    folder: Path
    options: dict[str, Any]
    data: dict[str, Any]

    @cached_property
    def views(self) -> list[ViewGenerator]:
        """The preprocessing of the modality, a view each."""
        return self.model.views(self.modality)

    @property
    def combine(self) -> Callable[[Features], Features]:
        """A function from the rows of all views to one row a sample."""
        return partial(combine_views, views=len(self.views), how=self.model.preprocessing[self.modality].combine)

    def available(self) -> set[str]:
        """What the model and the data have, of what evaluations may need."""
        has = {"encoder"}
        has |= {"labels"} if self.train.labels is not None and self.test.labels is not None else set()
        has |= {"images"} if self.modality == "image" and len(self.views) == 1 else set()
        return has | ({"outliers"} if self.near or self.far else set())

    def features(self, split: str, **options: Any) -> Features:
        """The features of a split, in the folder of the evaluation; options are those of `write_dump`."""
        source: Source = getattr(self, split)
        data = _digest([source.fingerprint(), self.data])
        about = {"model": self.model.fingerprint, "modality": self.modality, "data": data}
        options |= {"about": about, "title": f"features, {split}", "combine": self.combine}
        return write_dump(self.folder / "features" / split, source, self.model.model, self.views, **options)

    def given(self, train: Features, test: Features, **settings: Any) -> EvaluationInput:
        """What the evaluations may read; settings are those of speed, and the seed."""
        return EvaluationInput(
            train=train, test=test, train_source=self.train, test_source=self.test, encode=self.model.model,
            view=self.views[0], views=self.views, combine=self.combine, modality=self.modality,
            classes=tuple(self.train.classes), options=self.options, near=self.near, far=self.far, **settings,
        )  # fmt: skip


def _open(
    model: LoadedModel | str | Path,
    data: str | None,
    on: Sequence[str],
    output: str | Path | None,
    modality: str | None,
    near: Sequence[str],
    far: Sequence[str],
    options: Mapping[str, Any],
    device: torch.device | str,
) -> tuple[_Opened, list[Evaluation]]:
    """The model with its data, and the evaluations that can run; all that can be refused before the work is."""
    chosen = [*EVALUATIONS] if list(on) == ["all"] else [find_evaluation(name) for name in dict.fromkeys(on)]
    own = {name: value for name, value in options.items() if any(name in e.options for e in EVALUATIONS)}
    of_source = {name: value for name, value in options.items() if name not in own}
    config = {} if isinstance(model, LoadedModel) else _config_of(Path(model))
    name = Path(model.name if isinstance(model, LoadedModel) else model)
    if data is None:
        if "data" not in config:
            raise InputError("evaluate", expected="data", got=f"none, and no run at {name}", fix="--data PATH")
        data, of_source = str(config["data"]), _options_of_run(config) | of_source
    model = model if isinstance(model, LoadedModel) else load(model, device=device)
    if modality is None and len(model.modalities) > 1:
        raise InputError("evaluate", expected="one modality", got=str(model.modalities), fix="--modality NAME")
    modality = modality or next(iter(model.modalities))
    check_modality(modality, model.modalities)
    media = {key: value for key, value in model.preprocessing[modality].media.items() if key != "columns"}

    def opened(data: str, split: str, **given: Any) -> Source:
        return create_source(data, modality=modality, split=split, optional=media, **given)

    train, test = (opened(data, split, **of_source) for split in ("train", "test"))
    near_sets, far_sets = ({name: opened(name, "test") for name in names} for names in (near, far))
    folder = Path(output) if output else name / "evaluation" if config else Path(f"evaluation-{name.name}")
    found = _Opened(model, modality, train, test, near_sets, far_sets, folder, own, {"data": data, **of_source})
    runnable = _select(chosen, available := found.available(), strict=list(on) != ["all"])
    if "labels" in available:
        check_labels(train, test)
    for source in (train, test, *near_sets.values(), *far_sets.values()):
        check_encoded(model.model, source, found.views, device=device)
    return found, runnable


def _run(evaluation: Evaluation, given: EvaluationInput, folder: Path) -> FinishedEvaluation:
    """Run an evaluation and write its files, or read those that are there."""
    own = {name: value for name, value in given.options.items() if name in evaluation.options}
    others = [{d: s.fingerprint() for d, s in sets.items()} for sets in (given.near, given.far)]
    files = {name: _files_digest(Path(value)) for name, value in own.items() if isinstance(value, str)}
    about = {"version": mmcon.__version__, "evaluation": evaluation.name, "options": own, "seed": given.seed}
    about |= {"files": files}
    about |= {"train": given.train.metadata, "test": given.test.metadata, "classes": list(given.classes)}
    about |= {"near_and_far": others} if "outliers" in evaluation.needs else {}
    fingerprint = _digest(about)
    file, text = folder / f"{evaluation.name}.json", folder / f"{evaluation.name}.txt"
    if (values := read_json(file)).get("fingerprint") == fingerprint and text.exists():
        return FinishedEvaluation(evaluation.name, folder, text.read_text().rstrip(), values, cached=True)
    unfinished = folder / UNFINISHED / evaluation.name
    try:
        result = evaluation.run(replace(given, unfinished=unfinished / fingerprint[:16]))
        values = {"fingerprint": fingerprint, **result.to_json()}
        _write(result, evaluation.name, folder, given)
        replace_file(file, json.dumps(values, indent=1) + "\n")  # last, since it counts as complete
        table = result.table()
    except StorageError:  # the others could not be written either
        raise
    except MmconError as error:
        return FinishedEvaluation(evaluation.name, folder, error=str(error))
    except Exception as error:  # hours of other evaluations may follow
        _log.exception("%s failed", evaluation.name)
        return FinishedEvaluation(evaluation.name, folder, error=f"{type(error).__name__}: {error}")
    shutil.rmtree(unfinished, ignore_errors=True)
    return FinishedEvaluation(evaluation.name, folder, table, values)


def _write(result: EvaluationResult, name: str, folder: Path, given: EvaluationInput) -> None:
    if isinstance(result, ClassificationResult):
        save_predictions(folder, {METRIC_OF.get(name, name): result.classification}, given.test)
    replace_file(folder / f"{name}.txt", result.table() + "\n")
    figure = result.plot()
    replace_file(folder / f"{name}.png", lambda file: figure.savefig(file, dpi=150, format="png"))


def _select(chosen: Sequence[Evaluation], available: set[str], *, strict: bool) -> list[Evaluation]:
    """The evaluations that can run; of those asked for by name, all must."""
    missing = {evaluation.name: reason for evaluation in chosen if (reason := evaluation.missing(available))}
    for name, reason in missing.items():
        if strict:
            raise InputError(f"evaluate --on {name}", expected=reason, got="none", fix="leave it out, or --on all")
        print(f"{name} is left out: it needs {reason}", flush=True)
    return [evaluation for evaluation in chosen if evaluation.name not in missing]


def _config_of(folder: Path) -> dict[str, Any]:
    """The settings of a run folder; empty for other names."""
    file = folder.expanduser() / "config.yaml"
    values = read_yaml(file.read_text(encoding="utf-8"), where=str(file)) if file.is_file() else None
    return values if isinstance(values, dict) else {}


def _options_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which a recipe opened its data, so that the same samples are held out."""
    named = {"image_column": "media_column", "label_column": "label_column"}
    found = {option: config[name] for name, option in named.items() if config.get(name) is not None}
    if "columns" in config and not str(config["data"]).startswith("samples/"):  # the recipe of texts
        label = None if config.get("label") == "label" else config.get("label")
        found |= {"text_columns": tuple(config["columns"] or ("text",)), "label_column": label}
        found |= {"id_column": "none", "test_share": 0.2}
    return found


def _files_digest(path: Path) -> str:
    """A hash of the names, sizes and times of the files under a path, in order; the same if there is nothing."""
    found = hashlib.sha256()
    for folder, folders, names in os.walk(path) if path.is_dir() else [(path.parent, [], [path.name])]:
        folders.sort()  # in place: the order in which they are visited
        for file in (Path(folder, name) for name in sorted(names)):
            if file.is_file():
                found.update(os.fsencode(f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}\n"))
    return found.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
