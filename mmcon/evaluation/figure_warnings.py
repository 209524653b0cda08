"""Warnings about figures that say little: from few samples, without samples of a class, or no better than at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcon.evaluation.statistics import Classification, mcnemar, wilson

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
    trained, *_ = metrics.values()
    random = next((m for name, m in metrics.items() if name.startswith(("random", "untrained"))), {})
    shares = [name for name in SHARES if name in trained]
    warnings = []
    widest = max((_interval(trained[name], n) for name in shares), key=lambda i: i.high - i.low, default=None)
    if widest is not None and widest.high - widest.low > WIDE_INTERVAL:
        warnings.append(f"few {kind}: with {n} held out, the 95 % interval of an accuracy is as wide as {widest}")
    for name in shares:
        if isinstance(trained[name], Classification) and classes:
            absent = [label for number, label in enumerate(classes) if number not in trained[name].per_class]
            if absent:
                shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
                warnings.append(f"no held-out {kind} of {len(absent)} of {len(classes)} classes: {shown}")
            break
    equal = [name for name in shares if name in random and not _is_better(trained[name], random[name])]
    if equal:
        values = "; ".join(f"{name} {_value(trained[name]):.3f} and {_value(random[name]):.3f}" for name in equal)
        warnings.append(f"the trained encoder is not better than a random one by {values}")
    return warnings


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
