"""Average precision of detectors, as COCO defines it, computed by pycocotools.

result = evaluate_detections(found, boxes)      # found: by row of an image, its boxes, labels and scores
print(result.table())
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.errors import InputError, MissingDependencyError
from mmcon.sources.coco import BoxTable

#: The names of the figures of pycocotools, in its order.
_FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_small",
            "AR_medium", "AR_large")  # fmt: skip


@dataclass(frozen=True)
class DetectionResult:
    """The average precision of a detector on a set of images.

    Attributes:
        figures: by name. AP is the mean over classes and over IoU thresholds from .50 to .95, AP50 and AP75 are at one
            threshold, the others by area (below 32², up to 96², above) and as recall (AR) with so many boxes an image.
            A figure without a true box is left out.
        by_class: AP of each class that has a true box.
        images: their number.
        boxes: the number of true boxes, without crowds.
        found: the number of predicted boxes.
    """

    figures: dict[str, float]
    by_class: dict[str, float]
    images: int
    boxes: int
    found: int

    def table(self) -> str:
        """The figures as text."""
        shown = "   ".join(f"{name} {self.figures[name]:.3f}" for name in _FIGURES[:6] if name in self.figures)
        width = max(map(len, self.by_class), default=0)
        lines = [f"{self.images:,} images, {self.boxes:,} true boxes, {self.found:,} predicted ones", shown]
        return "\n".join(lines + [f"  {name:{width}}  AP {value:.3f}" for name, value in self.by_class.items()])

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        counts = {"images": self.images, "true_boxes": self.boxes, "predicted_boxes": self.found}
        return {**self.figures, **counts, "ap_by_class": self.by_class}

    def plot(self) -> Any:
        """A figure: the AP of each class, and the mean."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 1.5 + 0.25 * len(self.by_class)), layout="constrained")
        axes = figure.subplots()
        names = [*self.by_class]
        axes.barh(names, [*self.by_class.values()])
        axes.axvline(self.figures.get("AP", 0.0), color="gray", linestyle="--", linewidth=1, label="mean")
        axes.set(xlabel="AP", xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), title="detection")
        axes.legend()
        return figure


def evaluate_detections(found: Mapping[int, Mapping[str, Shaped[Tensor, "..."]]], table: BoxTable) -> DetectionResult:
    """The average precision of predicted boxes.

    Args:
        found: by row of an image, `boxes` x0 y0 x1 y1 in pixels of the original image, `labels` from 1, and `scores`.
            Only these images count.
        table: the true boxes.

    Raises:
        InputError: there are no images, or none of them has a true box.
        MissingDependencyError: pycocotools is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "evaluate_detections", expected="pycocotools", got=str(error), fix='pip install "mmcon[detection]"'
        ) from error
    truth = _true_boxes(found, table)
    if not any(not box["iscrowd"] for box in truth):
        raise InputError("evaluate_detections", expected="images with true boxes", got=f"none in {len(found):,} images")
    predicted = _predicted_boxes(found)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_coco(truth, found, table), _coco(predicted, found, table), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Thresholds, recalls, classes, areas (all), and numbers of boxes (the largest); -1 without a true box.
    precision = torch.as_tensor(evaluation.eval["precision"])[:, :, :, 0, -1]
    of_class = {name: precision[:, :, number] for number, name in enumerate(table.classes)}
    by_class = {name: float(values.mean()) for name, values in of_class.items() if bool((values > -1).all())}
    figures = {name: float(value) for name, value in zip(_FIGURES, evaluation.stats, strict=True) if value > -1}
    count = sum(not box["iscrowd"] for box in truth)
    return DetectionResult(figures, by_class, len(found), count, len(predicted))


def _coco(boxes: list[dict[str, Any]], images: Mapping[int, Any], table: BoxTable) -> Any:
    """A data set of pycocotools with these boxes, numbered from 1: it takes 0 for no match."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    data: Any = COCO()
    data.dataset = {
        "images": [{"id": row} for row in images],
        "categories": [{"id": label, "name": name} for label, name in enumerate(table.classes, 1)],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
    }
    data.createIndex()
    return data


def _true_boxes(images: Mapping[int, Any], table: BoxTable) -> list[dict[str, Any]]:
    rows = []
    for row in images:
        own = table.of_image(row)
        crowd, area = table.crowd[own].tolist(), table.area[own].tolist()
        plain = zip(_corner_and_sides(table.boxes[own]), table.labels[own].tolist(), crowd, area, strict=True)
        rows += [
            {"image_id": row, "category_id": label, "bbox": box, "iscrowd": int(is_crowd), "area": size}
            for box, label, is_crowd, size in plain
        ]
    return rows


def _predicted_boxes(found: Mapping[int, Mapping[str, Shaped[Tensor, "..."]]]) -> list[dict[str, Any]]:
    rows = []
    for row, own in found.items():
        plain = zip(_corner_and_sides(own["boxes"]), own["labels"].tolist(), own["scores"].tolist(), strict=True)
        rows += [
            {"image_id": row, "category_id": label, "bbox": box, "score": score, "area": box[2] * box[3], "iscrowd": 0}
            for box, label, score in plain
        ]
    return rows


def _corner_and_sides(boxes: Shaped[Tensor, "k 4"]) -> list[list[float]]:
    """Boxes as x y width height."""
    boxes = boxes.detach().cpu().double()
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
