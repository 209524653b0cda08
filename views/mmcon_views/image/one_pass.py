"""Image views as steps for compiled loops: which operation each image of a batch gets, and with which numbers.

A chain of view generators that have `pixel_steps` runs on a CPU as one loop over images (`one_pass`), in which an image
stays in the cache from its bytes to its last step. The loops are compiled by numba, which is optional: without it, or
for gray images, each generator runs by itself. Both agree up to the rounding of float32.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float32, Int, Shaped
from torch import Tensor

from mmcon.views import Params, ViewGenerator
from mmcon_views.image.pixels import check_batch

_log = logging.getLogger(__name__)

NOTHING, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, SOLARIZE, BLUR = range(9)


@dataclass(frozen=True)
class PixelSteps:
    """Steps of each image, in order.

    Args:
        codes: the operations.
        values: their numbers; brightness, contrast and saturation: the factor and 1 − factor; hue: the turns of
            `color.hue_turns`; solarize: the threshold.
        weights: the kernel of a blur, from its center.
        outside: the gray of a constant border of a blur, instead of reflection.
    """

    codes: Int[Tensor, "b steps"]
    values: Float32[Tensor, "b steps 3"] | None = None
    weights: Float32[Tensor, "b taps"] | None = None
    outside: float | None = None


def one_pass(
    children: Sequence[ViewGenerator],
    batch: Shaped[Tensor, "b ..."],
    out: Float32[Tensor, "b ..."],
    params: Sequence[Params],
    where: str,
) -> int:
    """Compute the views of the leading generators that have `pixel_steps`, into `out`.

    Args:
        children: the generators of a chain.
        batch: bytes or floats in [0, 1].
        out: the result; unchanged if no generator was applied.
        params: of each generator.
        where: the name of the chain, for messages.

    Returns:
        The number of generators that were applied.
    """
    if not takes_compiled_loops(batch):
        return 0
    known = list(itertools.takewhile(lambda child: hasattr(child, "pixel_steps"), children))
    kernels = compiled_loops()
    if kernels is None or not known:
        return 0
    check_batch(batch, where)
    steps: list[PixelSteps] = []
    for child, own in zip(known, params, strict=False):
        found = child.pixel_steps(own, batch.shape[-2:])  # type: ignore[attr-defined]
        if found.weights is not None and any(step.weights is not None for step in steps):
            break  # the loops have room for one kernel
        steps.append(found)
    _run(kernels, batch, out, steps)
    return len(steps)


def _run(
    kernels: Any, batch: Shaped[Tensor, "b 3 h w"], out: Float32[Tensor, "b 3 h w"], steps: list[PixelSteps]
) -> None:
    b = len(batch)
    codes = torch.cat([step.codes for step in steps], dim=1)
    values = [torch.zeros(*step.codes.shape, 3) if step.values is None else step.values for step in steps]
    blur = next((step for step in steps if step.weights is not None), None)
    weights = torch.ones(b, 1) if blur is None or blur.weights is None else blur.weights
    outside = float("nan") if blur is None or blur.outside is None else blur.outside
    table = (codes, torch.cat(values, dim=1), weights, (weights > 0).sum(1) - 1)
    arrays = [part.contiguous().numpy() for part in table]
    interleaved = batch.permute(0, 2, 3, 1)
    is_interleaved = interleaved.is_contiguous()
    if batch.dtype == torch.uint8:
        source = (interleaved if is_interleaved else batch.contiguous()).flatten(1)
    else:
        out.copy_(batch)
        source = torch.empty(0, 0, dtype=torch.uint8)
    kernels.run(source.numpy(), is_interleaved, out.numpy(), *arrays, outside)


def takes_compiled_loops(batch: Shaped[Tensor, "b ..."]) -> bool:
    """Whether compiled loops compute views of a batch: images in color on a CPU, without a gradient."""
    # numba takes a second to start, which gray images, as of digits, would not save again.
    return batch.dim() == 4 and batch.shape[1] == 3 and batch.device.type == "cpu" and not batch.requires_grad


@cache
def compiled_loops() -> Any:
    """The module of compiled loops, or None without a working numba."""
    if find_spec("numba") is None:
        return None
    try:
        from mmcon_views.image import cpu_kernels
    except (ImportError, RuntimeError) as error:  # a numba that is older than NumPy; no folder for compiled loops
        _log.warning("image views run without numba, which takes twice as long: %s", error)
        return None
    return cpu_kernels
