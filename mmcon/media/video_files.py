"""Opening clips: video files, folders of frames and animated images; and keeping some of them decoded.

clip = open_video("walk.mp4")
clip.header.duration_seconds, clip.header.frames_per_second
frames = clip.decode([1.0, 1.5, 2.0], shorter_side=128)     # `t c h w` uint8
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.frame_sequence import AnimatedImage, FrameFolder
from mmcon.media.video import Decoder, FrameStack, VideoHandle
from mmcon.media.video_container import VideoFile

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".wmv",
    ".ogv",
    ".h264",
)
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
        path: what to open; bytes are those of a video file.
        name: what the clip is called in messages and hashed by; by default the path.
        frames_per_second: the rate of a folder of frames, or of a file that has none.
        decoder: `pyav`; `torchcodec`; or `auto`, torchcodec where one of its decoders can be constructed and the file's
            frames come in the order of their times. They gave the same bits in six of eight files, and neighbouring
            frames in the two whose frames are out of order.
        cache: keep the clip's frames decoded.

    Raises:
        DataError: there is no such clip, no picture in it, or no rate.
    """
    path = path if isinstance(path, bytes) else Path(path)
    if isinstance(path, bytes):
        clip: VideoHandle = VideoFile(path, name=name, frames_per_second=frames_per_second, decoder=decoder)
    elif path.is_dir():
        clip = FrameFolder(path, frames_per_second=frames_per_second, name=name)
    elif not path.is_file():
        raise DataError(name or str(path), expected="a video file or a folder of frames", got="nothing there")
    elif path.suffix.lower() in ANIMATION_SUFFIXES:
        clip = AnimatedImage(path, name=name)
    else:
        clip = VideoFile(path, name=name, frames_per_second=frames_per_second, decoder=decoder)
    return clip if cache is None else CachedVideo(clip, cache)


class FrameCache:
    """Whole clips kept decoded, up to a number of bytes; the one that was used longest ago goes first.

    Each process has its own: a worker receives the limit and starts empty.

    Args:
        max_bytes: of frames, per process.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._stacks: OrderedDict[tuple[str, int | None], FrameStack] = OrderedDict()

    def stack(self, clip: VideoHandle, shorter_side: int | None) -> FrameStack:
        """The clip's frames, decoded now or before."""
        key = (clip.name, shorter_side)
        if key in self._stacks:
            self._stacks.move_to_end(key)
            return self._stacks[key]
        stack = clip.decode_all(shorter_side)
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
    """A clip that is decoded whole at its first use and then looked up."""

    def __init__(self, clip: VideoHandle, cache: FrameCache) -> None:
        self.clip, self.cache = clip, cache
        super().__init__(clip.name, clip.header)

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Look the frames up in the cache."""
        return self.cache.stack(self.clip, shorter_side).read(times, None)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """The cached frames."""
        return self.cache.stack(self.clip, shorter_side)
