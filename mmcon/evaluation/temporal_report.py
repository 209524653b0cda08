"""Every figure of one encoder in time, clip by clip, with intervals over clips; and the table of several encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.statistics import bootstrap
from mmcon.evaluation.temporal import (
    clip_ids,
    lag_correlation,
    lag_error,
    order_accuracy,
    retrieval_seconds,
    slowness,
    slowness_spectrum,
)

# With fewer training clips, the fifth of them that chooses the strength of the class probe may be none: it is set then.
ENOUGH_CLIPS = 16
NAMES = {
    "lag_correlation": "distance follows time (Spearman)",
    "retrieval_seconds": "nearest neighbour off by, seconds",
    "order_accuracy": "order of two moments, share right",
    "lag_error_seconds": "lag of two moments off by, seconds",
    "class_probe_top1": "class, top-1",
    "slowness_median": "slowness of a feature, median, 1/s²",
    "slowness_spectrum": "slowest three directions, 1/s²",
}


def evaluate_temporal(train: Features, test: Features, *, seed: int) -> dict[str, Any]:
    """Every figure of one encoder: the mean over clips, its 95 % interval where there are two or more, and by clip.

    Beside them how slow each feature is on held-out clips, slowest first, and the spectrum of the slowest directions,
    which are fitted, on training clips.

    Rows of one `sample` (a window of a clip, or the clip) are compared with one another; a clip counts by the mean over
    its windows.

    Args:
        train: moments on which linear readings are fitted.
        test: moments of clips that were held out.
        seed: of the bootstrap.
    """
    by_clip = {
        "lag_correlation": lag_correlation(test),
        "retrieval_seconds": retrieval_seconds(test),
        "order_accuracy": order_accuracy(train, test),
        "lag_error_seconds": lag_error(train, test),
    }
    figures: dict[str, Any] = {"by_clip": {name: values.tolist() for name, values in by_clip.items()}}
    figures["clip_ids"] = clip_ids(test).tolist()
    for name, values in by_clip.items():
        figures[name] = float(values.mean())
        if len(values) > 1:
            interval = bootstrap(values, seed=seed)
            figures[f"{name}_interval"] = [interval.low, interval.high]
    of_features = slowness(test)
    of_features = of_features[of_features.isfinite()]
    figures["slowness"] = of_features.sort().values.tolist()
    if len(of_features):
        figures["slowness_median"] = float(of_features.median())
    figures["slowness_spectrum"] = slowness_spectrum(train)[:16].tolist()
    if "label" in test.index and _class_can_be_told(train, test):
        enough = len(train.index["sample"].unique()) >= ENOUGH_CLIPS
        figures["class_probe_top1"] = linear_probe(train, test, **({} if enough else {"l2": 0.1})).top1
    return figures


def temporal_metrics_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of several encoders for a person to read, an encoder a column."""
    lines = [f"{'':36}" + "".join(f"{name:>24}" for name in figures)]
    for key, text in NAMES.items():
        cells = [_cell(of, key) for of in figures.values()]
        if any(cells):
            lines.append(f"{text:36}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def _class_can_be_told(train: Features, test: Features) -> bool:
    """Whether there are two classes to learn, and no other to be asked for."""
    known = train.index["label"].unique()
    return len(known) > 1 and bool(torch.isin(test.index["label"], known).all())


def _cell(figures: Mapping[str, Any], key: str) -> str:
    if key not in figures:
        return ""
    if isinstance(figures[key], list):
        return " ".join(f"{value:.2g}" for value in figures[key][:3])
    ends = figures.get(f"{key}_interval")
    return f"{figures[key]:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
