"""SupCon's views: AutoAugment, SimAugment with a warp, and stacked RandAugment in its three published orders."""

from __future__ import annotations

from typing import Literal

from mmcon.registry import register_view
from mmcon.views import Chain, ViewGenerator
from mmcon_views.image.auto_augment import AutoAugment
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import Grayscale, simclr_jitter
from mmcon_views.image.color_tensorflow import simclr_jitter_tf
from mmcon_views.image.crop import RandomResizedCrop
from mmcon_views.image.flip import Flip
from mmcon_views.image.pixels import check_choice
from mmcon_views.image.rand_augment import RandAugment
from mmcon_views.image.sizes import Size, height_and_width
from mmcon_views.image.warp import Warp

#: The probability of the warp in the functions of the released code. Its hyper-parameters set 0, and so did the runs
#: behind the published figures.
WARP = 0.5
#: The bound of the displacements in the released code, which is for images of 224 pixels.
WARP_PIXELS, WARP_SIDE = 23.0, 224


@register_view("image/supcon-autoaugment", modality="image")
def supcon_autoaugment(*, size: Size = 224, area: tuple[float, float] = (0.08, 1.0), policy: str = "tf-v0") -> Chain:
    """SupCon's views of ImageNet: crop, flip, AutoAugment (TensorFlow's policy v0 in the released code).

    Args:
        size: side of the square output, or (height, width).
        area: bounds of the crop's area, as fractions of the image's.
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
    warp: float = WARP,
    jitter: Literal["tensorflow", "torchvision"] = "tensorflow",
    blur: float = 0.5,
) -> Chain:
    """SimAugment of SupCon's released code.

    Bilinear crop, flip, jitter with p = 0.8, grayscale with p = 0.2, warp with p = 0.5, blur with p = 0.5.

    Args:
        size: side of the square output, or (height, width).
        strength: s of the color jitter.
        area: bounds of the crop's area, as fractions of the image's.
        warp: the probability of the warp; 0 in the runs behind the published figures (see `WARP`).
        jitter: "tensorflow" (brightness added; the released setting for ImageNet) or "torchvision" (for CIFAR-10).
        blur: the probability of the blur; 0 for CIFAR-10. It pads with mid-gray.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("jitter", _supcon_jitter(strength, jitter)),
        ("gray", Grayscale()),
        ("warp", _scaled_warp(size, warp)),
        ("blur", Blur(p=blur, outside=0.5)),
        name="image/simclr-supcon",
    )


@register_view("image/stacked-randaugment-talk", modality="image")
def stacked_talk(*, size: Size = 224, strength: float = 1.0, area: tuple[float, float] = (0.08, 1.0)) -> Chain:
    """Stacked RandAugment in the order of a talk by SupCon's authors: crop, RandAugment, color jitter, Gaussian blur.

    The talk gives only the order. Our choices are a flip after the crop, TensorFlow's RandAugment, and SimCLR's jitter
    and blur.

    Args:
        size: side of the square output, or (height, width).
        strength: s of the color jitter.
        area: bounds of the crop's area, as fractions of the image's.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("randaugment", RandAugment(variant="tf")),
        ("jitter", simclr_jitter(strength)),
        ("blur", Blur()),
        name="image/stacked-randaugment-talk",
    )


@register_view("image/stacked-randaugment-supcon", modality="image")
def stacked_supcon(
    *,
    size: Size = 224,
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    warp: float = WARP,
    jitter: Literal["tensorflow", "torchvision"] = "tensorflow",
    blur: float = 0.5,
) -> Chain:
    """Stacked RandAugment of SupCon's released code.

    Crop, flip, jitter with p = 0.8, RandAugment(2, 10), grayscale with p = 0.2, warp with p = 0.5, blur with p = 0.5.

    Args:
        size: side of the square output, or (height, width).
        strength: s of the color jitter.
        area: bounds of the crop's area, as fractions of the image's.
        warp: the probability of the warp; 0 in the runs behind the published figures (see `WARP`).
        jitter: "tensorflow" (brightness added; the released setting for ImageNet) or "torchvision" (for CIFAR-10).
        blur: the probability of the blur; 0 for CIFAR-10. It pads with mid-gray.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("jitter", _supcon_jitter(strength, jitter)),
        ("randaugment", RandAugment(variant="tf")),
        ("gray", Grayscale()),
        ("warp", _scaled_warp(size, warp)),
        ("blur", Blur(p=blur, outside=0.5)),
        name="image/stacked-randaugment-supcon",
    )


@register_view("image/stacked-randaugment-infomin", modality="image")
def stacked_infomin(*, size: Size = 224, area: tuple[float, float] = (0.2, 1.0)) -> Chain:
    """InfoMin's views (PyContrast).

    Crop, flip, jitter (0.8, 0.8, 0.8, 0.2) with p = 0.8, blur with p = 0.5, timm's RandAugment, grayscale with p = 0.2.

    Args:
        size: side of the square output, or (height, width).
        area: bounds of the crop's area, as fractions of the image's: from 0.2, or 0.08 in another published setting.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
        ("jitter", simclr_jitter(1.0)),
        ("blur", Blur()),
        ("randaugment", RandAugment(variant="timm")),
        ("gray", Grayscale()),
        name="image/stacked-randaugment-infomin",
    )


def _scaled_warp(size: Size, p: float) -> Warp:
    """The released warp at 224 pixels; at other sizes its displacements are the same fraction of the shorter side."""
    return Warp(strength=WARP_PIXELS * min(height_and_width(size)) / WARP_SIDE, p=p)


def _supcon_jitter(strength: float, jitter: str) -> ViewGenerator:
    """The jitter of SupCon's released code: TensorFlow's, brightness added (ImageNet), or torchvision's (CIFAR-10)."""
    check_choice("SupCon's jitter", "jitter", jitter, ("tensorflow", "torchvision"))
    return simclr_jitter_tf(strength, "added") if jitter == "tensorflow" else simclr_jitter(strength)
