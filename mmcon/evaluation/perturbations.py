"""Stability under small perturbations that grow: flips of the prediction and drift of the features, as in ImageNet-P.

Each image is perturbed along a path (a shift in one direction, a turn, a zoom, a change of brightness, noise) in
equal steps. The flip probability of a kind is the share of steps at which the prediction changes; with noise, whose
frames are not neighbors of each other, that of frames whose prediction is not that of the clean image (Hendrycks and
Dietterich 2019, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import ConfigError
from mmcon.evaluation.evaluation_list import EvaluationInput, number_option
from mmcon.evaluation.features import Features
from mmcon.evaluation.image_passes import Found, image_passes
from mmcon.evaluation.statistics import Interval, bootstrap
from mmcon.registry import create

#: By kind, the largest amount and its unit.
LARGEST: dict[str, tuple[float, str]] = {
    "translation": (0.15, "of the side"),
    "rotation": (15.0, "degrees"),
    "scale": (0.2, "zoom"),
    "brightness": (0.25, "of 1"),
    "noise": (0.12, "of 1"),
}
#: Kinds whose frames are compared with the clean image in place of the frame before.
WITHOUT_ORDER = ("noise",)
STEPS = 5


@dataclass(frozen=True)
class Stability:
    """The stability along the path of one kind.

    Attributes:
        amounts: of each step, without the clean image.
        flip_probability: the share of steps at which the prediction flips, with its 95 % interval over samples.
        changed: by step, the share of predictions that are not those of the clean images.
        cosine: by step, the mean cosine of the features to those of the clean images.
    """

    amounts: tuple[float, ...]
    flip_probability: Interval
    changed: tuple[float, ...]
    cosine: tuple[float, ...]


@dataclass(frozen=True)
class PerturbationResult:
    """Flips of the prediction and drift of the features, by kind of perturbation.

    Attributes:
        kinds: by kind.
        n: the number of test samples.
    """

    kinds: Mapping[str, Stability]
    n: int

    @property
    def mean_flip_probability(self) -> float:
        """The mean over kinds."""
        return sum(kind.flip_probability.value for kind in self.kinds.values()) / len(self.kinds)

    def table(self) -> str:
        """Flips and cosines by kind, as text."""
        lines = [
            f"mean flip probability {self.mean_flip_probability:.3f}, {len(self.kinds)} kinds, {self.n:,} images",
            "",
            f"{'':14}{'flips a step [95 % interval]':30}{'at the largest amount':28}changed   cosine",
        ]
        for name, kind in self.kinds.items():
            amount = f"{kind.amounts[-1]:g} {LARGEST[name][1]}"
            end = f"{kind.changed[-1]:7.3f}  {kind.cosine[-1]:7.3f}"
            lines.append(f"{name:14}{kind.flip_probability!s:30}{amount:28}{end}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kinds = {
            name: {
                "flip_probability": kind.flip_probability.value,
                "flip_probability_interval": [kind.flip_probability.low, kind.flip_probability.high],
                "amounts": list(kind.amounts),
                "unit": LARGEST[name][1],
                "changed": list(kind.changed),
                "cosine": list(kind.cosine),
            }
            for name, kind in self.kinds.items()
        }
        return {"mean_flip_probability": self.mean_flip_probability, "samples": self.n, "kinds": kinds}

    def plot(self) -> Any:
        """A figure: predictions that changed, and cosines to the clean image, by the share of the largest amount."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, kind in self.kinds.items():
            shares = [0.0, *(amount / LARGEST[name][0] for amount in kind.amounts)]
            label = f"{name}, to {LARGEST[name][0]:g} {LARGEST[name][1]}"
            left.plot(shares, [0.0, *kind.changed], "o-", label=label)
            right.plot(shares, [1.0, *kind.cosine], "o-")
        left.set(xlabel="share of the largest amount", ylabel="predictions unlike that of the clean image")
        right.set(xlabel="share of the largest amount", ylabel="cosine of features to the clean image")
        figure.legend(loc="outside lower center", ncols=3, fontsize="small")
        return figure


def evaluate_perturbations(given: EvaluationInput) -> PerturbationResult:
    """Stability of a linear probe's prediction and of the features, one pass for each kind and step.

    Options: `perturbations`, the kinds (default: all five); `perturbation_steps`, steps up to the largest amount (5).

    Raises:
        ConfigError: an unknown kind, or no step.
    """
    asked = given.options.get("perturbations") or list(LARGEST)
    chosen = tuple(asked) if isinstance(asked, list | tuple) else (asked,)
    steps = number_option(given.options, "perturbation_steps", STEPS, lowest=1)
    if any(kind not in [*LARGEST] for kind in chosen):
        raise ConfigError("perturbations", expected=f"kinds among {list(LARGEST)}", got=str(list(chosen)))
    amounts = {kind: tuple(LARGEST[kind][0] * (step + 1) / steps for step in range(steps)) for kind in chosen}
    changes = {
        f"{kind} {amount:g}": (kind, create("view", "image/perturbation", kind=kind, amount=amount))
        for kind, of_kind in amounts.items()
        for amount in of_kind
    }
    found = image_passes(given, changes, partial(_beside_clean, given), title="perturbations")
    clean = given.probe.evaluate(given.test).predicted
    kinds = {}
    for kind, of_kind in amounts.items():
        frames = [found[f"{kind} {amount:g}"] for amount in of_kind]
        predictions = torch.stack([clean, *(frame["predicted"] for frame in frames)])
        cosines, ordered = torch.stack([frame["cosine"] for frame in frames]), kind not in WITHOUT_ORDER
        kinds[kind] = stability(of_kind, predictions, cosines, ordered=ordered, seed=given.seed)
    return PerturbationResult(kinds, len(given.test))


def stability(
    amounts: tuple[float, ...],
    predictions: Int[Tensor, "f n"],
    cosines: Float[Tensor, "s n"],
    *,
    ordered: bool = True,
    seed: int = 0,
) -> Stability:
    """The stability along one path.

    Args:
        amounts: of the frames after the clean one.
        predictions: of the clean image and of each frame.
        cosines: of the features of each frame to those of the clean image.
        ordered: compare the prediction with that of the frame before; else with that of the clean image.
        seed: of the interval.
    """
    before = predictions[:-1] if ordered else predictions[:1]
    flips = (predictions[1:] != before).double()
    return Stability(
        amounts,
        bootstrap(flips.mean(0), seed=seed),
        tuple((predictions[1:] != predictions[:1]).double().mean(1).tolist()),
        tuple(cosines.mean(1).tolist()),
    )


def _beside_clean(given: EvaluationInput, features: Features) -> Found:
    """The predictions, and the cosines of the features to those of the same images without a perturbation."""
    clean = given.test.values[torch.isin(given.test.index["sample"], features.index["sample"])]
    cosine = torch.nn.functional.cosine_similarity(clean.double(), features.values.double())
    return {"predicted": given.probe.evaluate(features).predicted, "cosine": cosine}
