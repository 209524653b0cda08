"""Built-in view generators of video; importing this package registers them."""

from mmcon_views.video import published, spans

__all__ = ["published", "spans"]
