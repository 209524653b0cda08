"""Views of clips: spans of time (`mmcon_views.video.spans`), then images changed alike in all frames of a view.

Chains take undecoded clips of any size and length, decode only what was drawn, and give float32 `b t c h w` in [0, 1].
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
    """A sampler, then a crop, a flip and what else is asked for, each drawn once a clip."""
    crop = RandomResizedCrop(
        size=size, area=(float(area[0]), float(area[1])), aspect=(float(aspect[0]), float(aspect[1]))
    )
    parts: list[tuple[str, ViewGenerator]] = [("clip", sampler), ("crop", PerClip(crop)), ("flip", PerClip(Flip()))]
    if jitter is not None:
        parts.append(("jitter", PerClip(jitter)))
    if grayscale:
        parts.append(("gray", PerClip(Grayscale(p=float(grayscale)))))
    if blur:
        parts.append(("blur", PerClip(Blur())))
    return Chain(*parts, name=name)


def _decoding_side(size: int | tuple[int, int], area: tuple[int | float, int | float]) -> int:
    """The shorter side at which decoded frames hold enough pixels for a crop of the mean area."""
    side = min(size if isinstance(size, tuple) else (size, size))
    return round(side / ((area[0] + area[1]) / 2) ** 0.5 + 0.5)


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
    """A clip from anywhere in its video, lightly cropped and tilt_spectrum: for affinities that grade by time.

    Strong crops and flips are one more way for two moments to differ, which time has to outshine; so crops keep half
    of the image or more, and flips are off. A `framing` changes the image without that: all views of a sample have
    the same, so that one video gives many, in each of which time runs as it did.

    Args:
        size: side of the square that leaves, or (height, width).
        frames: in the view.
        rate_hz: steps a second; None: the clip's own rate.
        stride: steps from frame to frame.
        area: fractions of the image that crops keep.
        strength: s of SimCLR's color jitter.
        flip: whether to exchange left and right, once a clip, with probability .5.
        framing: fractions of the image that a first crop keeps which all views of a sample share, as they do a flip;
            `area` is then of that crop.
        positions: instead of anywhere, at so many even places, a view each: moments under disturbance, for evaluation.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    pace: dict[str, Any] = {"frames": frames, "stride": stride, "rate_hz": rate_hz, "short": short}
    pace["shorter_side"] = _decoding_side(
        size, area if framing is None else (area[0] * framing[0], area[1] * framing[1])
    )
    sampler = clip_sampler.random_clip(**pace) if positions is None else clip_sampler.grid_clip(views=positions, **pace)
    crop = RandomResizedCrop(size=size, area=(float(area[0]), float(area[1])))
    parts: list[tuple[str, ViewGenerator]] = [("clip", sampler)]
    if framing is None:
        parts.append(("crop", PerClip(crop)))
    else:
        shared = RandomResizedCrop(size=size, area=(float(framing[0]), float(framing[1])), aspect=(0.5, 2.0))
        parts += [("crop", PerClip(CropWithin(shared, crop))), ("turn", PerClip(SharedByViews(Flip())))]
    if flip:
        parts.append(("flip", PerClip(Flip())))
    return Chain(*parts, ("jitter", PerClip(simclr_jitter(float(strength)))), name="video/graded")


@register_view("video/cvrl", modality="video")
def cvrl(*, size: int | tuple[int, int] = 224, frames: int = 16, stride: int | float = 2) -> Chain:
    """CVRL (Qian et al. 2021): two clips with falling density of their gap, each changed alike in all its frames.

    Crop of area .3 to 1 and aspect .5 to 2, flip, SimCLR's jitter at strength 1, gray .2, blur; the second clip is also
    solarized with probability .2.

    Args:
        size: side of the square that leaves, or (height, width).
        frames: in each view.
        stride: frames of the video from one to the next.
    """
    sampler = clip_sampler.cvrl_clip(frames=frames, stride=stride)
    images = _spatial_chain(
        sampler,
        size,
        area=(0.3, 1.0),
        aspect=(0.5, 2.0),
        jitter=simclr_jitter(1.0),
        grayscale=0.2,
        blur=True,
        name="video/cvrl",
    )
    return Chain(*images.children(), ("solarize", PerClip(OnSecondViews(Solarize()))), name="video/cvrl")


@register_view("video/tclr", modality="video")
def tclr(*, size: int | tuple[int, int] = 112, frames: int = 16, skip: int = 4, dense: int = 4) -> Chain:
    """TCLR (Dave et al. 2022): a sparse clip and dense ones from its span; crop, flip, jitter and gray alike in a clip.

    Args:
        size: side of the square that leaves, or (height, width).
        frames: in each view.
        skip: the sparse clip's stride.
        dense: how many dense clips; give the same object for 1 + `dense` views.
    """
    sampler = clip_sampler.tclr_clip(frames=frames, skip=skip, dense=dense)
    return _spatial_chain(sampler, size, area=(0.3, 1.0), jitter=simclr_jitter(0.5), grayscale=0.2, name="video/tclr")


@register_view("video/vince", modality="video")
def vince(*, size: int | tuple[int, int] = 224) -> Chain:
    """VINCE (Gordon et al. 2020): single frames of one video are each other's views.

    Args:
        size: side of the square that leaves, or (height, width).
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
    """ρBYOL (Feichtenhofer et al. 2021): clips of 8×8 frames at most a gap apart, under SimCLR's images.

    Args:
        gap_seconds: the longest gap between the starts of two clips.
        size: side of the square that leaves, or (height, width).
        frames: in each view.
        stride: frames of the video from one to the next.
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
    """The view of evaluation: the clip's center, or `views` even places, brought to one size; nothing drawn.

    Args:
        size: side of the square that leaves, or (height, width).
        frames: in each view.
        rate_hz: steps a second; None: the clip's own rate.
        stride: steps from frame to frame.
        views: how many places; give the same object for so many views.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    side = min(size if isinstance(size, tuple) else (size, size))
    sampler = clip_sampler.grid_clip(
        frames=frames, stride=stride, rate_hz=rate_hz, views=views, shorter_side=side, short=short
    )
    return Chain(("clip", sampler), ("resize", PerClip(Resize(size=size))), name="video/plain")
