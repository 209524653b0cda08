"""Views of images: the published recipes by name.

A name carries the provenance of a recipe; docs/views-image.md lists its deviations. The operations are in the other
modules of this package; this one composes them into chains. Every chain takes photos of any size (handles or tensors)
or a stacked batch, and returns float32 `b c h w` in [0, 1]; the encoder normalizes.
"""

from __future__ import annotations

from typing import Any, Literal

from mmcon.errors import InputError
from mmcon.registry import register_view
from mmcon.views import Chain, ViewGenerator
from mmcon_views.image.blur import Blur
from mmcon_views.image.channels import ColorChannels, Edges
from mmcon_views.image.color import ColorJitter, Grayscale, Solarize, jitter_of
from mmcon_views.image.color_tensorflow import tf_jitter_of
from mmcon_views.image.geometry import Flip, RandomResizedCrop, Resize
from mmcon_views.image.pixels import one_of
from mmcon_views.image.policies import RandAugment
from mmcon_views.image.resample import Interpolation
from mmcon_views.scopes import SharedByViews

Size = int | tuple[int, int]


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


@register_view("image/simclr-tf", modality="image")
def simclr_tf(
    *,
    size: Size = 224,
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    brightness: str = "multiplied",
    blur: bool | None = None,
) -> Chain:
    """SimAugment of SimCLR with TensorFlow's colour jitter: crop, flip, jitter .8, gray .2, blur .5.

    Brightness is added in SimCLR's first version and multiplied in the second; beyond the edges a blur meets black. The
    crop is that of `image/simclr`: TensorFlow draws aspect and height evenly, and resamples without antialiasing. Each
    picture has a blur of its own, where the published code draws one a batch.

    >>> view = mmcon.create_view("image/simclr-tf", size=32, strength=0.5, brightness="added")

    Args:
        size: side of the square that leaves, or (height, width).
        strength: s of the colour jitter: .8s, .8s, .8s and .2s.
        area: fractions of the picture's area that crops have.
        brightness: "added" (version 1) or "multiplied" (version 2).
        blur: whether to blur with probability .5; by default where the size is above 64.
    """
    small = min(size if isinstance(size, tuple) else (size, size)) <= 64
    parts = [
        ("crop", RandomResizedCrop(size=size, area=area, interpolation="bicubic", bytes=True)),
        ("flip", Flip()),
        ("jitter", tf_jitter_of(strength, brightness)),
        ("gray", Grayscale()),
    ]
    if blur or (blur is None and not small):
        # TensorFlow's convolution takes what is beyond the edges as black.
        parts.append(("blur", Blur(outside=0.0)))
    return Chain(*parts, name="image/simclr-tf")


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


def _pillow_blur(side: int, p: float = 0.5) -> Blur:
    """Pillow's Gaussian is not cut at a tenth of the side: 23 taps hold 5 deviations of the widest."""
    return Blur(kernel=min(23, 2 * side - 1), p=p)


@register_view("image/swav", modality="image")
def swav(*, crop: Literal["global", "local"] = "global", size: int | None = None) -> Chain:
    """One crop of SwAV's multi-crop: two global ones of 224 px (.14–1) and six local ones of 96 px (.05–.14).

    Args:
        crop: "global" or "local"; `mmcon_views.image.published.multi_crop("swav")` gives all eight.
        size: side of the square, for smaller pictures.
    """
    areas, sizes = {"global": (0.14, 1.0), "local": (0.05, 0.14)}, {"global": 224, "local": 96}
    one_of("image/swav", "crop", crop, areas)
    side = size or sizes[crop]
    return Chain(
        ("crop", RandomResizedCrop(size=side, area=areas[crop], bytes=True)),
        ("flip", Flip()),
        ("jitter", jitter_of(1.0)),
        ("gray", Grayscale()),
        ("blur", _pillow_blur(side)),
        name="image/swav",
    )


