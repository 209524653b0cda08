"""Views of images: the published recipes by name.

A name says where a recipe comes from; its page says where it departs from there. Operations live in `views.geometry`
(where a view looks), `views.colour` and `views.filters`; here they are strung into chains. Every chain takes photos of
any size (handles or tensors) or a stacked batch, and gives float32 `b c h w` in [0, 1]: normalising is the encoder's.
"""

from __future__ import annotations

from mmcon.registry import register_view
from mmcon.view import Chain
from views.colour import ColourJitter, Grayscale
from views.filters import Blur
from views.geometry import Flip, Interpolation, RandomResizedCrop, Resize

Size = int | tuple[int, int]


def jitter_of(strength: float, p: float = 0.8) -> ColourJitter:
    """SimCLR's colour jitter at strength s: .8s, .8s, .8s and .2s, with probability p."""
    return ColourJitter(
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        p=p,
    )


@register_view("image/simclr", modality="image")
def simclr(
    *,
    size: Size = 224,
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    interpolation: Interpolation = "bicubic",
    grayscale: float = 0.2,
    blur: bool | None = None,
) -> Chain:
    """SimAugment of SimCLR (Chen et al. 2020, appendix A) with torchvision's colour jitter.

    Crop, flip, jitter with probability .8, grayscale with .2, blur with .5. The published settings are strength 1 with
    blur at 224 px, and for CIFAR-10 strength .5 without blur; SupCon's for CIFAR are area (.2, 1), bilinear, strength
    .5, no blur. Grey pictures (Fashion-MNIST, 28 px) take crop, flip, brightness and contrast.

    >>> view = mmcon.create_view("image/simclr", size=28, strength=0.5, area=(0.2, 1.0))

    Args:
        size: side of the square that leaves, or (height, width).
        strength: s of the colour jitter.
        area: fractions of the picture's area that crops have.
        interpolation: the crop's filter.
        grayscale: the probability of a grey view.
        blur: whether to blur with probability .5; by default where the size is above 64.
    """
    small = min(size if isinstance(size, tuple) else (size, size)) <= 64
    parts = [
        ("crop", RandomResizedCrop(size=size, area=area, interpolation=interpolation, bytes=True)),
        ("flip", Flip()),
        ("jitter", jitter_of(strength)),
        ("gray", Grayscale(p=grayscale)),
    ]
    if blur or (blur is None and not small):
        parts.append(("blur", Blur()))
    return Chain(*parts, name="image/simclr")


@register_view("image/crop-flip", modality="image")
def crop_flip(
    *,
    size: Size = 224,
    area: tuple[float, float] = (0.08, 1.0),
    interpolation: Interpolation = "bilinear",
) -> Chain:
    """A random resized crop and a flip: the plainest training view.

    Args:
        size: side of the square that leaves, or (height, width).
        area: fractions of the picture's area that crops have.
        interpolation: the crop's filter.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, interpolation=interpolation)),
        ("flip", Flip()),
        name="image/crop-flip",
    )


@register_view("image/center-crop", modality="image")
def center_crop(*, size: Size = 224, keep: float = 224 / 256, interpolation: Interpolation = "bilinear") -> Resize:
    """The view of evaluation: the centre of the picture, nothing drawn.

    At 224 the default keeps 224/256 of the shorter side: "resize to 256, crop 224 from the centre", made in one
    resampling.

    Args:
        size: side of the square that leaves, or (height, width).
        keep: the fraction of the shorter side that is kept.
        interpolation: the filter.
    """
    return Resize(size=size, keep=keep, interpolation=interpolation)


@register_view("image/plain", modality="image")
def plain(*, size: Size = 224, interpolation: Interpolation = "bilinear") -> Resize:
    """The picture itself at one size: the largest centred part of the target's aspect, nothing drawn.

    Args:
        size: side of the square that leaves, or (height, width).
        interpolation: the filter.
    """
    return Resize(size=size, interpolation=interpolation)
