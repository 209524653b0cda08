# ruff: noqa: D102 — an override does what its base says
"""Distance and time kernels: weights by the distance of labels, and by the time lag within a recording."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.affinity.base import Affinity, as_number, can_check, check_choice, has_values
from mmcon.affinity.factors import BandFactor, Factor, group_bands
from mmcon.affinity.groups import Groups
from mmcon.affinity.pairwise import OF_COLUMNS, Column, ColumnPair, Pair, Pairwise, at_least, equal
from mmcon.batch import Index
from mmcon.errors import InputError

LOG_2 = math.log(2)
#: Weights by distance over width, which they may overwrite: new memory takes as long as the operation. Exponentials are
#: to base 2, which take a third of the time on a CPU.
KERNELS: dict[str, Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]] = {
    "gaussian": lambda distance: distance.square_().mul_(-0.5 / LOG_2).exp2_(),
    "exponential": lambda distance: (distance / -LOG_2).exp2_(),
    "linear": lambda distance: (1 - distance).clamp_min(0),
    "sigmoid": lambda distance: 2 * torch.sigmoid(-distance),
    "step": lambda distance: (distance <= 1).to(distance.dtype),
}
#: Kernels that are above 0 at every distance.
INFINITE_SUPPORT = ("gaussian", "exponential", "sigmoid")


class LabelKernel(Pairwise, flattened=(*OF_COLUMNS, "kernel", "width", "floor")):
    """A kernel of the distance between continuous labels (y-Aware), for regression.

    `W = K(|y_i - y_j| / width)`, with K gaussian `exp(-x²/2)`, exponential `exp(-x)`, sigmoid `2 / (1 + exp(x))`,
    linear `max(0, 1 - x)` or a step `x <= 1`. The first three never reach 0 by their equations, so that no pair is
    negative without a floor; in floating point the weights of distant pairs round to 0 (`never_zero` tells).

    Args:
        labels: of anchors, `a` or `a k`, or the name of a column.
        candidates: of candidates; None: the same.
        kernel: the name of K.
        width: the scale of distances, above 0; a tensor receives its gradient.
        floor: weights below it become 0.

    Raises:
        InputError: an unknown kernel, a width that is not above 0, a floor outside [0, 1), or labels that are not
            finite.

    >>> LabelKernel(torch.tensor([0.0, 1.0]), width=2.0, kernel="linear").dense().tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """

    learnable_attributes = ("width",)

    def __init__(
        self,
        labels: Column = "label",
        candidates: Column | None = None,
        *,
        width: float | Float[Tensor, "..."],
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        super().__init__(ColumnPair(labels, candidates))
        self._set_kernel(kernel, width, floor)
        self.check_values()

    def _set_kernel(self, kernel: str, width: float | Float[Tensor, "..."], floor: float) -> None:
        check_choice(type(self).__name__, "kernel", kernel, tuple(KERNELS))
        self.kernel, self.width, self.floor = kernel, width, floor

    def check_values(self) -> None:
        if can_check(self.width) and not (0 < as_number(self.width) < float("inf") and 0 <= self.floor < 1):
            got = f"width={as_number(self.width)}, floor={self.floor}"
            raise InputError(type(self).__name__, expected="a finite width above 0 and a floor in [0, 1)", got=got)
        super().check_values()

    @property
    def infinite_support(self) -> bool:
        return self.kernel in INFINITE_SUPPORT and self.floor == 0

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        """Whether the weight at the largest distance is above 0: `exp(-x²/2)` is 0 from x = 11.8 on.

        On a GPU, where reading labels would wait for the device, it is `infinite_support`.
        """
        pair = self.column_pairs[0]
        if not self.infinite_support or not isinstance(pair.rows, Tensor) or pair.rows.is_cuda:
            return self.infinite_support
        labels = torch.cat([values.detach() for values in self.values()[0]])
        if not len(labels) or not has_values(labels):
            return True
        labels = labels if labels.is_floating_point() else labels.to(self.dtype)
        span = labels.reshape(len(labels), -1)
        return bool(self._kernel((span.amax(0) - span.amin(0)).square().sum().sqrt()) > 0)

    def _kernel(self, distance: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        """K of distances, which may be overwritten."""
        keeps = isinstance(self.width, Tensor) or distance.requires_grad
        scaled = distance / self.width if keeps else distance.div_(self.width)
        weights = KERNELS[self.kernel](scaled)
        return at_least(weights, self.floor) if self.floor or self.kernel in INFINITE_SUPPORT else weights

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        rows, columns = (v if v.is_floating_point() else v.to(self.dtype) for v in values[0])
        if rows.ndim == 1:
            return self._kernel((rows[:, None] - columns).abs_())
        return self._kernel((rows[:, None] - columns).square().sum(2).sqrt())


class ScoreKernel(LabelKernel):
    """A kernel of the distance between scores that are a function of the rows, such as annotators' scores over time.

    `W = K(|s_i - s_j| / width)`; for K see `LabelKernel`. Times `SameLabel("group")`, only pairs of one video count.

    Args:
        scores: a function from a table to the score of each row, such as `mmcon.sources.scores.Scores`.
        width: the scale of differences of scores, above 0; a tensor receives its gradient.
        kernel: gaussian, exponential, sigmoid, linear or step.
        floor: weights below it become 0.
    """

    def __init__(
        self,
        scores: Callable[[Index], Float[Tensor, " n"]],
        *,
        width: float | Float[Tensor, "..."],
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        super().__init__("score", width=width, kernel=kernel, floor=floor)
        self.scores = scores

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        own, other = (
            None if table is None else table.with_columns(score=self.scores(table)) for table in (rows, columns)
        )
        return super().bind(own or rows, other)


class TimeKernel(LabelKernel, flattened=(*OF_COLUMNS, "kernel", "width", "floor")):
    """A kernel of the time lag between two rows of one recording: graded video, audio, series.

    `W = K(|t_i - t_j| / width_seconds)` within a group and 0 across groups; for K see `LabelKernel`.

    Args:
        times: in seconds, `a`, or the name of a column.
        candidates: times of candidates; None: the same.
        width_seconds: the scale of time lags, above 0; a tensor receives its gradient.
        group: the recording of each row, integers `a`, or the name of a column; None: all rows are of one recording.
        candidate_group: that of candidates; None: the same.
        kernel: gaussian, exponential, sigmoid, linear or step.
        floor: weights below it become 0.
    """

    def __init__(
        self,
        times: Column = "time",
        candidates: Column | None = None,
        *,
        width_seconds: float | Float[Tensor, "..."],
        group: Column | None = "group",
        candidate_group: Column | None = None,
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        keys = [ColumnPair(times, candidates)] + ([] if group is None else [ColumnPair(group, candidate_group)])
        Pairwise.__init__(self, *keys)
        self._set_kernel(kernel, width_seconds, floor)
        self.check_values()

    @property
    def infinite_support(self) -> bool:
        return len(self.column_pairs) == 1 and super().infinite_support

    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        weights = super().pair_weights(values[0])
        if len(values) == 1:
            return weights
        rows, columns = values[1]
        return weights * equal(rows, columns, weights.dtype)

    def groups(self) -> Groups | None:
        return None if len(self.column_pairs) == 1 else Groups(*self.values()[1])

    def factors(self) -> tuple[Factor, ...] | None:
        """With small groups, W is a band of tiles. Otherwise, or with a learnable width, tiles are as fast."""
        if len(self.column_pairs) == 1 or any(True for _ in self.parameters()):
            return None
        (times, other_times), (groups, other_groups) = self.values()
        row_order, column_order, bands = group_bands(groups, other_groups)
        if sum((r.stop - r.start) * (c.stop - c.start) for r, c in bands) > len(groups) * len(other_groups) / 4:
            return None

        def tile_weights(i: Int[Tensor, " r"], j: Int[Tensor, " c"]) -> Float[Tensor, "r c"]:
            return self.pair_weights((times[i], other_times[j]), (groups[i], other_groups[j]))

        def weights_at(i: Int[Tensor, " m"], j: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
            lags = (times[i] - other_times[j]).abs()
            lags = lags if lags.is_floating_point() else lags.to(self.dtype)
            return self._kernel(lags) * (groups[i] == other_groups[j])

        return (BandFactor(row_order, column_order, tuple(bands), tile_weights, weights_at),)
