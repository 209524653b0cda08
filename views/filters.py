"""Filters over neighbourhoods: Gaussian blur.

Kernels are separable and applied tap by tap, rows then columns, so that each picture may have its own width.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator
from views.pixels import on_rows, to_float


def gaussian_weights(sigma: Float[Tensor, "b"], radius: int) -> Float[Tensor, "b taps"]:
    """The right half of a Gaussian kernel of 2·radius + 1 taps that sum to 1: `b radius+1`, the centre first.

    Args:
        sigma: standard deviations in pixels, float64.
        radius: taps on each side.
    """
    at = torch.arange(radius + 1, dtype=torch.float64)
    half = torch.exp(-0.5 * (at / sigma[:, None].to(torch.float64)) ** 2)
    total = half[:, 0].clone()
    for tap in range(1, radius + 1):
        total += 2 * half[:, tap]
    return half / total[:, None]


def gaussian_blur(
    x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "b"], radius: int, outside: float | None = None
) -> Float[Tensor, "b c h w"]:
    """Convolve each picture with a Gaussian of its own standard deviation (pixels), the edges mirrored.

    Taps whose weight is below 1e-7 for every picture at hand are left out: the result is that of the full kernel to
    1e-6.

    Args:
        x: pictures.
        sigma: one a picture.
        radius: taps on each side of the centre.
        outside: a grey that lies beyond the edges, in place of the mirror.
    """
    weights = gaussian_weights(sigma, radius).to(torch.float32)
    weights = torch.where(weights > 1e-7, weights, 0.0)
    reach = int((weights > 0).any(0).nonzero().max())
    if not reach:
        return x
    # Channel by channel, so that the passes over one plane stay in the cache.
    b, c, h, w = x.shape
    planes = x.reshape(b * c, h, w)
    columns = weights.to(x.device, non_blocking=True).repeat_interleave(c, dim=0)[:, :, None, None]
    out = torch.empty_like(planes)
    few = max(1, PLANES // (h * w)) if x.device.type == "cpu" else len(planes)
    for start in range(0, len(planes), few):
        some = slice(start, start + few)
        rows = _blur_axis(planes[some], columns[some], reach, -2, outside)
        out[some] = _blur_axis(rows, columns[some], reach, -1, outside)
    return out.view(b, c, h, w)


# Numbers that are blurred together on a CPU.
PLANES = 1 << 16


def _blur_axis(planes: Tensor, weights: Tensor, reach: int, axis: int, outside: float | None) -> Tensor:
    size = planes.shape[axis]
    side = (0, 0, reach, reach) if axis == -2 else (reach, reach, 0, 0)
    mirrored = outside is None
    wide = F.pad(planes[:, None], side, "reflect" if mirrored else "constant", None if mirrored else outside)[:, 0]
    total = wide.narrow(axis, reach, size) * weights[:, 0]
    both = torch.empty_like(total)
    for tap in range(1, reach + 1):
        torch.add(wide.narrow(axis, reach - tap, size), wide.narrow(axis, reach + tap, size), out=both)
        total.addcmul_(both, weights[:, tap])
    return total


@register_view("image/blur", modality="image")
@final
class Blur(ViewGenerator):
    """A Gaussian blur with probability p, its width even between two bounds (SimCLR; torchvision's GaussianBlur).

    Args:
        sigma: bounds of the standard deviation in pixels.
        kernel: the number of taps, odd; by default a tenth of the shorter side, as SimCLR has it (23 at 224).
        p: the probability.
        outside: a grey, 0 to 1, that lies beyond the edges; by default they are mirrored.
    """

    modality: ClassVar[str] = "image"

    def __init__(
        self,
        *,
        sigma: tuple[float, float] = (0.1, 2.0),
        kernel: int | None = None,
        p: float = 0.5,
        outside: float | None = None,
    ) -> None:
        self.sigma, self.kernel, self.p, self.outside = sigma, kernel, p, outside
        if not 0 < sigma[0] <= sigma[1] or (kernel is not None and (kernel < 1 or kernel % 2 == 0)):
            raise InputError(
                "image/blur",
                expected="0 < sigma[0] <= sigma[1] and an odd kernel",
                got=f"sigma={sigma}, kernel={kernel}",
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether (`b` bool) and the standard deviation (`b`, pixels)."""
        return {"apply": keys.bernoulli("apply", self.p), "sigma": keys.uniform("sigma", *self.sigma)}

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Blur where drawn."""
        x = to_float(batch, self.name or "image/blur")
        shorter = min(x.shape[-2:])
        radius = (self.kernel or default_kernel(shorter)) // 2
        if radius >= shorter:
            raise InputError(
                self.name or "image/blur",
                expected=f"a kernel below twice the shorter side ({shorter} px)",
                got=f"kernel={self.kernel}",
            )

        def blur(some: Tensor, sigma: Tensor) -> Tensor:
            return gaussian_blur(some, sigma, radius, self.outside)

        return on_rows(x, params["apply"], blur, params["sigma"])


def default_kernel(side: int) -> int:
    """A tenth of the side, made odd: 23 at 224, 3 at 32."""
    return side // 20 * 2 + 1
