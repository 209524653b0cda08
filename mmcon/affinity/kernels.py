# ruff: noqa: D102 — an override does what its base says
"""Alike by how near they are: kernels of the distance between numbers, and of the time between moments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmcon.affinity.base import as_number, check_choice
from mmcon.affinity.factors import BandFactor, Factor, bands_of
from mmcon.affinity.pairwise import Column, Key, Pairwise
from mmcon.errors import InputError

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda distance: torch.exp(distance.square().mul(-0.5)),
    "exponential": lambda distance: torch.exp(-distance),
    "linear": lambda distance: (1 - distance).clamp_min(0),
    "sigmoid": lambda distance: 2 * torch.sigmoid(-distance),
    "step": lambda distance: (distance <= 1).to(distance.dtype),
}


UNENDING = ("gaussian", "exponential", "sigmoid")


class LabelKernel(Pairwise):
    """A kernel of the distance between continuous labels: y-Aware, and regression in general.

    `W = K(|y_i - y_j| / width)`, with K gaussian `exp(-x²/2)`, exponential `exp(-x)`, sigmoid `2 / (1 + exp(x))`,
    linear `max(0, 1 - x)` or a step `x <= 1`. The first three never reach 0, so that nothing is a negative, unless a
    floor cuts them off.

    Args:
        labels: of anchors, `a` or `a k`, or the name of a column.
        candidates: of candidates; None: the same.
        kernel: as above.
        width: the distance at which the kernel has fallen off; a tensor receives its gradient.
        floor: weights below it become 0.
    """

    learnable = ("width",)

    def __init__(
        self,
        labels: Column = "label",
        candidates: Column | None = None,
        *,
        width: float | Tensor,
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        super().__init__(Key(labels, candidates))
        self._set_kernel(kernel, width, floor)
        self.never_zero = kernel in UNENDING and floor == 0

    def _set_kernel(self, kernel: str, width: float | Tensor, floor: float) -> None:
        where = type(self).__name__
        check_choice(where, "kernel", kernel, tuple(KERNELS))
        if as_number(width) <= 0 or not 0 <= floor < 1:
            got = f"width={as_number(width)}, floor={floor}"
            raise InputError(where, expected="a width above 0 and a floor in [0, 1)", got=got)
        self.kernel, self.width, self.floor = kernel, width, floor

    def _kernel(self, distance: Tensor) -> Tensor:
        weights = KERNELS[self.kernel](distance / self.width)
        return weights if self.floor == 0 else weights * (weights >= self.floor)

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        rows, columns = (v if v.is_floating_point() else v.to(torch.get_default_dtype()) for v in values[0])
        if rows.ndim == 1:
            return self._kernel((rows[:, None] - columns).abs())
        return self._kernel((rows[:, None] - columns).square().sum(2).sqrt())


class TimeKernel(LabelKernel):
    """A kernel of the time between two moments of one recording: graded video, audio, series.

    `W = K(|t_i - t_j| / width_seconds)` within a group and 0 across groups; for K see `LabelKernel`.

    Args:
        times: in seconds, `a`, or the name of a column.
        candidates: times of candidates; None: the same.
        width_seconds: the time at which the kernel has fallen off; a tensor receives its gradient.
        group: which recording a row is from, integers `a` or a column's name; None: all rows are of one recording.
        candidate_group: that of candidates; None: the same.
        kernel: gaussian, exponential, sigmoid, linear or step.
        floor: weights below it become 0.
    """

    def __init__(
        self,
        times: Column = "time",
        candidates: Column | None = None,
        *,
        width_seconds: float | Tensor,
        group: Column | None = "group",
        candidate_group: Column | None = None,
        kernel: str = "gaussian",
        floor: float = 0.0,
    ) -> None:
        keys = [Key(times, candidates)] + ([] if group is None else [Key(group, candidate_group)])
        Pairwise.__init__(self, *keys)
        self._set_kernel(kernel, width_seconds, floor)
        self.never_zero = group is None and kernel in UNENDING and floor == 0

    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        weights = super().weigh(values[0])
        if len(values) == 1:
            return weights
        rows, columns = values[1]
        return weights * (rows[:, None] == columns)

    def factors(self) -> tuple[Factor, ...] | None:
        """Where groups are small, W is a band of blocks; else, or where the width learns, tiles are as quick."""
        if len(self.keys) == 1 or any(True for _ in self.parameters()):
            return None
        (times, other_times), (groups, other_groups) = self.values()
        row_order, column_order, bands = bands_of(groups, other_groups)
        if sum((r.stop - r.start) * (c.stop - c.start) for r, c in bands) > len(groups) * len(other_groups) / 4:
            return None

        def weigh(i: Tensor, j: Tensor) -> Tensor:
            return self.weigh((times[i], other_times[j]), (groups[i], other_groups[j]))

        def pairs(i: Tensor, j: Tensor) -> Tensor:
            return self._kernel((times[i] - other_times[j]).abs().to(self._dtype(times))) * (
                groups[i] == other_groups[j]
            )

        return (BandFactor(row_order, column_order, tuple(bands), weigh, pairs),)

    @staticmethod
    def _dtype(times: Tensor) -> torch.dtype:
        return times.dtype if times.is_floating_point() else torch.get_default_dtype()
