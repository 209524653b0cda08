"""Warnings about figures that say little: from few samples, without samples of a class, or no better than at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from mmcon.evaluation.statistics import Classification, Interval, mcnemar, paired_permutation, wilson

#: A 95 % interval wider than this is reported as a figure from too few samples: that of .5 over 92 samples.
WIDE_INTERVAL = 0.2
#: The p-value of McNemar's test from which on two classifiers count as equal.
SIGNIFICANCE = 0.05
#: Metrics that are shares of the test samples, higher is better.
SHARES = ("linear_probe", "knn", "voice_probe", "voice_knn")


def figure_warnings(
    metrics: Mapping[str, Mapping[str, Any]], n: int, *, classes: Sequence[str] = (), kind: str = "samples"
) -> list[str]:
    """What a reader must know before the figures are used.

    Args:
        metrics: by encoder, the trained one first; a baseline whose name begins with "random" or "untrained" is
            compared with it. The shares are accuracies, as numbers or with the predictions of each sample.
        n: the number of test samples.
        classes: the names of all classes, by label.
        kind: of the samples, for the messages.
    """
    trained, random = _compared(metrics)
    shares = [name for name in SHARES if name in trained]
    warnings = []
    widest = max((_interval(trained[name], n) for name in shares), key=lambda i: i.high - i.low, default=None)
    warnings += _few(kind, n, "an accuracy", widest)
    for name in shares:
        if isinstance(trained[name], Classification) and classes:
            absent = [label for number, label in enumerate(classes) if number not in trained[name].per_class]
            if absent:
                shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
                warnings.append(f"no held-out {kind} of {len(absent)} of {len(classes)} classes: {shown}")
            break
    equal = {name: (trained[name], random[name]) for name in shares if name in random}
    return warnings + _not_better({name: pair for name, pair in equal.items() if not _is_better(*pair)})


def retrieval_warnings(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same for recall at 1 between the modalities of held-out samples; none if the metrics have no such recall.

    Args:
        metrics: by encoder, the trained one first, as `mmcon.evaluation.cross_modal_report` returns them.
    """
    trained, random = (dict(_recalls(of.get("held_out", {}))) for of in _compared(metrics))
    if not trained:
        return []
    recall, queries = min(trained.values(), key=lambda found: found[1])
    warnings = _few("pairs", queries, "recall at 1", _interval(recall, queries))
    pairs = {f"recall at 1, {name}": (trained[name][0], random[name][0]) for name in trained if name in random}
    return warnings + _not_better({name: pair for name, pair in pairs.items() if not _is_better(*pair)})


def temporal_warnings(metrics: Mapping[str, Mapping[str, Any]], clips: int) -> list[str]:
    """The same for the order of two frame times and the correlation of distance and time, by held-out video.

    Args:
        metrics: by encoder, the trained one first, as `mmcon.evaluation.temporal_report` returns them.
        clips: the number of held-out videos.
    """
    trained, random = _compared(metrics)
    low, high = trained.get("order_accuracy_interval", (0.0, 1.0))
    interval = Interval(trained["order_accuracy"], low, high, 0.95, clips)
    pairs = {name: (trained[name], random[name]) for name in ("lag_correlation", "order_accuracy") if name in random}
    by_clip = {name: [torch.tensor(of["by_clip"][name]) for of in (trained, random)] for name in pairs}
    equal = {
        name: pair
        for name, pair in pairs.items()
        if not (pair[0] > pair[1] and paired_permutation(*by_clip[name]).p_value < SIGNIFICANCE)
    }
    return _few("videos", clips, "the order of two frame times", interval) + _not_better(equal)


def _compared(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The metrics of the trained encoder, and those of the random one, if there is one."""
    trained, *_ = metrics.values()
    return trained, next((m for name, m in metrics.items() if name.startswith(("random", "untrained"))), {})


def _few(kind: str, n: int, figure: str, interval: Any) -> list[str]:
    if interval is None or interval.high - interval.low <= WIDE_INTERVAL:
        return []
    return [f"few {kind}: with {n} held out, the 95 % interval of {figure} is as wide as {interval}"]


def _not_better(figures: Mapping[str, tuple[Any, Any]]) -> list[str]:
    values = "; ".join(f"{name} {_value(own):.3f} and {_value(other):.3f}" for name, (own, other) in figures.items())
    return [f"the trained encoder is not better than a random one by {values}"] if figures else []


def _recalls(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[float, int]]]:
    """Every recall at 1 with its number of queries, by the path of its direction."""
    for name, value in results.items():
        if isinstance(value, Mapping) and "recall_at_1" in value:
            yield f"{prefix}{name}", (value["recall_at_1"], value["queries"])
        elif isinstance(value, Mapping):
            yield from _recalls(value, f"{prefix}{name} ")


def _value(share: Any) -> float:
    return share.top1 if isinstance(share, Classification) else float(share)


def _interval(share: Any, n: int) -> Any:
    return share.interval() if isinstance(share, Classification) else wilson(round(float(share) * n), n)


def _is_better(trained: Any, random: Any) -> bool:
    """Whether the difference is positive and, where the predictions are known, significant."""
    if _value(trained) <= _value(random):
        return False
    if isinstance(trained, Classification) and isinstance(random, Classification):
        return mcnemar(trained.correct, random.correct).p_value < SIGNIFICANCE
    return True
