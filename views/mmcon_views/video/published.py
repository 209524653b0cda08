"""Published video views: a clip sampler, then image operations with one draw for all frames of a view.

The chains take undecoded clips of any size and length, decode only the drawn frames, and return float32 `b t c h w` in
[0, 1].
"""

from __future__ import annotations

from typing import Any

from mmcon.registry import register_view
from mmcon.views import Chain, ViewGenerator
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import ColorJitter, Grayscale, Solarize, simclr_jitter
from mmcon_views.image.crop import CropWithin, RandomResizedCrop
from mmcon_views.image.flip import Flip
from mmcon_views.image.resize import Resize
from mmcon_views.shared_draws import OnSecondViews, SharedByViews
from mmcon_views.video import clip_sampler
from mmcon_views.video.clip_sampler import Short
from mmcon_views.video.per_clip import PerClip


@register_view("video/graded", modality="video")
def graded(
    *,
    size: int | tuple[int, int] = 112,
    frames: int = 4,
    rate_hz: int | float | None = None,
    stride: int | float = 1,
    area: tuple[int | float, int | float] = (0.5, 1.0),
    strength: int | float = 0.5,
    flip: bool = False,
    framing: tuple[int | float, int | float] | None = None,
    positions: int | None = None,
    short: Short = "hold",
) -> Chain:
    """A clip from a uniformly drawn start, with weak crops and color jitter, for time affinities.

    Strong crops and flips hide the motion that indicates time, so crops keep at least half of the image, and flips are
    off. A `framing` varies the images without this effect: a first crop and a flip that all views of a sample share.

    >>> view = mmcon.create_view("video/graded", size=32, frames=2, rate_hz=12)

    Args:
        size: side of the square output, or (height, width).
        frames: frames in the view.
        rate_hz: steps per second; None: the clip's frame rate.
        stride: steps from frame to frame.
        area: bounds of the crop's area, as fractions of the image.
        strength: s of SimCLR's color jitter.
        flip: whether to flip horizontally, once per clip, with probability 0.5.
        framing: bounds of the area of a first crop, which all views of a sample share, with a shared flip; `area` is
            then a fraction of that crop.
        positions: the number of equally spaced starts, one per view, instead of a drawn start: for evaluation with
            crops.
        short: `hold`, `loop` or `error` for clips shorter than the view.
    """
    sampling: dict[str, Any] = {"frames": frames, "stride": stride, "rate_hz": rate_hz, "short": short}
    sampling["shorter_side"] = _decoding_side(
        size, area if framing is None else (area[0] * framing[0], area[1] * framing[1])
    )
    sampler = (
        clip_sampler.random_clip(**sampling)
        if positions is None
        else clip_sampler.grid_clip(views=positions, **sampling)
    )
    crop = RandomResizedCrop(size=size, area=(float(area[0]), float(area[1])))
    children: list[tuple[str, ViewGenerator]] = [("clip", sampler)]
    if framing is None:
        children.append(("crop", PerClip(crop)))
    else:
        shared = RandomResizedCrop(size=size, area=(float(framing[0]), float(framing[1])), aspect=(0.5, 2.0))
        children += [("crop", PerClip(CropWithin(shared, crop))), ("turn", PerClip(SharedByViews(Flip())))]
    if flip:
        children.append(("flip", PerClip(Flip())))
    return Chain(*children, ("jitter", PerClip(simclr_jitter(float(strength)))), name="video/graded")


@register_view("video/cvrl", modality="video")
def cvrl(*, size: int | tuple[int, int] = 224, frames: int = 16, stride: int | float = 2) -> Chain:
    """CVRL (Qian et al. 2021): two clips whose gap has a falling density; one draw of image operations per clip.

    Crop of area 0.3 to 1 and aspect 0.5 to 2, flip, SimCLR's jitter at strength 1, grayscale with p = 0.2, blur; the
    second clip is also solarized with p = 0.2.

    Args:
        size: side of the square output, or (height, width).
        frames: frames in each view.
        stride: steps, of one video frame each, from frame to frame.
    """
    sampler = clip_sampler.cvrl_clip(frames=frames, stride=stride)
    chain = _spatial_chain(
        sampler,
        size,
        area=(0.3, 1.0),
        aspect=(0.5, 2.0),
        jitter=simclr_jitter(1.0),
        grayscale=0.2,
        blur=True,
        name="video/cvrl",
    )
    return Chain(*chain.children(), ("solarize", PerClip(OnSecondViews(Solarize()))), name="video/cvrl")


