"""SupCon's views, and stacked RandAugment in the three orders that are in circulation."""

from __future__ import annotations

from typing import Literal

from mmcon.registry import register_view
from mmcon.views import Chain, ViewGenerator
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import Grayscale, jitter_of
from mmcon_views.image.color_tensorflow import tf_jitter_of
from mmcon_views.image.geometry import Flip, RandomResizedCrop
from mmcon_views.image.pixels import one_of
from mmcon_views.image.policies import AutoAugment, RandAugment
from mmcon_views.image.warp import Warp

Size = int | tuple[int, int]


def supcon_jitter(strength: float, jitter: str) -> ViewGenerator:
    """The jitter of SupCon's released code: TensorFlow's with brightness added, or torchvision's."""
    one_of("supcon_jitter", "jitter", jitter, ("tensorflow", "torchvision"))
    return tf_jitter_of(strength, "added") if jitter == "tensorflow" else jitter_of(strength)


@register_view("image/supcon-autoaugment", modality="image")
def supcon_autoaugment(*, size: Size = 224, area: tuple[float, float] = (0.08, 1.0), policy: str = "tf-v0") -> Chain:
    """SupCon's views for ImageNet: crop, flip, AutoAugment (TensorFlow's policy v0 in the released code).

    Args:
        size: side of the square that leaves, or (height, width).
        area: fractions of the picture's area that crops have.
        policy: "tf-v0", or torchvision's "imagenet" or "cifar10".
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("autoaugment", AutoAugment(policy=policy)),
        name="image/supcon-autoaugment",
    )


@register_view("image/simclr-supcon", modality="image")
def simclr_supcon(
    *,
    size: Size = 224,
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    warp: float = 0.0,
    jitter: Literal["tensorflow", "torchvision"] = "tensorflow",
    blur: float = 0.5,
) -> Chain:
    """SimAugment of SupCon's released code: crop (bilinear), flip, jitter .8, gray .2, warp, blur .5.

    The released hyper-parameters leave the warp's probability at 0, and so does this.

    Args:
        size: side of the square that leaves, or (height, width).
        strength: s of the colour jitter.
        area: fractions of the picture's area that crops have.
        warp: the probability of the warp.
        jitter: "tensorflow" (brightness added; the released setting for ImageNet) or "torchvision" (for CIFAR-10).
        blur: the probability of the blur; 0 for CIFAR-10. Beyond the edges lies mid-grey.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("jitter", supcon_jitter(strength, jitter)),
        ("gray", Grayscale()),
        ("warp", Warp(p=warp)),
        ("blur", Blur(p=blur, outside=0.5)),
        name="image/simclr-supcon",
    )


@register_view("image/stacked-randaugment-talk", modality="image")
def stacked_talk(*, size: Size = 224, strength: float = 1.0, area: tuple[float, float] = (0.08, 1.0)) -> Chain:
    """Stacked RandAugment as SupCon's authors told it: crop, RandAugment, colour jitter, Gaussian blur.

    The talk names the order alone; RandAugment is TensorFlow's, jitter and blur are SimCLR's.

    Args:
        size: side of the square that leaves, or (height, width).
        strength: s of the colour jitter.
        area: fractions of the picture's area that crops have.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("randaugment", RandAugment(variant="tf")),
        ("jitter", jitter_of(strength)),
        ("blur", Blur()),
        name="image/stacked-randaugment-talk",
    )


@register_view("image/stacked-randaugment-supcon", modality="image")
def stacked_supcon(
    *,
    size: Size = 224,
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    warp: float = 0.0,
    jitter: Literal["tensorflow", "torchvision"] = "tensorflow",
    blur: float = 0.5,
) -> Chain:
    """Stacked RandAugment of SupCon's released code: crop, flip, jitter .8, RandAugment(2, 10), gray .2, warp, blur.

    Args:
        size: side of the square that leaves, or (height, width).
        strength: s of the colour jitter.
        area: fractions of the picture's area that crops have.
        warp: the probability of the warp.
        jitter: "tensorflow" (brightness added; the released setting for ImageNet) or "torchvision" (for CIFAR-10).
        blur: the probability of the blur; 0 for CIFAR-10. Beyond the edges lies mid-grey.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("jitter", supcon_jitter(strength, jitter)),
        ("randaugment", RandAugment(variant="tf")),
        ("gray", Grayscale()),
        ("warp", Warp(p=warp)),
        ("blur", Blur(p=blur, outside=0.5)),
        name="image/stacked-randaugment-supcon",
    )


@register_view("image/stacked-randaugment-infomin", modality="image")
def stacked_infomin(*, size: Size = 224, area: tuple[float, float] = (0.2, 1.0)) -> Chain:
    """InfoMin's (PyContrast's) views: crop, flip, jitter (.8, .8, .8, .2) .8, blur .5, timm's RandAugment, gray .2.

    Args:
        size: side of the square that leaves, or (height, width).
        area: fractions of the picture's area that crops have: from .2, or from .08 in a second setting.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("jitter", jitter_of(1.0)),
        ("blur", Blur()),
        ("randaugment", RandAugment(variant="timm")),
        ("gray", Grayscale()),
        name="image/stacked-randaugment-infomin",
    )