@register_view("image/dino", modality="image")
def dino(*, crop: Literal["global-1", "global-2", "local"] = "global-1", size: int | None = None) -> Chain:
    """One crop of DINO's multi-crop: two global ones of 224 px (.4–1) and eight local ones of 96 px (.05–.4), bicubic.

    Jitter (.4, .4, .2, .1) .8, gray .2; blur always, .1 and .5; solarize .2 on the second global one.

    Args:
        crop: "global-1", "global-2" or "local"; `mmcon_views.image.published.multi_crop("dino")` gives all ten.
        size: side of the square, for smaller pictures.
    """
    blur = {"global-1": 1.0, "global-2": 0.1, "local": 0.5}
    one_of("image/dino", "crop", crop, blur)
    local = crop == "local"
    area = (0.05, 0.4) if local else (0.4, 1.0)
    side = size or (96 if local else 224)
    parts = [
        ("crop", RandomResizedCrop(size=side, area=area, interpolation="bicubic", bytes=True)),
        ("flip", Flip()),
        ("jitter", ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)),
        ("gray", Grayscale()),
        ("blur", _pillow_blur(side, blur[crop])),
    ]
    return Chain(*parts, *([("solarize", Solarize())] if crop == "global-2" else []), name="image/dino")


def multi_crop(recipe: Literal["swav", "dino"], **options: Any) -> tuple[ViewGenerator, ...]:
    """All views of a multi-crop recipe, in order; the loader stacks neighbours of one size.

    Args:
        recipe: "swav" (2 + 6) or "dino" (2 + 8).
        options: `global_size` and `local_size`, for smaller pictures.
    """
    one_of("multi_crop", "recipe", recipe, {"swav": 0, "dino": 0})
    sizes = {"global": options.pop("global_size", None), "local": options.pop("local_size", None)}
    if options:
        raise InputError("multi_crop", expected="options global_size and local_size", got=str(sorted(options)))
    if recipe == "swav":
        return (swav(size=sizes["global"]),) * 2 + (swav(crop="local", size=sizes["local"]),) * 6
    first, second = (dino(crop=c, size=sizes["global"]) for c in ("global-1", "global-2"))
    return (first, second, *(dino(crop="local", size=sizes["local"]),) * 8)


@register_view("image/cmc", modality="image")
def cmc(
    *,
    part: Literal["luminance", "chroma", "edges", "both"] = "both",
    space: Literal["lab", "ycbcr", "ydbdr"] = "lab",
    size: Size = 224,
    area: tuple[float, float] = (0.2, 1.0),
    augment: bool | None = None,
) -> Chain:
    """CMC's channel views: crop, flip, then the luminance (1 channel) or the chroma (2 channels) of a colour space.

    An edge map (1 channel) may stand beside them: CMC takes any number of views of one scene. All parts of a sample see
    the same crop: their draws leave the view out of the key. In the YDbDr space of the second version (PyContrast), a
    jitter (.4, .4, .4, .1) .8, a blur .5 and the operations of RandAugment that leave colours alone follow the flip.

    >>> views = [mmcon.create_view("image/cmc", part=p) for p in ("luminance", "chroma")]

    Args:
        part: "luminance", "chroma", "edges", or "both" of the first two (3 channels).
        space: "lab", "ycbcr" or "ydbdr".
        size: side of the square that leaves, or (height, width).
        area: fractions of the picture's area that crops have.
        augment: whether to apply the second version's jitter, blur and RandAugment; by default with "ydbdr".
    """
    parts: list[tuple[str, ViewGenerator]] = [
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
    ]
    if augment or (augment is None and space == "ydbdr"):
        parts += [
            ("jitter", ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
            ("blur", Blur()),
            ("randaugment", RandAugment(variant="color-safe")),
        ]
    shared = [(name, SharedByViews(generator)) for name, generator in parts]
    channels = Edges() if part == "edges" else ColorChannels(space=space, part=part)
    return Chain(*shared, ("channels", channels), name="image/cmc")