@register_view("video/tclr", modality="video")
def tclr(*, size: int | tuple[int, int] = 112, frames: int = 16, skip: int = 4, dense: int = 4) -> Chain:
    """TCLR (Dave et al. 2022): a sparse clip and dense clips of its span; one crop, flip, jitter and gray per clip.

    Args:
        size: side of the square output, or (height, width).
        frames: frames in each view.
        skip: the sparse clip's stride.
        dense: the number of dense clips; pass the same object for 1 + `dense` views.
    """
    sampler = clip_sampler.tclr_clip(frames=frames, skip=skip, dense=dense)
    return _spatial_chain(sampler, size, area=(0.3, 1.0), jitter=simclr_jitter(0.5), grayscale=0.2, name="video/tclr")


@register_view("video/vince", modality="video")
def vince(*, size: int | tuple[int, int] = 224) -> Chain:
    """VINCE (Gordon et al. 2020): single frames of one video are views of each other.

    Args:
        size: side of the square output, or (height, width).
    """
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    return _spatial_chain(
        clip_sampler.random_frame(), size, area=(0.2, 1.0), jitter=jitter, grayscale=0.2, name="video/vince"
    )


@register_view("video/rho-byol", modality="video")
def rho_byol(
    *,
    gap_seconds: int | float,
    size: int | tuple[int, int] = 224,
    frames: int = 8,
    stride: int | float = 8,
) -> Chain:
    """ρBYOL (Feichtenhofer et al. 2021): clips of 8×8 frames with a bounded gap, and SimCLR's image operations.

    Args:
        gap_seconds: the longest gap between the starts of two clips.
        size: side of the square output, or (height, width).
        frames: frames in each view.
        stride: steps, of one video frame each, from frame to frame.
    """
    sampler = clip_sampler.bounded_gap_clip(gap_seconds=gap_seconds, frames=frames, stride=stride)
    return _spatial_chain(
        sampler, size, area=(0.2, 0.76), jitter=simclr_jitter(1.0), grayscale=0.2, blur=True, name="video/rho-byol"
    )


@register_view("video/plain", modality="video")
def plain(
    *,
    size: int | tuple[int, int] = 112,
    frames: int = 4,
    rate_hz: int | float | None = None,
    stride: int | float = 1,
    views: int = 1,
    short: Short = "hold",
) -> Chain:
    """The evaluation view: the clip's center, or `views` equally spaced starts, resized; nothing is drawn.

    Args:
        size: side of the square output, or (height, width).
        frames: frames in each view.
        rate_hz: steps per second; None: the clip's frame rate.
        stride: steps from frame to frame.
        views: the number of starts; pass the same object for as many views.
        short: `hold`, `loop` or `error` for clips shorter than the view.
    """
    side = min(size if isinstance(size, tuple) else (size, size))
    sampler = clip_sampler.grid_clip(
        frames=frames, stride=stride, rate_hz=rate_hz, views=views, shorter_side=side, short=short
    )
    return Chain(("clip", sampler), ("resize", PerClip(Resize(size=size))), name="video/plain")


def _spatial_chain(
    sampler: ViewGenerator,
    size: int | tuple[int, int],
    *,
    area: tuple[int | float, int | float],
    aspect: tuple[int | float, int | float] = (3 / 4, 4 / 3),
    jitter: ColorJitter | None = None,
    grayscale: int | float = 0.0,
    blur: bool = False,
    name: str,
) -> Chain:
    """A clip sampler, then a crop, a flip and the chosen operations, each drawn once per clip."""
    crop = RandomResizedCrop(
        size=size, area=(float(area[0]), float(area[1])), aspect=(float(aspect[0]), float(aspect[1]))
    )
    children: list[tuple[str, ViewGenerator]] = [("clip", sampler), ("crop", PerClip(crop)), ("flip", PerClip(Flip()))]
    if jitter is not None:
        children.append(("jitter", PerClip(jitter)))
    if grayscale:
        children.append(("gray", PerClip(Grayscale(p=float(grayscale)))))
    if blur:
        children.append(("blur", PerClip(Blur())))
    return Chain(*children, name=name)


def _decoding_side(size: int | tuple[int, int], area: tuple[int | float, int | float]) -> int:
    """The shorter side at which decoded frames have enough pixels for a crop of the mean area."""
    side = min(size if isinstance(size, tuple) else (size, size))
    return round(side / ((area[0] + area[1]) / 2) ** 0.5 + 0.5)
