"""Built-in view generators of images; importing this package registers them."""

from mmcon_views import choose_instance
from mmcon_views.image import (
    auto_augment,
    blur,
    cmc,
    color,
    color_tensorflow,
    corruptions,
    crop,
    flip,
    mixup,
    multi_crop,
    perturbations,
    rand_augment,
    resize,
    simclr,
    supcon,
    warp,
)

__all__ = [
    "auto_augment",
    "blur",
    "choose_instance",
    "cmc",
    "color",
    "color_tensorflow",
    "corruptions",
    "crop",
    "flip",
    "mixup",
    "multi_crop",
    "perturbations",
    "rand_augment",
    "resize",
    "simclr",
    "supcon",
    "warp",
]
