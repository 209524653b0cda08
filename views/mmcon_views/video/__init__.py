"""Built-in view generators of video; importing this package registers them."""

from mmcon_views.video import clip_sampler, frame_order, published

__all__ = ["clip_sampler", "frame_order", "published"]
