"""A learning-rate range test: the rate rises over a few steps, and the loss shows how far it may rise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmcon.training.collapse import COLLAPSED_SPREAD
from mmcon.training.config import RANGE_TEST_STEPS

#: The rate rises evenly in its logarithm between these multiples of the optimizer's learning rate.
LOWEST, HIGHEST = 1e-3, 1e2
#: Weight of the earlier steps in the smoothed loss.
SMOOTHING = 0.8
#: The suggestion is this fraction of the rate with the lowest loss, beyond which training is unstable.
MARGIN = 0.1


def range_schedule(optimizer: Optimizer) -> LambdaLR:
    """The schedule of the test, over `RANGE_TEST_STEPS` steps."""
    rise = math.log(HIGHEST / LOWEST) / (RANGE_TEST_STEPS - 1)
    return LambdaLR(optimizer, lambda step: LOWEST * math.exp(rise * step))


def suggested_rate(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """A tenth of the rate at which the smoothed loss was lowest (Smith 2017); None if no rate lowered it.

    Steps from which on the embeddings stay collapsed do not count: their loss may be below the first one.

    Args:
        lines: of metrics.jsonl, one a step.
    """
    spreads = [line.get("embedding_spread", 1.0) for line in lines]
    collapsed = len(list(itertools.takewhile(lambda spread: spread < COLLAPSED_SPREAD, reversed(spreads))))
    mean, smoothed = 0.0, []
    for step, line in enumerate(lines[: len(lines) - collapsed], 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * line["loss"]
        smoothed.append(mean / (1 - SMOOTHING**step))
    if not smoothed or min(smoothed) >= smoothed[0]:
        return None
    return MARGIN * lines[smoothed.index(min(smoothed))]["learning_rate"]


def range_test_report(lines: Sequence[Mapping[str, Any]]) -> str:
    """The loss by rate, a line for each tenth of the test, and the suggestion."""
    table = [f"  {line['learning_rate']:.1e}  {line['loss']:.4f}" for line in lines[:: max(1, len(lines) // 10)]]
    rate = suggested_rate(lines)
    advice = (
        f"suggestion: --learning-rate {rate:.1e}"
        if rate is not None
        else "no rate lowered the loss: check views and labels, or raise --batch-size"
    )
    return "\n".join(["range test of the learning rate", "  rate     loss", *table, advice])
