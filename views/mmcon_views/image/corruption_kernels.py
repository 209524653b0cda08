"""Operations of several corruptions: blurs with other libraries' borders, zoom, motion kernel, octave noise.

All operations take one image `c h w` on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor

#: Up to this share of nonzero taps, a kernel is applied tap by tap: the line of a motion has one in a hundred.
SPARSE = 0.1
#: Up to this side, the matrices of blurs are kept: 32 of them are 32 MiB.
KEPT_SIDE = 512


def scale_of(x: Float[Tensor, "c h w"]) -> float:
    """The shorter side over 224, the size for which lengths in pixels are defined."""
    return min(x.shape[-2:]) / 224


def _smoothing(size: int, sigma: float, reach: int, edges: str) -> Float[Tensor, "size size"]:
    """The matrix that smooths a line with a Gaussian; borders are replicated ("nearest") or mirrored."""
    with torch.inference_mode(False):  # a later call may be outside of the mode of this one
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (at / sigma) ** 2)
        index = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)
        if edges == "mirror":
            index = index.remainder(2 * size)
            index = torch.minimum(index, 2 * size - 1 - index)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix.scatter_add_(1, index.clamp(0, size - 1), (weights / weights.sum()).expand(size, -1))
        return matrix.to(torch.float32)


#: All images of one size and severity have the same matrix, which can take longer to compute than the blur.
_kept_smoothing = lru_cache(maxsize=32)(_smoothing)


def blurred(
    x: Float[Tensor, "c h w"], sigma: float, *, deviations: float = 4.0, edges: str = "nearest"
) -> Float[Tensor, "c h w"]:
    """Gaussian blur as in scikit-image: truncated at `deviations` standard deviations, with replicated borders."""
    reach = int(deviations * sigma + 0.5)
    if reach < 1:
        return x
    down, across = (
        (_kept_smoothing if side <= KEPT_SIDE else _smoothing)(side, sigma, reach, edges) for side in x.shape[-2:]
    )
    return down @ x @ across.T


def filtered(
    x: Float[Tensor, "c h w"], kernel: Float[Tensor, "kh kw"], mode: str = "replicate"
) -> Float[Tensor, "c h w"]:
    """Correlate each channel with one kernel, with replicated or reflected borders."""
    down, across = kernel.shape[0] // 2, kernel.shape[1] // 2
    wide = F.pad(x[None], (across, across, down, down), mode=mode)
    taps = kernel.nonzero().tolist()
    if len(taps) > SPARSE * kernel.numel():
        return F.conv2d(wide.transpose(0, 1), kernel[None, None])[:, 0]
    out, (h, w) = torch.zeros_like(x), x.shape[-2:]
    for row, column in taps:
        out.add_(wide[0, :, row : row + h, column : column + w], alpha=float(kernel[row, column]))
    return out


def clipped_zoom(x: Float[Tensor, "c h w"], zoom: float) -> Float[Tensor, "c h w"]:
    """The center, ⌈side / zoom⌉ wide, enlarged with aligned corners and trimmed to the size of x."""
    h, w = x.shape[-2:]
    inner = math.ceil(h / zoom), math.ceil(w / zoom)
    top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
    middle = x[None, :, top : top + inner[0], left : left + inner[1]]
    size = max(h, round(inner[0] * zoom)), max(w, round(inner[1] * zoom))
    large = F.interpolate(middle, size, mode="bilinear", align_corners=True)[0]
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return large[:, top : top + h, left : left + w]


def through_pillow(x: Float[Tensor, "c h w"], function: Callable[[Image.Image], Image.Image]) -> Float[Tensor, "c h w"]:
    """Convert to a uint8 Pillow image, apply a function, and convert back."""
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    back = np.array(function(Image.fromarray(pixels if x.shape[0] == 3 else pixels[..., 0])))
    return torch.from_numpy(back if back.ndim == 3 else back[..., None]).permute(2, 0, 1).to(torch.float32) / 255


def octaves(h: int, w: int, decay: float, rng: Generator) -> Float[Tensor, "h w"]:
    """Noise in [0, 1] whose amplitude decreases by `decay` per octave."""
    total, weight, cells = torch.zeros(h, w), 1.0, 2
    while cells <= max(h, w):
        coarse = torch.rand(1, 1, cells + 1, cells + 1, generator=rng)
        total += weight * F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)[0, 0]
        weight, cells = weight / decay, cells * 2
    return (total - total.min()) / (total.max() - total.min()).clamp(min=1e-6)


def motion_kernel(radius: float, sigma: float, angle: float) -> Float[Tensor, "k k"]:
    """ImageMagick's motion kernel: 2⌈radius⌉ + 1 taps with half a Gaussian's weights along a line to one side."""
    taps = 2 * max(1, math.ceil(radius)) + 1
    kernel = torch.zeros(2 * taps - 1, 2 * taps - 1)
    for step in range(taps):
        # ImageMagick's rounding of offsets: halves go down.
        row, column = (math.ceil(step * f(angle) - 0.5) for f in (math.sin, math.cos))
        kernel[taps - 1 + row, taps - 1 + column] += math.exp(-0.5 * (step / max(sigma, 1e-3)) ** 2)
    return kernel / kernel.sum()


def brighter(x: Float[Tensor, "c h w"], add: float) -> Float[Tensor, "c h w"]:
    """Add to the value of HSV, clipped, by scaling all channels together."""
    value = x.amax(0, keepdim=True)
    target = (value + add).clamp(0, 1)
    return torch.where(value > 0, x * target / value.clamp(min=1e-6), target.expand_as(x))


def sampled(x: Float[Tensor, "c h w"], grid: Float[Tensor, "1 h w 2"], about: str) -> Float[Tensor, "c h w"]:
    """Bilinear sampling; borders are mirrored about the centers of the outermost "pixels", or about the "edges"."""
    if about == "pixels":
        h, w = x.shape[-2:]
        grid = grid * torch.tensor([w / max(w - 1, 1), h / max(h - 1, 1)])
    return F.grid_sample(x[None], grid, mode="bilinear", padding_mode="reflection", align_corners=about == "pixels")[0]
