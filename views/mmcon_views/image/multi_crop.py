"""Multi-crop: global and local crops of one image as views, as in SwAV and DINO."""

from __future__ import annotations

from typing import Any, Literal

from mmcon.errors import InputError
from mmcon.registry import register_view
from mmcon.views import Chain, ViewGenerator
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import ColorJitter, Grayscale, Solarize, simclr_jitter
from mmcon_views.image.crop import RandomResizedCrop
from mmcon_views.image.flip import Flip
from mmcon_views.image.pixels import check_choice


@register_view("image/swav", modality="image")
def swav(*, crop: Literal["global", "local"] = "global", size: int | None = None) -> Chain:
    """One view of SwAV's multi-crop: two global crops of 224 px (area 0.14–1) and six local of 96 px (0.05–0.14).

    Args:
        crop: "global" or "local"; `mmcon_views.image.multi_crop.multi_crop("swav")` gives all eight.
        size: side of the square output; by default the published one.
    """
    areas, sizes = {"global": (0.14, 1.0), "local": (0.05, 0.14)}, {"global": 224, "local": 96}
    check_choice("image/swav", "crop", crop, areas)
    side = size or sizes[crop]
    return Chain(
        ("crop", RandomResizedCrop(size=side, area=areas[crop], bytes=True)),
        ("flip", Flip()),
        ("jitter", simclr_jitter(1.0)),
        ("gray", Grayscale()),
        ("blur", _pillow_blur(side)),
        name="image/swav",
    )


@register_view("image/dino", modality="image")
def dino(*, crop: Literal["global-1", "global-2", "local"] = "global-1", size: int | None = None) -> Chain:
    """One view of DINO's multi-crop: two global crops of 224 px (area 0.4–1) and eight local of 96 px (0.05–0.4).

    Bicubic; jitter (0.4, 0.4, 0.2, 0.1) with p = 0.8, grayscale with p = 0.2; blur with p = 1, 0.1 and 0.5 (global 1,
    global 2, local); solarization with p = 0.2 on the second global crop.

    Args:
        crop: "global-1", "global-2" or "local"; `mmcon_views.image.multi_crop.multi_crop("dino")` gives all ten.
        size: side of the square output; by default the published one.
    """
    blur = {"global-1": 1.0, "global-2": 0.1, "local": 0.5}
    check_choice("image/dino", "crop", crop, blur)
    local = crop == "local"
    area = (0.05, 0.4) if local else (0.4, 1.0)
    side = size or (96 if local else 224)
    children = [
        ("crop", RandomResizedCrop(size=side, area=area, interpolation="bicubic", bytes=True)),
        ("flip", Flip()),
        ("jitter", ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)),
        ("gray", Grayscale()),
        ("blur", _pillow_blur(side, blur[crop])),
    ]
    return Chain(*children, *([("solarize", Solarize())] if crop == "global-2" else []), name="image/dino")


def multi_crop(recipe: Literal["swav", "dino"], **options: Any) -> tuple[ViewGenerator, ...]:
    """The generators of all views of a multi-crop recipe, in order; the loader stacks consecutive views of one size.

    Args:
        recipe: "swav" (2 + 6) or "dino" (2 + 8).
        options: `global_size` and `local_size`; by default the published sizes.
    """
    check_choice("multi_crop", "recipe", recipe, {"swav": 0, "dino": 0})
    sizes = {"global": options.pop("global_size", None), "local": options.pop("local_size", None)}
    if options:
        raise InputError("multi_crop", expected="options global_size and local_size", got=str(sorted(options)))
    if recipe == "swav":
        return (swav(size=sizes["global"]),) * 2 + (swav(crop="local", size=sizes["local"]),) * 6
    first, second = (dino(crop=c, size=sizes["global"]) for c in ("global-1", "global-2"))
    return (first, second, *(dino(crop="local", size=sizes["local"]),) * 8)


def _pillow_blur(side: int, p: float = 0.5) -> Blur:
    """A blur as wide as Pillow's, which both papers use: 23 taps cover 5 standard deviations of the widest Gaussian."""
    return Blur(kernel=min(23, 2 * side - 1), p=p)
