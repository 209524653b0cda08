"""Corruptions in the style of ImageNet-C (Hendrycks and Dietterich 2019), at severities 1 to 5.

Corruptions measure robustness. The strengths are the published ones, defined at 224 px; lengths in pixels are scaled by
the shorter side over 224. **Scores on these corruptions are not ImageNet-C scores**. Deviations:

- *frost*: the original blends photographs of frost, as `frost_photos` does; without them procedural ice (ridged noise)
  with the published weights;
- *fog*: noise of several octaves instead of a diamond-square fractal;
- *snow* and *motion-blur*: our own code of ImageMagick's motion kernel, with replicated borders;
- *glass-blur*: all pixels of a pass move at once; the original swaps pixels one after another;
- *spatter*: drops of water lack the original's shading by edges and distances.

The others (the noises, defocus, gaussian and zoom blur, brightness, contrast, saturate, elastic, pixelate, JPEG) follow
their definitions. One seed per image is drawn; random numbers are generated from it on the CPU, so that results do not
depend on the device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Generator, Tensor

from mmcon.errors import InputError
from mmcon.media import ImageHandle
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator, empty_buffer, map_parts
from mmcon_views.image.blur import gaussian_blur
from mmcon_views.image.color import luma
from mmcon_views.image.corruption_kernels import (
    blurred,
    brighter,
    clipped_zoom,
    filtered,
    motion_kernel,
    octaves,
    sampled,
    scale_of,
    through_pillow,
)  # fmt: skip
from mmcon_views.image.pixels import to_float
from mmcon_views.image.policy_operations import affine_grid

Sample = Float[Tensor, "c h w"]
Photo = Float[Tensor, "3 _ _"]
# f(image, severity - 1, generator) -> image
Corrupt = Callable[[Tensor, int, Generator], Tensor]
#: By severity, the weights of the image and of the frost.
FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: Images of fewer numbers are corrupted by one thread: operations on them take less time than to begin them.
SMALLEST_SHARED = 1 << 14
CORRUPTIONS: dict[str, Corrupt] = {}


def _corruption(function: Corrupt) -> Corrupt:
    CORRUPTIONS[function.__name__.strip("_").replace("_", "-")] = function
    return function


@_corruption
def _gaussian_noise(x: Sample, s: int, rng: Generator) -> Sample:
    return x + torch.randn(x.shape, generator=rng) * (0.08, 0.12, 0.18, 0.26, 0.38)[s]


@_corruption
def _shot_noise(x: Sample, s: int, rng: Generator) -> Sample:
    photons = (60, 25, 12, 5, 3)[s]
    return torch.poisson(x * photons, generator=rng) / photons


@_corruption
def _impulse_noise(x: Sample, s: int, rng: Generator) -> Sample:
    hit = torch.rand(x.shape, generator=rng) < (0.03, 0.06, 0.09, 0.17, 0.27)[s]
    return torch.where(hit, (torch.rand(x.shape, generator=rng) < 0.5).to(x.dtype), x)


@_corruption
def _speckle_noise(x: Sample, s: int, rng: Generator) -> Sample:
    return x + x * torch.randn(x.shape, generator=rng) * (0.15, 0.2, 0.35, 0.45, 0.6)[s]


@_corruption
def _gaussian_blur(x: Sample, s: int, rng: Generator) -> Sample:
    return blurred(x, (1, 2, 3, 4, 6)[s] * scale_of(x))


@_corruption
def _defocus_blur(x: Sample, s: int, rng: Generator) -> Sample:
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[s]
    reach, taps = max(1, round(radius * scale_of(x))), 1 if radius <= 8 else 2
    half = max(reach, min(reach + taps + 1, 8))
    at = torch.arange(-half, half + 1, dtype=torch.float32)
    disk = ((at[:, None] ** 2 + at[None] ** 2) <= reach**2).to(torch.float32)
    disk = gaussian_blur((disk / disk.sum())[None, None], torch.tensor([soft * scale_of(x)], dtype=torch.float64), taps)
    return filtered(x, disk[0, 0], "reflect" if half < min(x.shape[-2:]) else "replicate")


@_corruption
def _glass_blur(x: Sample, s: int, rng: Generator) -> Sample:
    sigma, reach, passes = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[s]
    sigma, reach = sigma * scale_of(x), max(1, round(reach * scale_of(x)))
    h, w = x.shape[-2:]
    out = blurred(x, sigma)
    for _ in range(passes):
        # From −reach to reach − 1, as in the original.
        down = torch.arange(h)[:, None] + torch.randint(-reach, reach, (h, w), generator=rng)
        across = torch.arange(w)[None] + torch.randint(-reach, reach, (h, w), generator=rng)
        at = down.clamp(0, h - 1) * w + across.clamp(0, w - 1)
        out = out.flatten(1).index_select(1, at.flatten()).view_as(x)
    return blurred(out, sigma)


@_corruption
def _motion_blur(x: Sample, s: int, rng: Generator) -> Sample:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[s]
    angle = math.radians(float(torch.rand((), generator=rng)) * 90 - 45)
    return filtered(x, motion_kernel(radius * scale_of(x), sigma * scale_of(x), angle))


@_corruption
def _zoom_blur(x: Sample, s: int, rng: Generator) -> Sample:
    # The published ranges; `np.arange` with its rounding decides how many zooms there are.
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[s]
    zooms = np.arange(1, last, step).tolist()
    return (x + sum(clipped_zoom(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


@_corruption
def _snow(x: Sample, s: int, rng: Generator) -> Sample:
    mean, std, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[s]
    flakes = clipped_zoom(torch.randn(1, *x.shape[-2:], generator=rng) * std + mean, zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angle = math.radians(float(torch.rand((), generator=rng)) * -90 - 45)
    flakes = filtered(flakes, motion_kernel(radius * scale_of(x), sigma * scale_of(x), angle))
    pale = torch.maximum(x, luma(x[None])[0] * 1.5 + 0.5)
    return keep * x + (1 - keep) * pale + flakes + flakes.flip((-2, -1))


def _photographed_frost(x: Sample, s: int, rng: Generator, photos: list[Photo]) -> Sample:
    """A region of one of the photographs over the image, which shows as much of it as at 224 pixels in the original."""
    keep, ice = FROST[s]
    photo = photos[int(torch.randint(len(photos), (), generator=rng))]
    h, w = x.shape[-2:]
    factor = max(scale_of(x), h / photo.shape[-2], w / photo.shape[-1])
    size = [max(side, round(length * factor)) for side, length in zip((h, w), photo.shape[-2:], strict=True)]
    photo = F.interpolate(photo[None], size, mode="bilinear", antialias=True)[0]
    top, left = (int(torch.randint(n - m + 1, (), generator=rng)) for n, m in zip(size, (h, w), strict=True))
    part = photo[:, top : top + h, left : left + w]
    return keep * x + ice * (luma(part[None])[0] if len(x) == 1 else part)


def _read_photos(folder: str) -> list[Photo]:
    files = sorted(file for file in Path(folder).expanduser().glob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        expected = f"a folder of photographs ({', '.join(PHOTO_SUFFIXES)})"
        raise InputError("image/corruption", expected=expected, got=f"frost_photos={folder!r}, none there")
    return [ImageHandle(file).decode().to(torch.float32) / 255 for file in files]


@_corruption
def _frost(x: Sample, s: int, rng: Generator) -> Sample:
    keep, ice = FROST[s]
    ridges = 1 - (2 * octaves(x.shape[-2], x.shape[-1], 1.6, rng) - 1).abs()
    tint = torch.tensor([0.82, 0.9, 1.0])[: x.shape[0], None, None]
    return keep * x + ice * tint * ridges**3


@_corruption
def _fog(x: Sample, s: int, rng: Generator) -> Sample:
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[s]
    brightest = float(x.max())
    return (x + amount * octaves(x.shape[-2], x.shape[-1], decay, rng)) * brightest / (brightest + amount)


@_corruption
def _spatter(x: Sample, s: int, rng: Generator) -> Sample:
    mean, std, sigma, threshold, strength, mud = (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    )[s]
    liquid = blurred(torch.randn(1, *x.shape[-2:], generator=rng) * std + mean, sigma * scale_of(x))
    drops = torch.where(liquid < threshold, 0.0, liquid)
    color = torch.tensor([63, 42, 20] if mud else [175, 238, 238])[: x.shape[0], None, None] / 255
    if not mud:
        return x + color * drops * (strength / drops.max().clamp(min=1e-6))
    # For mud the fifth number is the standard deviation of a blur.
    cover = blurred((drops > threshold).to(x.dtype), strength * scale_of(x))
    cover = torch.where(cover < 0.8, 0.0, cover)
    return x * (1 - cover) + color * cover


@_corruption
def _brightness(x: Sample, s: int, rng: Generator) -> Sample:
    return brighter(x, (0.1, 0.2, 0.3, 0.4, 0.5)[s])


@_corruption
def _contrast(x: Sample, s: int, rng: Generator) -> Sample:
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[s] + mean


@_corruption
def _saturate(x: Sample, s: int, rng: Generator) -> Sample:
    factor, add = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[s]
    value, low = x.amax(0, keepdim=True), x.amin(0, keepdim=True)
    saturation = (value - low) / value.clamp(min=1e-6)
    target = (saturation * factor + add).clamp(0, 1)
    # The hue of a gray pixel is 0 (red), as in the original's color conversion.
    red = torch.tensor([0.0, 1.0, 1.0])[: x.shape[0], None, None]
    away = torch.where(saturation > 0, (value - x) / (value - low).clamp(min=1e-6), red)
    return value * (1 - target * away) if x.shape[0] == 3 else x


@_corruption
def _jpeg(x: Sample, s: int, rng: Generator) -> Sample:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=(25, 18, 15, 10, 7)[s])
        return Image.open(file)

    return through_pillow(x, compressed)


@_corruption
def _pixelate(x: Sample, s: int, rng: Generator) -> Sample:
    kept, (h, w) = (0.6, 0.5, 0.4, 0.3, 0.25)[s], x.shape[-2:]
    small, box = (max(1, int(w * kept)), max(1, int(h * kept))), Image.Resampling.BOX
    return through_pillow(x, lambda image: image.resize(small, box).resize((w, h), box))


@_corruption
def _elastic(x: Sample, s: int, rng: Generator) -> Sample:
    move, smooth, shift = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[s]
    h, w = x.shape[-2:]
    # The original's lengths are fractions of 244 pixels, for images of 224.
    side = min(h, w) * 244 / 224
    # An affine map that moves three points by up to shift · side, then a smoothed field of displacements.
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (min(h, w) // 3)
    moved = points + (torch.rand(3, 2, generator=rng) * 2 - 1) * shift * side
    homogeneous = torch.cat([moved, torch.ones(3, 1)], 1).to(torch.float64)
    matrix = torch.linalg.solve(homogeneous, points.to(torch.float64)).T.to(torch.float32)
    bent = sampled(x, affine_grid(matrix[None], h, w, x.device), "pixels")
    noise = torch.rand(2, h, w, generator=rng) * 2 - 1
    field = blurred(noise, smooth * side, deviations=3.0, edges="mirror") * move * side
    down, across = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at_x, at_y = (across + field[0] + 0.5) / (w / 2) - 1, (down + field[1] + 0.5) / (h / 2) - 1
    return sampled(bent, torch.stack([at_x, at_y], -1)[None], "edges")


@register_view("image/corruption", modality="image")
@final
class Corruption(ViewGenerator):
    """One of 19 corruptions in the style of ImageNet-C; the docstring of the module lists the deviations.

    >>> fog = mmcon.create_view("image/corruption", effect="fog", severity=3)

    Args:
        effect: "gaussian-noise", "shot-noise", "impulse-noise", "speckle-noise", "gaussian-blur", "defocus-blur",
            "glass-blur", "motion-blur", "zoom-blur", "snow", "frost", "fog", "spatter", "brightness", "contrast",
            "saturate", "jpeg", "pixelate" or "elastic".
        severity: 1 to 5; 0 draws it uniformly.
        frost_photos: a folder of photographs of frost, such as the five of the original, for the effect "frost".
    """

    modality: ClassVar[str] = "image"

    def __init__(self, *, effect: str = "gaussian-noise", severity: int = 3, frost_photos: str | None = None) -> None:
        if effect not in CORRUPTIONS or severity not in range(6):
            raise InputError(
                "image/corruption",
                expected=f"severity 1 to 5 (0: drawn) and an effect among {sorted(CORRUPTIONS)}",
                got=f"effect={effect!r}, severity={severity}",
            )
        if frost_photos is not None and effect != "frost":
            raise InputError("image/corruption", expected="frost_photos for the effect 'frost' alone", got=effect)
        self.effect, self.severity, self.frost_photos = effect, severity, frost_photos
        self._photos = [] if frost_photos is None else _read_photos(frost_photos)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `severity` and `seed`, `b` int64 each."""
        seed = keys.bits("seed")
        severity = keys.integers("severity", 1, 6) if self.severity == 0 else torch.full_like(seed, self.severity)
        return {"severity": severity, "seed": seed}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Corrupt image by image, on the CPU; the threads share the images, each of which is computed by one."""
        # torch's generators give other numbers on a GPU for the same seed.
        x = to_float(batch, self.name or "image/corruption").cpu()
        severities, seeds, out = params["severity"].tolist(), params["seed"].tolist(), empty_buffer(x.shape)

        def write(rows: range) -> None:
            for row in rows:
                rng = Generator().manual_seed(seeds[row])
                if self._photos:
                    corrupted = _photographed_frost(x[row], severities[row] - 1, rng, self._photos)
                else:
                    corrupted = CORRUPTIONS[self.effect](x[row], severities[row] - 1, rng)
                out[row] = corrupted.clamp(0, 1)

        shares = torch.get_num_threads() if x[:1].numel() >= SMALLEST_SHARED else 1
        map_parts(write, [range(len(x))[share::shares] for share in range(shares)])
        return out.to(batch.device)
