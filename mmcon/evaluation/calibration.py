"""Calibration: how well the confidence of a classifier agrees with its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.errors import InputError

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width over the confidence.

    Attributes:
        error: the expected calibration error: Σ n_b / n · |accuracy_b − confidence_b| (Naeini et al. 2015).
        confidence: the mean confidence of each bin; 0 for an empty one.
        accuracy: the accuracy of each bin; 0 for an empty one.
        counts: the number of samples of each bin.
    """

    error: float
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    counts: Int[Tensor, " bins"]

    def to_json(self) -> dict[str, Any]:
        """The bins as plain values."""
        return {
            "confidence": self.confidence.tolist(),
            "accuracy": self.accuracy.tolist(),
            "samples": self.counts.tolist(),
        }

    def draw(self, axes: Any) -> None:
        """Draw confidence against accuracy; the area of a point follows the number of samples."""
        filled = self.counts > 0
        area = 20 + 180 * self.counts[filled] / self.counts.max()
        axes.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="--")
        axes.scatter(self.confidence[filled].numpy(), self.accuracy[filled].numpy(), s=area.numpy())
        axes.set(
            xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"calibration: ECE {self.error:.3f}"
        )


def calibration(probabilities: Float[Tensor, "n k"], correct: Bool[Tensor, " n"], *, bins: int = BINS) -> Calibration:
    """The calibration of a classifier, by the probability of its prediction (Guo et al. 2017).

    Args:
        probabilities: of each sample and class, each from 0 to 1.
        correct: whether the prediction of each sample is correct.
        bins: number of bins; bin b holds confidences from b / bins on, below (b + 1) / bins.

    Raises:
        InputError: there are no samples, or a value is not a probability.
    """
    confidence = probabilities.max(1).values.double() if len(probabilities) else torch.zeros(0, dtype=torch.float64)
    if not len(confidence) or not bool(((confidence >= 0) & (confidence <= 1 + 1e-6)).all()):
        got = f"{len(confidence)} rows" + (f" up to {confidence.max():.3g}" if len(confidence) else "")
        raise InputError("calibration", expected="rows of probabilities from 0 to 1", got=got, fix="logits.softmax(1)")
    number = (confidence * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(number, minlength=bins)
    size = counts.clamp(min=1)
    mean = torch.bincount(number, weights=confidence, minlength=bins) / size
    accuracy = torch.bincount(number, weights=correct.double(), minlength=bins) / size
    error = float(((accuracy - mean).abs() * counts).sum() / len(confidence))
    return Calibration(error, mean, accuracy, counts)
