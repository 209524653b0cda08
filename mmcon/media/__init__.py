"""Handles on encoded media: read the header, then decode a region, a scale or a span on request.

Each modality has a handle class: `ImageHandle`, `AudioHandle`, `VideoHandle`, `TextHandle`. `Instances` contains
several handles of one sample. Every handle has `facts`, the numbers that view generators draw from, and `decode()`.
"""

from mmcon.media.audio import AudioFormat, AudioHandle, open_audio
from mmcon.media.image import ImageHandle, open_images
from mmcon.media.instances import Instances
from mmcon.media.text import TextHandle
from mmcon.media.video import FrameStack, VideoHandle, VideoSpan
from mmcon.media.video_files import FrameCache, open_video

__all__ = [
    "AudioFormat",
    "AudioHandle",
    "FrameCache",
    "FrameStack",
    "ImageHandle",
    "Instances",
    "TextHandle",
    "VideoHandle",
    "VideoSpan",
    "open_audio",
    "open_images",
    "open_video",
]
