"""Errors under corruptions at five severities, and their means against a reference (Hendrycks and Dietterich 2019).

Either 19 corruptions are drawn by key on the test images, or the files of the published ImageNet-C are read. In both
cases a linear probe of clean training features classifies, one pass over the images for each corruption and severity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mmcon.errors import ConfigError
from mmcon.evaluation.evaluation_list import EvaluationInput
from mmcon.evaluation.features import Features
from mmcon.evaluation.image_passes import Found, image_passes, kept
from mmcon.evaluation.imagenet_c import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, BENCHMARK, EFFECTS, published_sources
from mmcon.evaluation.statistics import Interval, bootstrap
from mmcon.registry import create
from mmcon.sources.base import Source

SEVERITIES = (1, 2, 3, 4, 5)
#: Errors by corruption and severity.
ErrorTable = Mapping[str, Mapping[int, float]]
#: Corruption and severity, and what is found in the images under it.
Passes = Iterable[tuple[tuple[str, int], Found]]
OURS = (
    "not the images of ImageNet-C: corruptions are drawn by key, and frost, fog, snow, spatter, motion and glass blur"
    " differ from the published code (docs/robustness.md)"
)


@dataclass(frozen=True)
class CorruptionErrors:
    """The errors of one model.

    Attributes:
        name: of the model, for tables.
        clean: the error on clean images.
        errors: by corruption and severity.
    """

    name: str
    clean: float
    errors: ErrorTable

    @staticmethod
    def load(name: str) -> CorruptionErrors:
        """AlexNet's published errors on ImageNet-C by the name "alexnet", or the errors in a `corruptions.json`.

        Raises:
            ConfigError: the file cannot be read, or is no result of corruptions.
        """
        if name.lower() == "alexnet":
            return ALEXNET
        try:
            found = json.loads(Path(name).read_text(encoding="utf-8"))
            errors = {effect: {int(s): float(e) for s, e in of.items()} for effect, of in found["errors"].items()}
            return CorruptionErrors(name, float(found["clean_error"]), errors)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            expected = '"alexnet", or the file corruptions.json of another evaluation'
            got = f"{name}: {type(error).__name__}: {error}"
            raise ConfigError("corruption reference", expected=expected, got=got) from error

    def summed(self, effect: str, severities: tuple[int, ...]) -> float | None:
        """The sum of the errors of a corruption; None if a severity is missing."""
        found = [self.errors.get(effect, {}).get(severity) for severity in severities]
        return None if None in found else sum(error for error in found if error is not None)


ALEXNET = CorruptionErrors(
    "AlexNet on ImageNet-C",
    ALEXNET_CLEAN_ERROR,
    {effect: dict(zip(SEVERITIES, errors, strict=True)) for effect, errors in ALEXNET_ERRORS.items()},
)


@dataclass(frozen=True)
class CorruptionResult:
    """Errors by corruption and severity, beside those of a reference.

    The corruption error of a corruption is the sum of the errors over severities, divided by that of the reference;
    the relative one subtracts the clean error of each model first. `mean` is over the 15 corruptions of the benchmark
    and all severities; the other four are shown and are not in any mean.

    Attributes:
        model: the errors of the model.
        interval: the 95 % interval of the mean error over samples; None if passes have different samples.
        reference: the errors that divide; None: no corruption errors.
        n: the number of clean test samples.
        published: whether the images are the files of ImageNet-C.
        notes: what the figures do not say.
    """

    model: CorruptionErrors
    interval: Interval | None
    reference: CorruptionErrors | None
    n: int
    published: bool
    notes: tuple[str, ...] = ()

    @property
    def effects(self) -> tuple[str, ...]:
        """The corruptions of the benchmark that were measured."""
        return tuple(effect for effect in BENCHMARK if effect in self.model.errors)

    @property
    def mean(self) -> float | None:
        """The mean error over the corruptions of the benchmark and the severities; None without such a corruption."""
        errors = [error for effect in self.effects for error in self.model.errors[effect].values()]
        return sum(errors) / len(errors) if errors else None

    def corruption_error(self, effect: str, *, relative: bool = False) -> float | None:
        """The (relative) corruption error of a corruption; None without a reference of it, or for a divisor <= 0."""
        severities = tuple(self.model.errors[effect])
        own, other = self.model.summed(effect, severities), None
        if self.reference is not None:
            other = self.reference.summed(effect, severities)
        if own is None or other is None or self.reference is None:
            return None
        if relative:
            own, other = own - len(severities) * self.model.clean, other - len(severities) * self.reference.clean
        return own / other if other > 0 else None

    def mean_corruption_error(self, *, relative: bool = False) -> float | None:
        """The mean (relative) corruption error over the benchmark: mCE; None unless all 75 passes were measured."""
        found = [self.corruption_error(effect, relative=relative) for effect in self.effects]
        partial = any(set(self.model.errors[effect]) < set(SEVERITIES) for effect in self.effects)
        if partial or len(found) < len(BENCHMARK) or None in found:
            return None
        return sum(error for error in found if error is not None) / len(found)

    def table(self) -> str:
        """Errors by corruption and severity, as text."""
        alone = "–" if self.mean is None else f"{self.mean:.3f}"
        mean = self.interval if self.interval is not None else alone
        kind = "ImageNet-C" if self.published else "corruptions in the style of ImageNet-C"
        head = f"{kind}: mean error {mean}, clean {self.model.clean:.3f}, on {self.n:,} images"
        lines = [f"{head}; {len(self.effects)} of {len(BENCHMARK)} corruptions are in the mean"]
        if self.reference is not None:
            ce, relative = self.mean_corruption_error(), self.mean_corruption_error(relative=True)
            lines.append(f"mCE {_shown(ce)}, relative mCE {_shown(relative)}, against {self.reference.name}")
        severities = sorted({s for of in self.model.errors.values() for s in of})
        lines += ["", f"{'error at severity':18}" + "".join(f"{s:>7}" for s in severities) + "   mean     CE  rel. CE"]
        for effect in [*self.effects, *(e for e in self.model.errors if e not in BENCHMARK)]:
            errors = self.model.errors[effect]
            cells = "".join(f"{errors[s]:7.3f}" if s in errors else "      –" for s in severities)
            ce, relative = (_shown(self.corruption_error(effect, relative=r)) for r in (False, True))
            lines.append(f"{effect:18}{cells}{sum(errors.values()) / len(errors):7.3f}{ce:>7}{relative:>9}")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain values; a file of them is a reference for other models."""
        interval = None if self.interval is None else [self.interval.low, self.interval.high]
        return {
            "mean_error": self.mean,
            "mean_error_interval": interval,
            "clean_error": self.model.clean,
            "errors": {effect: {str(s): e for s, e in of.items()} for effect, of in self.model.errors.items()},
            "mean_corruption_error": self.mean_corruption_error(),
            "relative_mean_corruption_error": self.mean_corruption_error(relative=True),
            "corruption_errors": {effect: self.corruption_error(effect) for effect in self.model.errors},
            "reference": None if self.reference is None else self.reference.name,
            "samples": self.n,
            "images": "ImageNet-C" if self.published else "drawn by key",
            "notes": list(self.notes),
        }

    def plot(self) -> Any:
        """A figure: accuracy by severity, a line each corruption, with the means of the model and the reference."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for number, (effect, errors) in enumerate(self.model.errors.items()):
            at, style = [0, *errors], "-" if effect in BENCHMARK else ":"
            accuracies = [1 - self.model.clean, *(1 - error for error in errors.values())]
            axes.plot(at, accuracies, style, color=f"C{number % 10}", linewidth=0.8, label=effect)
        subjects = [(self.model, "mean", "black")]
        if self.reference is not None:
            subjects.append((self.reference, self.reference.name, "gray"))
        for model, label, color in subjects:
            curve = _mean_curve(model, self.effects)
            axes.plot(list(curve), list(curve.values()), "o-", color=color, linewidth=2.5, label=label)
        axes.set(xlabel="severity (0: clean)", ylabel="accuracy", xticks=range(6), ylim=(0, 1))
        figure.legend(loc="outside right center", fontsize="small")
        return figure


def evaluate_corruptions(given: EvaluationInput) -> CorruptionResult:
    """Errors of a linear probe under corruptions of the test images, one pass for each.

    Options: `corruption_reference`, "alexnet" or the `corruptions.json` of another model; `imagenet_c`, the folder of
    the published files, in place of corruptions that are drawn (the reference is then AlexNet by default); `effects`
    and `severities` to measure fewer; `frost_photos`, a folder of photographs of frost (procedural ice otherwise).

    Raises:
        ConfigError: an unknown corruption, severity or reference.
        DataError: the published folder lacks corruptions, or has classes that the training data lack.
    """
    options, folder = given.options, given.options.get("imagenet_c")
    name = options.get("corruption_reference") or ("alexnet" if folder else None)
    reference = CorruptionErrors.load(str(name)) if name else None
    effects, severities = _chosen("effects", options, EFFECTS), _chosen("severities", options, SEVERITIES)
    passes = _published(given, str(folder), effects, severities) if folder else _drawn(given, effects, severities)
    clean = 1 - given.probe.evaluate(given.test).top1
    errors: dict[str, dict[int, float]] = {}
    wrong: list[tuple[Tensor, Bool[Tensor, " n"]]] = []
    for (effect, severity), found in passes:
        errors.setdefault(effect, {})[severity] = 1 - found["correct"].double().mean().item()
        if effect in BENCHMARK:
            wrong.append((found["sample"], ~found["correct"]))
    model = CorruptionErrors("this model", clean, errors)
    notes = () if folder else (OURS,)
    return CorruptionResult(model, _interval(wrong, given.seed), reference, len(given.test), bool(folder), notes)


def _drawn(given: EvaluationInput, effects: tuple[str, ...], severities: tuple[int, ...]) -> Passes:
    """By corruption and severity, whether each test image is classified correctly with the corruption on it."""
    changes = {}
    for effect, severity in product(effects, severities):
        folder = given.options.get("frost_photos")
        photos = {"frost_photos": folder and str(folder)} if effect == "frost" else {}
        corruption = create("view", "image/corruption", effect=effect, severity=severity, **photos)
        # Named by its effect, so that corruptions have independent noise, and severities of one have the same.
        changes[f"{effect} {severity}"] = (effect, corruption)
    found = image_passes(given, changes, partial(_classified, given), title="corruptions")
    return zip(product(effects, severities), found.values(), strict=True)


def _published(given: EvaluationInput, folder: str, effects: tuple[str, ...], severities: tuple[int, ...]) -> Passes:
    """The same of the published files."""

    def classified(effect: str, severity: int, source: Source) -> Found:
        title = f"ImageNet-C {effect} {severity}"
        return kept(given, title, lambda: _classified(given, given.features(source, given.view, title=title)))

    sources = published_sources(folder, given.classes, effects=effects, severities=severities)
    return (((effect, severity), classified(effect, severity, source)) for effect, severity, source in sources)


def _classified(given: EvaluationInput, features: Features) -> Found:
    return {"sample": features.index["sample"], "correct": given.probe.evaluate(features).correct}


def _chosen(name: str, options: Mapping[str, Any], known: tuple[Any, ...]) -> tuple[Any, ...]:
    asked = options.get(name) or known
    chosen = tuple(asked) if isinstance(asked, list | tuple) else (asked,)
    unknown = [value for value in chosen if value not in known]
    if unknown:
        raise ConfigError(f"corruptions, {name}", expected=f"values among {list(known)}", got=str(unknown))
    return tuple(dict.fromkeys(chosen))


def _interval(wrong: list[tuple[Tensor, Bool[Tensor, " n"]]], seed: int) -> Interval | None:
    """The bootstrap interval over samples of the share of passes in which a sample is wrong."""
    if not wrong or any(not torch.equal(ids, wrong[0][0]) for ids, _ in wrong):
        return None
    return bootstrap(torch.stack([of for _, of in wrong]).double().mean(0), seed=seed)


def _mean_curve(model: CorruptionErrors, effects: tuple[str, ...]) -> dict[int, float]:
    """The mean accuracy by severity over corruptions, from the clean one on."""
    found = [model.errors[effect] for effect in effects if effect in model.errors]
    common = [s for s in SEVERITIES if found and all(s in errors for errors in found)]
    return {0: 1 - model.clean} | {s: 1 - sum(errors[s] for errors in found) / len(found) for s in common}


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
