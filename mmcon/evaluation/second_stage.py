"""The second stage of a recipe: features of every encoder, extracted once, and the metrics that are read from them.

features = extract_all(run, {"trained encoder": (model, views), "raw pixels": (pixels, views)}, train, test)
metrics = evaluate_all(features)
print(metrics_table(metrics, n=len(test)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError
from mmcon.evaluation.calibrated_probe import probe_and_save
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.figure_warnings import figure_warnings, retrieval_warnings
from mmcon.evaluation.knn import knn
from mmcon.evaluation.linear_classifier import accuracy, train_classifier
from mmcon.evaluation.saved_predictions import save_predictions
from mmcon.evaluation.shown_samples import show_features
from mmcon.evaluation.statistics import Classification
from mmcon.loading.loader import Views, one_pass
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source, class_counts, class_weights
from mmcon.training.run import Run
from mmcon.training.seeds import seed_model

Encode = Callable[..., Any] | nn.Module
Metrics = Mapping[str, Mapping[str, Classification]]


def pixels(batch: ViewBatch) -> Float[Tensor, "b d"]:
    """The pixels of the images as features."""
    return batch.views["image"][0].flatten(1)


def extract_all(
    run: Run,
    encoders: Mapping[str, tuple[Encode, Views]],
    train: Source,
    test: Source,
    *,
    batch_size: int = 512,
    show: bool = True,
) -> dict[str, tuple[Features, Features]]:
    """Features of the training and of the test split under each encoder; every sample is encoded once.

    Every rank must call this. The ranks share the samples and exchange the features as files in `features/` of the run
    folder.

    Args:
        run: gives the folder, the device and the ranks.
        encoders: by name, an encoder (see `extract_features`; modules move to the device) and the views that it takes.
        train: the training split.
        test: the test split.
        batch_size: samples that are encoded at once.
        show: whether the run page shows the test samples under the first encoder, and under a random one.
    """

    def extract(name: str, split: str, source: Source) -> Features:
        encode, views = encoders[name]
        encode = encode.to(run.device) if isinstance(encode, nn.Module) else encode
        ranks = min(run.world_size, len(source))  # a rank without samples extracts nothing
        stem = run.folder / "features" / f"{name.replace(' ', '_')}-{split}"
        shards = [f"-rank{rank}" for rank in range(ranks)] if run.world_size > 1 else [""]
        files = [stem.with_name(f"{stem.name}{shard}.safetensors") for shard in shards]
        failures: dict[int, str] = {}
        if run.rank < ranks:
            shard: dict[str, Any] = {"rank": run.rank, "world_size": ranks, "failures": failures}
            loader = one_pass(source, views, batch_size=batch_size, device=run.device, **shard)
            title, total = f"features of {name}, {split}", -(-len(source) // ranks)
            extract_features(encode, loader, title=title, total=total).save(files[run.rank])
        rows = {sample: int((source.ids == sample).nonzero()[0]) for sample in failures}
        run.add_unreadable({source.name_of(rows[sample]): reason for sample, reason in failures.items()})
        run.accelerator.wait_for_everyone()
        return Features.cat([Features.load(file) for file in files])

    features = {name: (extract(name, "train", train), extract(name, "test", test)) for name in encoders}
    if show and run.is_main:
        show_features(run.folder, test, features)
    return features


def evaluate_features(
    train: Features,
    test: Features,
    *,
    neighbors: int = 200,
    title: str = "linear probe",
    model_folder: Path | None = None,
    classes: Sequence[str] = (),
    modality: str = "image",
) -> dict[str, Classification]:
    """Classification by a linear probe and by the nearest neighbors in the training split.

    Args:
        train: labeled features of the training split.
        test: features of the held-out split.
        neighbors: the number of neighbors.
        title: the name of the phase, for the progress.
        model_folder: a saved model beside which the probe is saved, with the names of its classes; the predictions are
            saved in the folder above it, that of the run.
        classes: their names, by label.
        modality: the modality of the features.
    """
    saved: dict[str, Any] = {"model_folder": model_folder, "classes": classes, "modality": modality}
    probe = probe_and_save(train, test, title=title, **saved)
    found = {"linear_probe": probe, "knn": knn(train, test, k=min(neighbors, len(train)))}
    if model_folder is not None:
        save_predictions(model_folder.parent, found, test)
    return found


def evaluate_all(
    features: Mapping[str, tuple[Features, Features]],
    *,
    model_folder: Path | None = None,
    classes: Sequence[str] = (),
) -> dict[str, dict[str, Classification]]:
    """`evaluate_features` of several encoders; the probe of the first is saved in the folder of its model."""
    folders = {name: model_folder if name == next(iter(features)) else None for name in features}
    return {
        name: evaluate_features(
            train, test, title=f"linear probe of {name}", model_folder=folders[name], classes=classes
        )
        for name, (train, test) in features.items()
    }


def published_stage(
    run: Run,
    config: Any,
    model: nn.Module,
    train: Source,
    test: Source,
    *,
    views: Views,
    test_views: Views,
) -> dict[str, dict[str, float]]:
    """Train a linear classifier on augmented views over the frozen encoder, as published, and evaluate it.

    Args:
        run: gives the seed, the device and the ranks.
        config: the configuration, with `linear_stage`, `linear`, `linear_batch_size` and `class_weight_power` (the loss
            weighs a class of n samples by n^-power).
        model: a ContrastiveModel; it does not change.
        train: the training split, with labels.
        test: the test split.
        views: of the training split.
        test_views: of the test split.

    Returns:
        Accuracies on the test split under "linear_stage"; empty if the flags have no such stage.
    """
    if config.linear_stage != "published":
        return {}
    batch_size, class_weight_power = config.linear_batch_size, config.class_weight_power
    if train.labels is None or batch_size > len(train):
        got = f"{len(train)} rows {'without' if train.labels is None else 'with'} labels, a batch of {batch_size}"
        raise ConfigError("the second stage", expected="labels, and at most as large a batch as the data", got=got)
    loader = run.loader(train, views, UniformSampler(train.labels, batch_size=batch_size, seed=run.seed))
    seed_model(run.seed, "second stage")
    weights = class_weights(class_counts(train), power=class_weight_power) if class_weight_power else None
    classes = len(train.classes)
    stage: dict[str, Any] = {"classes": classes, "stage": config.linear, "class_weights": weights}
    classifier = train_classifier(model, loader, device=run.device, **stage)
    found = accuracy(classifier, one_pass(test, test_views, device=run.device))
    run.print(f"linear classifier, trained as published: {found}")
    return {"linear_stage": found}


def results_json(metrics: Mapping[str, Mapping[str, Any]], *, n: int | None = None) -> dict[str, Any]:
    """The content of results.json: the metrics of the first encoder, and those of the others under their names.

    Args:
        metrics: by encoder.
        n: the number of test samples of accuracies; given, `warnings` are added (see `figure_warnings`). Those of
            retrieval (see `retrieval_warnings`) are always added.

    >>> results_json({"trained": {"knn": 0.9}, "raw pixels": {"knn": 0.6}})
    {'knn': 0.9, 'raw_pixels': {'knn': 0.6}}
    """
    trained, *_ = metrics.values()
    results = {**trained, **{_json_name(name): other for name, other in metrics.items() if other is not trained}}
    return results | with_warnings(retrieval_warnings(metrics) + ([] if n is None else figure_warnings(metrics, n)))


def with_warnings(warnings: list[str]) -> dict[str, Any]:
    """The warnings as an entry of results.json, if there are any."""
    return {"warnings": warnings} if warnings else {}


def metrics_table(metrics: Metrics, n: int) -> str:
    """The top-1 accuracies of several encoders on n test images as text, with their 95 % intervals over images."""
    lines = [f"top-1 [95 % interval] on {n:,} held-out images", f"  {'':<16}  {'linear probe':<20}  k-NN"]
    for name, of_encoder in metrics.items():
        lines.append(f"  {name:<16}  {of_encoder['linear_probe'].interval()}  {of_encoder['knn'].interval()}")
    return "\n".join(lines)


def metrics_json(metrics: Metrics, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of results.json: the metrics of the trained encoder, also by class, and the baselines' by name."""
    trained = metrics["trained encoder"]
    baselines = {
        _json_name(name): {"linear_probe_top1": other["linear_probe"].top1, "knn_top1": other["knn"].top1}
        for name, other in metrics.items()
        if other is not trained
    }
    probe = trained["linear_probe"]
    intervals = {f"{name}_top1_interval": _ends(c) for name, c in trained.items()}
    class_names = {label: classes[label] if label < len(classes) else str(label) for label in probe.per_class}
    return {
        **{name: {"top1": c.top1, "top5": c.top5} for name, c in trained.items()},
        **intervals,
        **baselines,
        "linear_probe_top1_by_class": {class_names[label]: share for label, share in probe.per_class.items()},
        **with_warnings(figure_warnings(metrics, len(probe.correct), classes=classes, kind="images")),
    }


def _ends(accuracy: Classification) -> list[float]:
    interval = accuracy.interval()
    return [interval.low, interval.high]


def _json_name(name: str) -> str:
    """A title as a key: "trained, luminance alone" is "trained_luminance_alone"."""
    return name.replace(",", "").replace(" ", "_")
