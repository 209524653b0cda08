"""The list of evaluations that `mmcon evaluate` runs, what each reads, and what each returns.

An evaluation is a function from an `EvaluationInput` to a result. Most read the features of the two splits, which are
extracted once; those that change the pixels pass over the test images again (see `image_passes`).
"""

from __future__ import annotations

import importlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.errors import ConfigError, UnknownNameError, nearest
from mmcon.evaluation.dump import write_dump
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.probe import LinearProbe, fit_probe
from mmcon.evaluation.second_stage import Encode
from mmcon.loading.loader import one_pass
from mmcon.sources.base import Source, Subset
from mmcon.views import ViewGenerator

#: A number of an option: whole or not.
Number = TypeVar("Number", int, float)

Need = Literal["labels", "images", "outliers", "encoder"]

_REASONS: dict[Need, str] = {
    "labels": "labels in the data",
    "images": "images",
    "outliers": "another data set, by --near or --far",
    "encoder": "an encoder that can be trained",
}


@runtime_checkable
class EvaluationResult(Protocol):
    """The result of an evaluation: a frozen dataclass with a table, plain values and a picture."""

    def table(self) -> str:
        """The result as text."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        ...

    def plot(self) -> Any:
        """The result as a matplotlib figure."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluationInput:
    """What an evaluation may read.

    Attributes:
        train: features of the training split.
        test: features of the held-out split.
        train_source: the samples of `train`.
        test_source: the samples of `test`.
        encode: an encoder of view batches (see `extract_features`).
        view: the preprocessing that the encoder was trained for, without random draws; of several, the first.
        views: all of them, if there are several.
        combine: from the rows of several views to one row a sample.
        modality: the modality of the samples.
        classes: the names of the classes, by label; empty without labels.
        near: data sets of other classes that resemble the training data, by name.
        far: data sets that do not, by name.
        options: of the evaluations, by name.
        device: the device of the encoder.
        batch_size: samples that are encoded at once.
        workers: processes that prepare batches.
        seed: the seed of all draws.
        unfinished: the folder of what is found before the evaluation is done; None keeps nothing.
        fitted: the probe, once it is fitted; shared by copies of this input.
    """

    train: Features
    test: Features
    train_source: Source
    test_source: Source
    encode: Encode
    view: ViewGenerator
    modality: str
    views: Sequence[ViewGenerator] = ()
    combine: Callable[[Features], Features] | None = None
    classes: tuple[str, ...] = ()
    near: Mapping[str, Source] = field(default_factory=dict)
    far: Mapping[str, Source] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    batch_size: int = 256
    workers: int = 0
    seed: int = 0
    unfinished: Path | None = None
    fitted: list[LinearProbe] = field(default_factory=list)

    @property
    def probe(self) -> LinearProbe:
        """The linear probe of the training features, which is fitted once for all evaluations."""
        if not self.fitted:
            self.fitted.append(fit_probe(self.train, seed=self.seed))
        return self.fitted[0]

    def features(self, source: Source, view: ViewGenerator | None = None, *, title: str = "features") -> Features:
        """Features of every sample of a source in one pass, a row each; by default of the preprocessing alone.

        With a view of its own, the rows are those of this view, whatever the preprocessing has. Those of the
        preprocessing are kept in parts in the folder of unfinished evaluations, if there is one.
        """
        settings: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers, "device": self.device}
        views = [view] if view is not None else [*self.views] or [self.view]
        if view is None and self.unfinished is not None:
            about = {"title": title, "data": json.dumps(source.fingerprint())}
            folder = self.unfinished / f"features-{zlib.crc32(title.encode()):08x}"  # titles may have names of paths
            settings |= {"about": about, "combine": self.combine, "title": title}
            return write_dump(folder, source, self.encode, views, **settings)
        loader = one_pass(source, {self.modality: views}, **settings)
        found = extract_features(self.encode, loader, modality=self.modality, title=title, total=len(source))
        return found if view is not None or self.combine is None else self.combine(found)

    def first_view(self) -> Shaped[Tensor, "1 ..."]:
        """The first test sample whose features were extracted, after the preprocessing."""
        row = (self.test_source.ids == self.test.index["sample"][0]).nonzero()[0]
        batch = next(one_pass(Subset(self.test_source, row), {self.modality: [self.view]}))
        return batch.views[self.modality][0]


