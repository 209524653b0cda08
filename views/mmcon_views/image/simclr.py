"""SimCLR's views (SimAugment), with torchvision's or TensorFlow's color jitter."""

from __future__ import annotations

from mmcon.registry import register_view
from mmcon.views import Chain
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import Grayscale, simclr_jitter
from mmcon_views.image.color_tensorflow import simclr_jitter_tf
from mmcon_views.image.crop import RandomResizedCrop
from mmcon_views.image.flip import Flip
from mmcon_views.image.resample import Interpolation
from mmcon_views.image.sizes import Size


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
    """SimAugment of SimCLR (Chen et al. 2020, appendix A) with torchvision's color jitter.

    Crop, flip, jitter with p = 0.8, grayscale with p = 0.2, blur with p = 0.5. The published settings are strength 1
    with blur at 224 px and, for CIFAR-10, strength 0.5 without blur; SupCon's for CIFAR are area (0.2, 1), bilinear,
    strength 0.5, no blur. Gray images (Fashion-MNIST, 28 px) get crop, flip, brightness and contrast.

    >>> view = mmcon.create_view("image/simclr", size=28, strength=0.5, area=(0.2, 1.0))

    Args:
        size: side of the square output, or (height, width).
        strength: s of the color jitter.
        area: bounds of the crop's area, as fractions of the image's.
        interpolation: the filter of the crop.
        grayscale: the probability of a gray view.
        blur: whether to blur with p = 0.5; by default for sizes above 64.
    """
    # The paper leaves the blur out for CIFAR-10, at 32 px.
    small = min(size if isinstance(size, tuple) else (size, size)) <= 64
    children = [
        ("crop", RandomResizedCrop(size=size, area=area, interpolation=interpolation, bytes=True)),
        ("flip", Flip()),
        ("jitter", simclr_jitter(strength)),
        ("gray", Grayscale(p=grayscale)),
    ]
    if blur or (blur is None and not small):
        children.append(("blur", Blur()))
    return Chain(*children, name="image/simclr")


@register_view("image/simclr-tf", modality="image")
def simclr_tf(
    *,
    size: Size = 224,
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    brightness: str = "multiplied",
    blur: bool | None = None,
) -> Chain:
    """SimAugment of SimCLR with TensorFlow's color jitter.

    Crop, flip, jitter with p = 0.8, grayscale with p = 0.2, blur with p = 0.5. Brightness is added in SimCLR's first
    version and multiplied in the second; the blur pads with black. Deviations
    from the released code: the crop is that of `image/simclr` (TensorFlow draws aspect and height uniformly, and
    resamples without antialiasing), and the blur is drawn for each image (the released code draws one for a batch).

    >>> view = mmcon.create_view("image/simclr-tf", size=32, strength=0.5, brightness="added")

    Args:
        size: side of the square output, or (height, width).
        strength: s of the color jitter: .8s, .8s, .8s and .2s.
        area: bounds of the crop's area, as fractions of the image's.
        brightness: "added" (version 1) or "multiplied" (version 2).
        blur: whether to blur with p = 0.5; by default for sizes above 64.
    """
    small = min(size if isinstance(size, tuple) else (size, size)) <= 64
    children = [
        ("crop", RandomResizedCrop(size=size, area=area, interpolation="bicubic", bytes=True)),
        ("flip", Flip()),
        ("jitter", simclr_jitter_tf(strength, brightness)),
        ("gray", Grayscale()),
    ]
    if blur or (blur is None and not small):
        # TensorFlow's convolution pads with zeros.
        children.append(("blur", Blur(outside=0.0)))
    return Chain(*children, name="image/simclr-tf")
