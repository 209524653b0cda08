"""The report of a classifier on held-out samples: accuracies by class, confusion and calibration.

result = classification_report(probe.logits(test.values).softmax(1), test, probe.classes, names=source.classes)
print(result.table())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import ConfigError
from mmcon.evaluation.calibration import Calibration, calibration
from mmcon.evaluation.evaluation_list import EvaluationInput, number_option
from mmcon.evaluation.features import Features
from mmcon.evaluation.knn import knn_scores
from mmcon.evaluation.sgd_probe import fit_sgd_probe
from mmcon.evaluation.statistics import Classification, Interval, class_indices, classify, wilson

#: Classes that a table shows at most; the JSON has all.
SHOWN_CLASSES = 20
#: Classes up to which the picture of the confusion has their names.
NAMED_CLASSES = 30


@dataclass(frozen=True)
class ClassificationResult:
    """The report of a classifier.

    Attributes:
        title: the name of the classifier.
        classification: top-1, top-5, and the prediction of each sample.
        labels: the true label of each sample.
        samples: the id of each sample.
        classes: the names of the classes, by label.
        confusion: the number of samples by true class (rows) and predicted class (columns).
        calibration: confidence against accuracy.
        settings: what was chosen, such as the strength of the penalty.
    """

    title: str
    classification: Classification
    labels: Int[Tensor, " n"]
    samples: Int[Tensor, " n"]
    classes: tuple[str, ...]
    confusion: Int[Tensor, "k k"]
    calibration: Calibration
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_class(self) -> dict[str, Interval]:
        """By class with held-out samples, the top-1 accuracy with Wilson's 95 % interval."""
        counts, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return {self.classes[i]: wilson(hits[i], counts[i]) for i in range(len(counts)) if counts[i]}

    @property
    def worst_class(self) -> str:
        """The class of the lowest accuracy; of equal ones the one with most samples."""
        found = self.by_class
        return min(found, key=lambda name: (found[name].value, -found[name].n))

    @property
    def mean_of_classes(self) -> float:
        """The mean of the accuracies by class (balanced accuracy)."""
        return sum(interval.value for interval in self.by_class.values()) / len(self.by_class)

    def confusions(self, n: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent confusions: true class, predicted class, number of samples."""
        off = self.confusion - self.confusion.diagonal().diag()
        counts, cells = off.flatten().sort(descending=True, stable=True)
        k = len(self.classes)
        pairs = zip(cells[:n].tolist(), counts[:n].tolist(), strict=True)
        return [(self.classes[cell // k], self.classes[cell % k], count) for cell, count in pairs if count]

    def table(self) -> str:
        """The accuracies as text, the classes from the worst to the best."""
        found, worst = self.by_class, self.by_class[self.worst_class]
        top5 = f", top-5 {self.classification.top5:.3f}" if len(self.classes) > 5 else ""
        lines = [
            f"{self.title}: top-1 {self.classification.interval()} on {len(self.labels):,} held-out samples{top5}",
            f"mean of classes {self.mean_of_classes:.3f}, worst class {self.worst_class} {worst}",
            f"calibration error (ECE, {len(self.calibration.counts)} bins) {self.calibration.error:.3f}",
        ]
        lines += [f"{name} {value}" for name, value in self.settings.items() if not isinstance(value, Mapping)]
        order = sorted(found, key=lambda name: found[name].value)[:SHOWN_CLASSES]
        width = max(map(len, order))
        lines += ["", f"{'class':{width}}  samples  top-1 [95 % interval]"]
        lines += [f"{name:{width}}  {found[name].n:7,}  {found[name]}" for name in order]
        if len(order) < len(found):
            lines.append(f"… and {len(found) - len(order)} better classes")
        confused = [f"{true} as {other} {count:,}" for true, other, count in self.confusions()]
        return "\n".join([*lines, *(["", f"most frequent confusions: {', '.join(confused)}"] if confused else [])])

    def to_json(self) -> dict[str, Any]:
        """The accuracies as plain values."""
        interval = self.classification.interval()
        by_class = {
            name: {"samples": i.n, "top1": i.value, "top1_interval": [i.low, i.high]}
            for name, i in self.by_class.items()
        }
        return {
            "top1": self.classification.top1,
            "top1_interval": [interval.low, interval.high],
            "top5": self.classification.top5,
            "samples": len(self.labels),
            "mean_of_classes": self.mean_of_classes,
            "worst_class": self.worst_class,
            "expected_calibration_error": self.calibration.error,
            "calibration": self.calibration.to_json(),
            "settings": dict(self.settings),
            "by_class": by_class,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }

    def plot(self) -> Any:
        """A figure: the confusion in shares of the true class, and confidence against accuracy."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        shares = self.confusion / self.confusion.sum(1, keepdim=True).clamp(min=1)
        image = left.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
        left.set(xlabel="predicted class", ylabel="true class", title=f"{self.title}: confusion")
        if len(self.classes) <= NAMED_CLASSES:
            left.set_xticks(range(len(self.classes)), self.classes, rotation=90)
            left.set_yticks(range(len(self.classes)), self.classes)
        figure.colorbar(image, ax=left, label="share of the true class")
        self.calibration.draw(right)
        return figure


def classification_report(
    probabilities: Float[Tensor, "n k"],
    test: Features,
    classes: Int[Tensor, " k"],
    *,
    names: Sequence[str] = (),
    title: str = "classifier",
    settings: Mapping[str, Any] | None = None,
) -> ClassificationResult:
    """The report of a classifier from its probabilities.

    Args:
        probabilities: of each sample and class.
        test: the samples, with labels; their features are not read.
        classes: the label of each column, ascending.
        names: the names of the classes, by label; default: the labels.
        title: the name of the classifier.
        settings: what was chosen, for the table.

    Raises:
        InputError: there are no samples, or a label is not among the classes.
    """
    labels, probabilities = test.labels.cpu(), probabilities.detach().cpu()
    classes = classes.cpu()
    classification = classify(probabilities, labels, classes)
    truth = class_indices(labels, classes, where=title)
    guess = class_indices(classification.predicted, classes, where=title)
    k = len(classes)
    confusion = torch.bincount(truth * k + guess, minlength=k * k).view(k, k)
    known = list(names)
    shown = tuple(known[label] if label < len(known) else str(label) for label in classes.tolist())
    samples = test.index["sample"] if "sample" in test.index else torch.arange(len(test))
    found = calibration(probabilities, classification.correct)
    return ClassificationResult(title, classification, labels, samples, shown, confusion, found, dict(settings or {}))


def evaluate_probe(given: EvaluationInput) -> ClassificationResult:
    """The report of a linear probe, by the option `solver`: "lbfgs" (the default) or "sgd"."""
    solver = given.options.get("solver", "lbfgs")
    if solver not in ("lbfgs", "sgd"):
        raise ConfigError("evaluate, option solver", expected="lbfgs or sgd", got=repr(solver))
    probe = given.probe if solver == "lbfgs" else fit_sgd_probe(given.train, seed=given.seed)
    logits = probe.logits(given.test.values.to(probe.weight))
    settings = {"solver": solver, "l2": probe.l2, "held_out_top1": {str(k): v for k, v in probe.held_out.items()}}
    settings |= {"learning_rate": probe.learning_rate} if solver == "sgd" else {}
    named: dict[str, Any] = {"names": given.classes, "title": "linear probe", "settings": settings}
    return classification_report(logits.softmax(1), given.test, probe.classes, **named)


def evaluate_knn(given: EvaluationInput) -> ClassificationResult:
    """The report of the nearest neighbors, by the option `neighbors` (200); the probability is the share of votes."""
    k = min(number_option(given.options, "neighbors", 200, lowest=1), len(given.train))
    scores, classes = knn_scores(given.train, given.test, k=k)
    shares = scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    named: dict[str, Any] = {"names": given.classes, "title": "k-NN", "settings": {"neighbors": k}}
    return classification_report(shares, given.test, classes, **named)
