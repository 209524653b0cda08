"""Multi-crop: several global and local crops of one image, as in SwAV and DINO."""

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


def _pillow_blur(side: int, p: float = 0.5) -> Blur:
    """Pillow's Gaussian is not cut at a tenth of the side: 23 taps hold 5 deviations of the widest."""
    return Blur(kernel=min(23, 2 * side - 1), p=p)


@register_view("image/swav", modality="image")
def swav(*, crop: Literal["global", "local"] = "global", size: int | None = None) -> Chain:
    """One crop of SwAV's multi-crop: two global ones of 224 px (.14–1) and six local ones of 96 px (.05–.14).

    Args:
        crop: "global" or "local"; `mmcon_views.image.published.multi_crop("swav")` gives all eight.
        size: side of the square, for smaller images.
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
    """One crop of DINO's multi-crop: two global ones of 224 px (.4–1) and eight local ones of 96 px (.05–.4), bicubic.

    Jitter (.4, .4, .2, .1) .8, gray .2; blur always, .1 and .5; solarize .2 on the second global one.

    Args:
        crop: "global-1", "global-2" or "local"; `mmcon_views.image.published.multi_crop("dino")` gives all ten.
        size: side of the square, for smaller images.
    """
    blur = {"global-1": 1.0, "global-2": 0.1, "local": 0.5}
    check_choice("image/dino", "crop", crop, blur)
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
        options: `global_size` and `local_size`, for smaller images.
    """
    check_choice("multi_crop", "recipe", recipe, {"swav": 0, "dino": 0})
    sizes = {"global": options.pop("global_size", None), "local": options.pop("local_size", None)}
    if options:
        raise InputError("multi_crop", expected="options global_size and local_size", got=str(sorted(options)))
    if recipe == "swav":
        return (swav(size=sizes["global"]),) * 2 + (swav(crop="local", size=sizes["local"]),) * 6
    first, second = (dino(crop=c, size=sizes["global"]) for c in ("global-1", "global-2"))
    return (first, second, *(dino(crop="local", size=sizes["local"]),) * 8)
