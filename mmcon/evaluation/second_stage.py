"""The end of a recipe in two stages: features once, the figures that are read from them, and what they are set beside.

features = features_of(run, {"trained encoder": (model, views), …}, train, test)
figures = {name: judge(*pair) for name, pair in features.items()}
print(table(figures, n=len(test))); run.finish(results(figures, test.classes))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.knn import knn
from mmcon.evaluation.linear_classifier import LinearStage, accuracy, train_classifier
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.statistics import Classification
from mmcon.loading.loader import ViewLoader, Views, one_pass
from mmcon.samplers.base import UniformSampler
from mmcon.sources.base import Source, class_counts, class_weights
from mmcon.training.run import Run, seed_model

Figures = dict[str, dict[str, Classification]]


def pixels(batch: ViewBatch) -> Any:
    """The images themselves as features."""
    return batch.views["image"][0].flatten(1)


def features_of(
    run: Run, encoders: Mapping[str, tuple[Callable[..., Any] | nn.Module, Views]], train: Source, test: Source
) -> dict[str, tuple[Features, Features]]:
    """Features of both parts under each encoder, each row computed once, by as many processes as there are.

    Args:
        run: whose folder keeps them, and whose processes share the work.
        encoders: by name, what encodes (see `extract`), and the views that it sees.
        train: the training part.
        test: the held-out part.
    """

    def of(name: str, part: str, source: Source) -> Features:
        encode, views = encoders[name]
        rows = one_pass(source, views, device=run.device, rank=run.rank, world_size=run.world_size)
        files = [run.folder / "features" / f"{name}, {part}, {p}.safetensors" for p in range(run.world_size)]
        extract_features(encode, rows).save(files[run.rank])
        run.accelerator.wait_for_everyone()
        return Features.cat([Features.load(file) for file in files])

    return {name: (of(name, "train", train), of(name, "test", test)) for name in encoders}


def judge(train: Features, test: Features) -> dict[str, Classification]:
    """The linear probe and the nearest neighbours."""
    return {"linear_probe": linear_probe(train, test), "knn": knn(train, test, k=min(200, len(train)))}


def published_stage(
    run: Run,
    model: nn.Module,
    train: Source,
    test: Source,
    *,
    views: Views,
    test_views: Views,
    batch_size: int,
    stage: LinearStage,
    weight_power: float = 0.0,
) -> dict[str, float]:
    """Train a linear classifier on views of its own over the frozen encoder, and judge it on the test part.

    Args:
        run: whose seed and processes are used.
        model: a ContrastiveModel; it stays as it is.
        train: the training part, with labels.
        test: the held-out part.
        views: of the training part.
        test_views: of the held-out part.
        batch_size: samples in a step, over all processes.
        stage: how to train.
        weight_power: classes weigh n^-power in the loss; 0: alike.
    """
    classes = len(train.classes)
    if train.labels is None or batch_size > len(train):
        got = f"{len(train)} rows {'without' if train.labels is None else 'with'} labels, a batch of {batch_size}"
        raise ConfigError("the second stage", expected="labels, and a batch of rows at least", got=got)
    sampler = UniformSampler(train.labels, batch_size=batch_size, seed=run.seed)
    part: dict[str, Any] = {"device": run.device, "rank": run.rank, "world_size": run.world_size}
    loader = ViewLoader(train, views, sampler, seed=run.seed, **part)
    seed_model(run.seed, "second stage")
    weights = class_weights(class_counts(train), power=weight_power) if weight_power else None
    classifier = train_classifier(model, loader, classes=classes, stage=stage, class_weights=weights, device=run.device)
    return accuracy(classifier, one_pass(test, test_views, device=run.device))


def table(figures: Figures, n: int) -> str:
    """The figures for a person to read."""
    lines = [f"top-1 [95 % interval over images] / top-5 on {n} held-out images"]
    for name, of in figures.items():
        probe, near = of["linear_probe"], of["knn"]
        lines.append(f"  {name:<16} linear probe {probe.interval()} / {probe.top5:.3f}")
        lines.append(f"  {'':<16} k-NN         {near.interval()} / {near.top5:.3f}")
    return "\n".join(lines)


def results(figures: Figures, classes: Sequence[str] = ()) -> dict[str, Any]:
    """What results.json holds: the trained encoder's figures, by class too, and the others beside them."""
    trained = figures["trained encoder"]
    baselines = {
        name.replace(" ", "_"): {"linear_probe_top1": of["linear_probe"].top1, "knn_top1": of["knn"].top1}
        for name, of in figures.items()
        if of is not trained
    }
    probe = trained["linear_probe"]
    interval = probe.interval()
    called = {label: classes[label] if label < len(classes) else str(label) for label in probe.per_class}
    return {
        **{name: {"top1": c.top1, "top5": c.top5} for name, c in trained.items()},
        "linear_probe_top1_interval": [interval.low, interval.high],
        **baselines,
        "linear_probe_top1_by_class": {called[label]: share for label, share in probe.per_class.items()},
    }
