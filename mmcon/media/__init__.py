"""Handles on media: read the header, then decode a region, a scale or a span on request."""

from mmcon.media.clip import Clip, FrameCache, FrameStack, Span, open_clip
from mmcon.media.image import ImageHandle, open_images

__all__ = ["Clip", "FrameCache", "FrameStack", "ImageHandle", "Span", "open_clip", "open_images"]
