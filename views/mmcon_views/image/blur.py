"""Gaussian blur with one standard deviation per image; the kernel is separable and applied to columns first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.one_pass import BLUR, NOTHING, PixelSteps, one_pass
from mmcon_views.image.pixels import copy_as_float, kernels_for, map_selected, map_selected_, to_device, to_float

# Up to this many pixels, images are blurred together on a CPU; larger images one by one, each with only its own taps.
SMALL = 64 * 64
# Above reach FAR, products with a band matrix in blocks of BLOCK pixels are faster than sums tap by tap.
FAR, BLOCK = 4, 16


def gaussian_weights(sigma: Float[Tensor, " b"], radius: int) -> Float[Tensor, "b taps"]:
    """The right half, from the center, of a Gaussian kernel of 2·radius + 1 taps that sum to 1.

    Args:
        sigma: standard deviations in pixels.
        radius: taps on each side.
    """
    at = torch.arange(radius + 1, dtype=torch.float64)
    half = torch.exp(-0.5 * (at / sigma[:, None].to(torch.float64)) ** 2)
    # Tap by tap: a vectorized sum may round differently with the number of rows.
    total = half[:, 0].clone()
    for tap in range(1, radius + 1):
        total += 2 * half[:, tap]
    return half / total[:, None]


def gaussian_blur(
    x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], radius: int, outside: float | None = None
) -> Float[Tensor, "b c h w"]:
    """Convolve each image with a Gaussian of its own standard deviation (pixels), with reflected borders.

    Args:
        x: images.
        sigma: one an image, in pixels.
        radius: taps on each side of the center.
        outside: the gray of a constant border, instead of reflection.
    """
    return convolve(x, gaussian_weights(sigma, radius), outside)


def convolve(
    x: Float[Tensor, "b c h w"], weights: Float[Tensor, "b taps"], outside: float | None = None
) -> Float[Tensor, "b c h w"]:
    """Convolve the columns and the rows of each image with its own symmetric kernel, with reflected borders.

    Taps with a weight below 1e-7 are omitted: the result is that of the full kernel to 1e-6. Results are clamped to 1,
    since weights may sum to slightly above 1.

    Args:
        x: images.
        weights: the right half of each kernel, from the center, on the CPU.
        outside: the gray of a constant border, instead of reflection.
    """
    weights = _without_small(weights)
    if (kernels := kernels_for(x)) is not None and x.dtype == torch.float32:
        own = to_device(x.device, weights, (weights > 0).sum(1) - 1)
        return kernels.convolve(x, *own, outside)
    if x.device.type != "cpu" or x.shape[-2] * x.shape[-1] <= SMALL:
        reach = int((weights > 0).any(0).nonzero().max())
        (columns,) = to_device(x.device, weights[:, : reach + 1, None, None, None])
        return _tap_by_tap(x, columns.unbind(1), outside).clamp_(max=1)
    blurred = []
    for image, own in zip(x.split(1), weights.tolist(), strict=True):
        taps = [weight for weight in own if weight]
        blurred.append((_in_blocks if len(taps) > FAR else _tap_by_tap)(image, taps, outside).clamp_(max=1))
    return blurred[0] if len(blurred) == 1 else torch.cat(blurred)


def _without_small(weights: Float[Tensor, "b taps"]) -> Float32[Tensor, "b taps"]:
    weights = weights.to(torch.float32)
    return torch.where(weights > 1e-7, weights, 0.0)


def _tap_by_tap(
    x: Float[Tensor, "b c h w"], taps: Sequence[float | Float[Tensor, "b 1 1 1"]], outside: float | None
) -> Float[Tensor, "b c h w"]:
    reach = len(taps) - 1
    out = _padded(x, reach, outside)
    for axis in (-2, -1):
        size = x.shape[axis]
        total = out.narrow(axis, reach, size) * taps[0]
        both = torch.empty_like(total)
        for tap in range(1, reach + 1):
            torch.add(out.narrow(axis, reach - tap, size), out.narrow(axis, reach + tap, size), out=both)
            _add_weighted_(total, both, taps[tap])
        out = total
    return out


def _padded(x: Float[Tensor, "b c h w"], reach: int, outside: float | None) -> Float[Tensor, "b c h2 w2"]:
    return F.pad(x, (reach,) * 4, "reflect") if outside is None else F.pad(x, (reach,) * 4, value=outside)


def _add_weighted_(
    total: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"], weight: float | Float[Tensor, "b 1 1 1"]
) -> None:
    if isinstance(weight, Tensor):
        total.addcmul_(x, weight)
    else:
        total.add_(x, alpha=weight)


def _in_blocks(x: Float[Tensor, "1 c h w"], taps: list[float], outside: float | None) -> Float[Tensor, "1 c h w"]:
    """BLOCK output rows are a band matrix times BLOCK + 2·reach input rows; then the same for columns."""
    reach = len(taps) - 1
    span, (c, h, w) = BLOCK + 2 * reach, x.shape[1:]
    down, across = -(-h // BLOCK), -(-w // BLOCK)
    band = torch.zeros(BLOCK, span)
    band.as_strided((BLOCK, 2 * reach + 1), (span + 1, 1)).copy_(torch.tensor([*taps[:0:-1], *taps]))
    wide = _padded(x, reach, outside)
    wide = F.pad(wide, (0, across * BLOCK - w, 0, down * BLOCK - h))[0]
    width = wide.shape[-1]
    rows = torch.empty(c, down, BLOCK, width)
    for plane, out in zip(wide, rows, strict=True):
        # Overlapping windows of the padded plane as a view: nothing is copied for the product.
        windows = plane.as_strided((down, span, width), (BLOCK * width, width, 1), plane.storage_offset())
        torch.bmm(band.expand(down, -1, -1), windows, out=out)
    windows = rows.as_strided((across, c * down * BLOCK, span), (BLOCK, width, 1))
    out = torch.empty(c, down * BLOCK, across * BLOCK)
    torch.bmm(windows, band.T.expand(across, -1, -1), out=out.view(-1, across, BLOCK).transpose(0, 1))
    return out[None, :, :h, :w]


@register_view("image/blur", modality="image")
@final
class Blur(ViewGenerator):
    """A Gaussian blur with probability p and a uniformly drawn standard deviation (SimCLR; torchvision's GaussianBlur).

    Args:
        sigma: bounds of the standard deviation in pixels.
        kernel: the number of taps, odd; by default a tenth of the shorter side, as in SimCLR (23 at 224).
        p: the probability.
        outside: the gray, 0 to 1, of a constant border; by default borders are reflected.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)
    one_pass = staticmethod(one_pass)

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
        """Draw `apply` (`b` bool) and `sigma` (`b` float64, pixels)."""
        return {"apply": keys.bernoulli("apply", self.p), "sigma": keys.uniform("sigma", *self.sigma)}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Blur the selected images."""
        x = to_float(batch, self.name or "image/blur")
        weights = gaussian_weights(params["sigma"], self._radius(x.shape[-2:]))
        return map_selected(x, params["apply"], partial(convolve, outside=self.outside), weights)

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Blur in place."""
        weights = gaussian_weights(params["sigma"], self._radius(batch.shape[-2:]))
        map_selected_(batch, params["apply"], partial(convolve, outside=self.outside), weights)

    def pixel_steps(self, params: Params, size: Sequence[int]) -> PixelSteps:
        """The blur as a step."""
        weights = _without_small(gaussian_weights(params["sigma"], self._radius(size)))
        codes = torch.where(params["apply"], BLUR, NOTHING)[:, None]
        return PixelSteps(codes, weights=weights, outside=self.outside)

    def _radius(self, size: Sequence[int]) -> int:
        """Taps on each side of the center, for images of this height and width."""
        shorter = min(size)
        radius = (self.kernel or default_kernel(shorter)) // 2
        if radius >= shorter:
            raise InputError(
                self.name or "image/blur",
                expected=f"a kernel below twice the shorter side ({shorter} px)",
                got=f"kernel={self.kernel}",
            )
        return radius


def default_kernel(side: int) -> int:
    """A tenth of the side, rounded to an odd number: 23 at 224, 3 at 32."""
    return side // 20 * 2 + 1
