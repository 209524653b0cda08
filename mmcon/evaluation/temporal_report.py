"""The temporal metrics of a video model: by clip, with intervals over clips, and as a table of several encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.evaluation.calibrated_probe import fit_calibrated_probe
from mmcon.evaluation.features import Features
from mmcon.evaluation.figure_warnings import temporal_warnings
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.second_stage import extract_all, with_warnings
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
from mmcon.evaluation.view_rows import combine_views
from mmcon.loading.loader import Views
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.sources.base import Source
from mmcon.training.run import Run

# With fewer training clips the held-out fifth, which selects the L2 strength of the class probe, may be empty; the
# strength is then fixed.
ENOUGH_CLIPS = 16
ROW_TITLES = {
    "lag_correlation": "distance follows time (Spearman)",
    "retrieval_seconds": "nearest neighbor off by, seconds",
    "order_accuracy": "order of two frame times, accuracy",
    "lag_error_seconds": "lag of two frame times off by, seconds",
    "class_probe_top1": "class, top-1",
    "slowness_median": "slowness of a feature, median, 1/s²",
    "slowness_spectrum": "slowest three directions, 1/s²",
}


def evaluate_videos(
    run: Run,
    models: Mapping[str, ContrastiveModel],
    train: Source,
    test: Source,
    *,
    views: Mapping[str, Views],
) -> dict[str, Any]:
    """The temporal metrics of several models, under several kinds of views; their tables are printed.

    Every rank must call this. The probe of the first model is saved beside it, in model/ of the run, if it is there.
    The result also has those of the first model's embeddings in each of its spaces, and those of raw pixels.

    Args:
        run: gives the folder, the device, the ranks, and the seed of the intervals.
        models: models of video by name, the trained one first.
        train: training clips, for linear readouts.
        test: held-out clips.
        views: by kind, such as "plain", the views of a clip.

    Returns:
        Metrics by kind of views and by encoder, the number of `clips`, and any `warnings` about the first kind (see
        `temporal_warnings`); empty on ranks other than the main one.
    """
    metrics: dict[str, Any] = {}
    trained, *_ = models
    for kind, of_kind in views.items():
        encoders = {**models, "raw_pixels": small_frames}
        subjects = {f"{name} {kind}": (encode, of_kind) for name, encode in encoders.items()}
        extracted = extract_all(run, subjects, train, test, batch_size=16, show=kind == next(iter(views)))
        if not run.is_main:
            continue
        features = dict(zip(encoders, extracted.values(), strict=True))
        for space in models[trained].spaces:
            known, queried = (space_embeddings(models[trained], space, split) for split in features[trained])
            features[space] = known, queried
        metrics[kind] = {name: evaluate_temporal(*splits, seed=run.seed) for name, splits in features.items()}
        run.print(f"{kind}\n{temporal_metrics_table(metrics[kind])}")
        if kind == next(iter(views)):
            save_clip_probe(*extracted[f"{trained} {kind}"], classes=train.classes, model_folder=run.folder / "model")
    if run.is_main:
        clips = metrics["clips"] = len(clip_ids(next(iter(features.values()))[1]))
        plain = {name: of for name, of in metrics[next(iter(views))].items() if name in models}
        metrics |= with_warnings(temporal_warnings(plain, clips))
        run.print(f"held-out videos: {metrics['clips']}; 95 % intervals over videos")
    return metrics


def save_clip_probe(train: Features, test: Features, *, classes: Sequence[str], model_folder: Path) -> None:
    """Save a probe of the class from the mean features of training clips, as `mmcon.load` computes them.

    Nothing is saved without a model, or without two classes that are known in training.
    """
    if not model_folder.is_dir() or "label" not in test.index or not _has_known_classes(train, test):
        return
    clips = combine_views(train, views=int(train.index["view"].max()) + 1, how="mean")
    fit_calibrated_probe(clips, classes, **_probe_options(len(clips))).save(model_folder, "video")


def _probe_options(clips: int) -> dict[str, Any]:
    return {} if clips >= ENOUGH_CLIPS else {"l2": 0.1}


def evaluate_temporal(train: Features, test: Features, *, seed: int) -> dict[str, Any]:
    """All temporal metrics of one encoder: the mean over clips, a 95 % interval (from two clips on), and by clip.

    Also the slowness of each feature on held-out clips, slowest first, and the spectrum of the slowest directions of
    training clips.

    Rows of one `sample` (a clip or a window of it) are compared with one another; a clip counts by the mean over its
    windows.

    Args:
        train: features at frame times of training clips, for linear readouts.
        test: features at frame times of held-out clips.
        seed: the seed of the bootstrap.
    """
    by_clip = {
        "lag_correlation": lag_correlation(test),
        "retrieval_seconds": retrieval_seconds(test),
        "order_accuracy": order_accuracy(train, test),
        "lag_error_seconds": lag_error(train, test),
    }
    metrics: dict[str, Any] = {"by_clip": {name: values.tolist() for name, values in by_clip.items()}}
    metrics["clip_ids"] = clip_ids(test).tolist()
    for name, values in by_clip.items():
        metrics[name] = float(values.mean())
        if len(values) > 1:
            interval = bootstrap(values, seed=seed)
            metrics[f"{name}_interval"] = [interval.low, interval.high]
    slownesses = slowness(test)
    slownesses = slownesses[slownesses.isfinite()]
    metrics["slowness"] = slownesses.sort().values.tolist()
    if len(slownesses):
        metrics["slowness_median"] = float(slownesses.median())
    metrics["slowness_spectrum"] = slowness_spectrum(train)[:16].tolist()
    if "label" in test.index and _has_known_classes(train, test):
        options = _probe_options(len(train.index["sample"].unique()))
        metrics["class_probe_top1"] = linear_probe(train, test, **options).top1
    return metrics


def temporal_metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of several encoders as text, one column per encoder."""
    lines = [f"{'':36}" + "".join(f"{name:>24}" for name in metrics)]
    for key, text in ROW_TITLES.items():
        cells = [_cell(of, key) for of in metrics.values()]
        if any(cells):
            lines.append(f"{text:36}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def small_frames(batch: ViewBatch) -> Float[Tensor, "n d"]:
    """The frames at 16 pixels a side as features: a baseline without training."""
    clips = batch.views["video"][0].flatten(0, 1)
    small = nn.functional.interpolate(clips, size=(16, 16), mode="bilinear", antialias=True)
    return small.unflatten(0, (batch.index["video"].n, -1)).flatten(1)


@torch.no_grad()
def space_embeddings(model: ContrastiveModel, space: str, features: Features) -> Features:
    """The embeddings in a space, computed from features by its projection head."""
    head: Any = model.heads[space]
    device = next(head.parameters()).device
    return Features(head["video"](features.values.to(device)).cpu(), features.index)


def _has_known_classes(train: Features, test: Features) -> bool:
    """Whether there are two classes in training, and no other in the test."""
    known = train.index["label"].unique()
    return len(known) > 1 and bool(torch.isin(test.index["label"], known).all())


def _cell(metrics: Mapping[str, Any], key: str) -> str:
    if key not in metrics:
        return ""
    if isinstance(metrics[key], list):
        return " ".join(f"{value:.2g}" for value in metrics[key][:3])
    ends = metrics.get(f"{key}_interval")
    return f"{metrics[key]:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
