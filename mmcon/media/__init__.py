"""Handles on media: read the header, then decode a region, a scale or a span on request."""

from mmcon.media.audio import Sound, SoundContract, open_sounds
from mmcon.media.image import ImageHandle, open_images
from mmcon.media.video import Clip, FrameStack, Span
from mmcon.media.video_files import FrameCache, open_clip

__all__ = [
    "Clip",
    "FrameCache",
    "FrameStack",
    "ImageHandle",
    "Sound",
    "SoundContract",
    "Span",
    "open_clip",
    "open_images",
    "open_sounds",
]
