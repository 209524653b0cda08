"""Open videos: video files, folders of frames and animated images.

    video = open_video("walk.mp4")
    video.header.duration_seconds, video.header.frames_per_second
    frames = video.decode([1.0, 1.5, 2.0], shorter_side=128)     # t c h w, uint8

A `FrameCache` keeps decoded videos, up to a number of bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.decoding import decoder_errors
from mmcon.media.frame_sequence import AnimatedImage, FrameFolder
from mmcon.media.video import Decoder, FrameStack, VideoHandle
from mmcon.media.video_container import VideoFile

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".h264",
)
# fmt: on
ANIMATION_SUFFIXES = (".gif", ".webp", ".apng")


def open_video(
    path: str | Path | bytes,
    *,
    name: str = "",
    frames_per_second: int | float | None = None,
    decoder: Decoder = "pyav",
    cache: FrameCache | None = None,
) -> VideoHandle:
    """Open a video file, a folder of frames or an animated image, and read its header.

    Args:
        path: a path, or the bytes of a video file.
        name: the name of the video in messages and in the hash of its group; by default the path.
        frames_per_second: the frame rate, for a folder of frames or a file that states none.
        decoder: `pyav`; `torchcodec`; or `auto`: TorchCodec if one of its decoders can be constructed and the frames of
            the file are sorted by time. The two returned the same bits for six of eight files, and neighboring frames
            for two files with frames out of order.
        cache: a cache of decoded frames.

    Raises:
        DataError: the file does not exist, or has no frame or no rate.
    """
    if isinstance(path, bytes):
        video: VideoHandle = VideoFile(path, name=name, frames_per_second=frames_per_second, decoder=decoder)
        return video if cache is None else CachedVideo(video, cache)
    path = Path(path)
    with decoder_errors(name or str(path)):  # a forbidden folder, a null byte in the name
        is_folder, is_there = path.is_dir(), path.exists()
    if is_folder:
        video = FrameFolder(path, frames_per_second=frames_per_second, name=name)
    elif not is_there:
        raise DataError(name or str(path), expected="a video file or a folder of frames", got="nothing there")
    elif path.suffix.lower() in ANIMATION_SUFFIXES:
        video = AnimatedImage(path, name=name)
    else:
        video = VideoFile(path, name=name, frames_per_second=frames_per_second, decoder=decoder)
    return video if cache is None else CachedVideo(video, cache)


class FrameCache:
    """A least-recently-used cache of whole decoded videos, up to a number of bytes.

    Each process has its own cache: a worker gets the limit and starts with an empty cache.

    Args:
        max_bytes: bytes of frames per process. The last used video is kept, even if it is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._stacks: OrderedDict[tuple[str, int | None], FrameStack] = OrderedDict()

    def stack(self, video: VideoHandle, shorter_side: int | None) -> FrameStack:
        """The decoded frames of a video, from the cache if possible."""
        key = (video.name, shorter_side)
        if key in self._stacks:
            self._stacks.move_to_end(key)
            return self._stacks[key]
        stack = video.decode_all(shorter_side)
        self._stacks[key] = stack
        self.bytes += stack.frames.nbytes
        while self.bytes > self.max_bytes and len(self._stacks) > 1:
            self.bytes -= self._stacks.popitem(last=False)[1].frames.nbytes
        return stack

    def __len__(self) -> int:
        return len(self._stacks)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "bytes": 0, "_stacks": OrderedDict()}


@final
class CachedVideo(VideoHandle):
    """A video that is completely decoded at its first use and then read from a cache."""

    def __init__(self, video: VideoHandle, cache: FrameCache) -> None:
        self.video, self.cache = video, cache
        super().__init__(video.name, video.header)

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Select frames of the cached video."""
        return self.cache.stack(self.video, shorter_side).read(times, None)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """The cached frames."""
        return self.cache.stack(self.video, shorter_side)