def number_option(
    options: Mapping[str, Any], name: str, default: Number, *, lowest: int, highest: int | None = None
) -> Number:
    """The number of an option, whole if the default is.

    Args:
        options: by name.
        name: of the option.
        default: without the option.
        lowest: the lowest value.
        highest: the highest; None: any.

    Raises:
        ConfigError: the value is no such number.
    """
    value = options.get(name, default)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # as text too: YAML reads 1e-4 as such
    except (TypeError, ValueError):
        number = math.nan
    whole = isinstance(default, int)
    within = lowest <= number < math.inf if highest is None else lowest <= number <= highest
    if not within or (whole and not number.is_integer()):
        kind = "a whole number" if whole else "a number"
        expected = f"{kind} of {lowest} or more" if highest is None else f"{kind} from {lowest} to {highest}"
        raise ConfigError(f"evaluate, option {name}", expected=expected, got=repr(value))
    return type(default)(number)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation in the list.

    Attributes:
        name: the word of `--on`.
        function: the module and the name of the function from an `EvaluationInput` to a result, as "module:name".
        summary: what it measures.
        needs: what the data or the model must have.
        options: the names of the options that it reads.
    """

    name: str
    function: str
    summary: str
    needs: tuple[Need, ...] = ()
    options: tuple[str, ...] = ()

    def run(self, given: EvaluationInput) -> EvaluationResult:
        """Import the function and call it."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)(given)

    def missing(self, available: set[str]) -> str | None:
        """What the evaluation needs and does not have, as text; None if it can run."""
        return next((_REASONS[need] for need in self.needs if need not in available), None)


EVALUATIONS: tuple[Evaluation, ...] = (
    Evaluation(
        "probe",
        "mmcon.evaluation.classification_report:evaluate_probe",
        "linear probe: top-1, top-5, by class, confusion, calibration",
        needs=("labels",),
        options=("solver",),
    ),
    Evaluation(
        "knn",
        "mmcon.evaluation.classification_report:evaluate_knn",
        "nearest neighbors in the training split: top-1, top-5, by class, confusion",
        needs=("labels",),
        options=("neighbors",),
    ),
    Evaluation(
        "few-labels",
        "mmcon.evaluation.few_label_curve:evaluate_few_labels",
        "linear probe with 1 to 100 % of the labels, and with 1, 5 and 10 a class",
        needs=("labels",),
        options=("draws",),
    ),
    Evaluation(
        "retrieval",
        "mmcon.evaluation.retrieval_report:evaluate_retrieval",
        "retrieval of training samples of the same class",
        needs=("labels",),
    ),
    Evaluation(
        "fine-tuning",
        "mmcon.evaluation.fine_tuned_report:evaluate_fine_tuning",
        "all weights trained further with labels: top-1, by class, confusion, calibration",
        needs=("labels", "images", "encoder"),
        options=("fine_tuning_epochs", "fine_tuning_rates", "fine_tuning_view", "fine_tuning_batch_size"),
    ),
    Evaluation(
        "corruptions",
        "mmcon.evaluation.corruptions:evaluate_corruptions",
        "errors under 19 corruptions at five severities, and mCE against a reference",
        needs=("labels", "images"),
        options=("corruption_reference", "imagenet_c", "effects", "severities", "frost_photos"),
    ),
    Evaluation(
        "perturbations",
        "mmcon.evaluation.perturbations:evaluate_perturbations",
        "stability of predictions and features under small perturbations",
        needs=("labels", "images"),
        options=("perturbations", "perturbation_steps"),
    ),
    Evaluation(
        "outliers",
        "mmcon.evaluation.outliers:evaluate_outliers",
        "detection of other data by five scores: AUROC, AUPR, FPR at 95 % TPR",
        needs=("outliers",),
        options=("outlier_neighbors",),
    ),
    Evaluation(
        "cues",
        "mmcon.evaluation.cues:evaluate_cues",
        "reliance of a linear probe on planted cues that are broken in the test",
        needs=("labels",),
        options=("cue_correlation",),
    ),
)


def find_evaluation(name: str) -> Evaluation:
    """The evaluation by name.

    Raises:
        UnknownNameError: there is none of this name; the message lists the nearest.
    """
    known = {evaluation.name: evaluation for evaluation in EVALUATIONS}
    if name not in known:
        raise UnknownNameError("--on", expected="an evaluation", got=repr(name), fix=nearest(name, [*known]))
    return known[name]
