"""Handles on media: read the header, then decode a region, a scale or a span on request."""

from mmcon.media.audio import AudioFormat, AudioHandle, open_audio
from mmcon.media.image import ImageHandle, open_images
from mmcon.media.video import FrameStack, VideoHandle, VideoSpan
from mmcon.media.video_files import FrameCache, open_video

__all__ = [
    "AudioFormat",
    "AudioHandle",
    "FrameCache",
    "FrameStack",
    "ImageHandle",
    "VideoHandle",
    "VideoSpan",
    "open_audio",
    "open_images",
    "open_video",
]
