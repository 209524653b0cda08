"""A linear probe with calibrated probabilities, saved beside the model: class names, weights and a temperature.

The temperature divides the logits (Guo et al. 2017). It is fitted on training samples that are held out of a second fit
of the same strength, since logits of samples that the probe was fitted to are too confident.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mmcon.errors import CheckpointError, InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import LinearProbe, fit_probe, held_out_rows, linear_probe
from mmcon.evaluation.statistics import Classification
from mmcon.files import replace_file

WEIGHTS, ABOUT, FORMAT = "probe.safetensors", "probe.json", 1
#: Fewer held-out samples say little about a temperature; it is then 1.
FEWEST = 10
_TENSORS = ("weight", "bias", "mean", "scale", "classes")


@dataclass(frozen=True)
class CalibratedProbe:
    """A fitted probe, the names of its classes, and the temperature of its probabilities.

    Attributes:
        probe: the fitted probe.
        classes: the names of its classes, in the order of its logits.
        temperature: divides the logits; 1 leaves them as they are.
    """

    probe: LinearProbe
    classes: tuple[str, ...]
    temperature: float = 1.0

    def probabilities(self, values: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The probability of each class; rows sum to 1.

        Raises:
            InputError: the features have another width than those of the fit.
        """
        if values.shape[1] != len(self.probe.weight):
            expected = f"features of width {len(self.probe.weight)}"
            raise InputError("CalibratedProbe", expected=expected, got=f"width {values.shape[1]}")
        logits = self.probe.logits(values.to(self.probe.weight))
        return torch.softmax(logits.double() / self.temperature, dim=1).float()

    def save(self, folder: str | Path, modality: str) -> None:
        """Write `probe.safetensors` and `probe.json` into the folder of a model, beside probes of other modalities."""
        folder = Path(folder)
        tensors, about = _read(folder) if (folder / ABOUT).is_file() else ({}, {})
        tensors |= {f"{modality}.{name}": getattr(self.probe, name).cpu().contiguous() for name in _TENSORS}
        about[modality] = {
            "classes": list(self.classes),
            "temperature": self.temperature,
            "l2": self.probe.l2,
            "unit": self.probe.unit,
        }
        weights = save(tensors, metadata={"format": "pt"})
        replace_file(folder / WEIGHTS, weights)
        content = {"format": FORMAT, "weights": _digest(weights), "probes": about}
        replace_file(folder / ABOUT, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def fit_calibrated_probe(train: Features, classes: Sequence[str], **options: Any) -> CalibratedProbe:
    """Fit a probe, and its temperature; options are those of `fit_probe`.

    Args:
        train: labeled features.
        classes: the names of all classes, by label.
        options: of `fit_probe`.
    """
    probe = fit_probe(train, **options)
    names = [str(classes[label]) if label < len(classes) else str(label) for label in probe.classes.tolist()]
    return CalibratedProbe(probe, tuple(names), _fit_temperature(train, probe, options))


def probe_and_save(
    train: Features,
    test: Features,
    *,
    model_folder: Path | None,
    classes: Sequence[str],
    modality: str,
    **options: Any,
) -> Classification:
    """`linear_probe`, whose probe is saved with its calibration into the folder of a model, if there is one.

    Args:
        train: labeled features.
        test: features to classify.
        model_folder: the folder that `mmcon.inference.save_model` wrote; None saves nothing.
        classes: the names of all classes, by label.
        modality: the modality of the features.
        options: of `fit_probe`.
    """
    if model_folder is None:
        return linear_probe(train, test, **options)
    fitted = fit_calibrated_probe(train, classes, **options)
    fitted.save(model_folder, modality)
    return fitted.probe.evaluate(test)


def load_probes(folder: str | Path) -> dict[str, CalibratedProbe]:
    """The probes of a saved model by modality; none if training left none.

    Raises:
        CheckpointError: the files are damaged, or of another format.
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        return {}
    tensors, about = _read(folder)
    try:
        return {modality: _create(modality, own, tensors) for modality, own in about.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _fit_temperature(train: Features, probe: LinearProbe, options: dict[str, Any]) -> float:
    """The temperature of least cross-entropy on held-out samples, under a probe that is fitted to the others."""
    try:
        out = held_out_rows(train, share=options.get("held_out_share", 0.2), seed=options.get("seed", 0)).cpu()
        fitted = fit_probe(train.take(~out), **{**options, "l2": probe.l2})
    except InputError:  # too few samples for a split, or one class on the side of the fit
        return 1.0
    known = torch.isin(train.labels[out], fitted.classes.cpu())
    values, labels = train.values[out][known], train.labels[out][known]
    if len(values) < FEWEST:
        return 1.0
    logits = fitted.logits(values.to(fitted.weight)).double().cpu()
    return minimize_temperature(logits, torch.searchsorted(fitted.classes.cpu(), labels))


def minimize_temperature(logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> float:
    """The temperature between 1/32 and 32 of the least cross-entropy, by golden-section search in its logarithm.

    The cross-entropy is convex in 1/T, so it has one minimum in log T too. One sample of each class is added to the
    counts, as by Platt (1999). If the logits make no error, the temperature is at least 1: no sample says how rare
    errors are.
    """
    from scipy.optimize import minimize_scalar

    n, k = logits.shape
    smoothed = torch.full_like(logits, 1 / (n + k)).scatter_(1, target[:, None], (n + 1) / (n + k))

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / 2.0**log_temperature, smoothed))

    lowest = 0.0 if torch.equal(logits.argmax(1), target) else -5.0
    return 2.0 ** float(minimize_scalar(loss, bounds=(lowest, 5.0), method="bounded").x)  # pyright: ignore


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise _damaged(folder, f"format {about['format']!r}")
        weights = (folder / WEIGHTS).read_bytes()
        if about.get("weights", _digest(weights)) != _digest(weights):  # earlier versions did not save the digest
            raise _damaged(folder, "weights that were saved at another time than the classes")
        return load(weights), dict(about["probes"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _digest(weights: bytes) -> str:
    return hashlib.sha256(weights).hexdigest()


def _create(modality: str, about: dict[str, Any], tensors: dict[str, Tensor]) -> CalibratedProbe:
    own: dict[str, Any] = {name: tensors[f"{modality}.{name}"] for name in _TENSORS}
    width, count = own["weight"].shape
    shapes = {"bias": (count,), "mean": (width,), "scale": (width,), "classes": (count,)}
    wrong = [name for name, shape in shapes.items() if tuple(own[name].shape) != shape]
    if wrong or len(about["classes"]) != count:
        raise ValueError(f"{wrong or 'names of classes'} of another size than the {count} classes")
    probe = LinearProbe(**own, unit=bool(about["unit"]), l2=float(about["l2"]), held_out={})
    return CalibratedProbe(probe, tuple(about["classes"]), float(about["temperature"]))


def _damaged(folder: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"probe of {str(folder)!r}",
        expected=f"complete {WEIGHTS} and {ABOUT} of format {FORMAT}",
        got=got,
        fix="copy both again; without them the model still encodes",
    )
