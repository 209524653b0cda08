"""Handles on media: read the header, then decode a region, a scale or a span on request."""

from mmcon.media.clip import Clip, FrameStack, Span
from mmcon.media.clip_files import FrameCache, open_clip
from mmcon.media.image import ImageHandle, open_images
from mmcon.media.sound import Sound, SoundContract, open_sounds

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
