"""Built-in view generators of images; importing this package registers them."""

from mmcon_views import instances
from mmcon_views.image import (
    blur,
    channels,
    color,
    color_tensorflow,
    corruptions,
    geometry,
    mixing,
    policies,
    published,
    supcon,
    warp,
)

__all__ = [
    "blur",
    "channels",
    "color",
    "color_tensorflow",
    "corruptions",
    "geometry",
    "instances",
    "mixing",
    "policies",
    "published",
    "supcon",
    "warp",
]
