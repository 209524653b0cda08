"""Handles on video: the header is read when a video is opened, frames are decoded when their times are requested.

A video is addressed by time, not by frame number: at time t it shows the last frame whose time is at most t. So
variable frame rates, missing frames and strides between frames are no special cases, and seconds mean the same in every
file. The clock starts at the first frame.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import stable_id

# Frame times and requested times are computed by different sums; times that differ by less are equal.
SAME_TIME_SECONDS = 1e-6
Decoder = Literal["pyav", "torchcodec", "auto"]


@dataclass(frozen=True)
class VideoHeader:
    """Length, rate and size of a video, from the header of its file.

    Attributes:
        duration_seconds: from the start of the first frame to the end of the last.
        frames_per_second: the mean rate.
        frames: the number of frames; an estimate if the file does not state it.
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.
    """

    duration_seconds: float
    frames_per_second: float
    frames: int
    height: int
    width: int


class VideoHandle(ABC):
    """A video whose frames are decoded on request. A subclass implements `read` and `decode_all`.

    Args:
        name: the name of the video in messages; its hash is the `group` that all spans of the video share.
        header: the header of the whole video.
    """

    def __init__(self, name: str, header: VideoHeader) -> None:
        if not (header.duration_seconds > 0 and header.frames_per_second > 0 and min(header.height, header.width) > 0):
            raise DataError(
                name,
                expected="a video with a duration, a frame rate and a size above 0",
                got=str(header),
                fix="give its rate, open_video(path, frames_per_second=25), or leave the video out",
            )
        self.name, self.header = name, header

    @abstractmethod
    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode the frames at ascending times, on the clock of the video."""

    @abstractmethod
    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole video, every frame at its own time."""

    @property
    def span(self) -> tuple[float, float]:
        """The beginning and end, in seconds on the clock of the video."""
        return 0.0, self.header.duration_seconds

    @property
    def facts(self) -> dict[str, float | int]:
        """The numbers that view generators draw from."""
        begin, end = self.span
        return {
            "start_seconds": begin,
            "duration_seconds": end - begin,
            "frames_per_second": self.header.frames_per_second,
            "frames": self.header.frames,
            "height": self.header.height,
            "width": self.header.width,
            "group": stable_id(self.name),
        }

    @final
    def decode(
        self, times: Sequence[float] | Shaped[Tensor, "..."] | None = None, *, shorter_side: int | None = None
    ) -> UInt8[Tensor, "t c h w"]:
        """Decode the frames at some times, and other frames only if the codec requires them.

        Args:
            times: seconds on the clock of the video, in any order, repeats allowed; a time before the first frame shows
                the first. None: the whole span at the mean rate.
            shorter_side: scale the shorter side down to this many pixels, together with the color conversion; a smaller
                video keeps its size.

        Raises:
            DataError: the file is damaged or ends before a time within its header's duration.
            InputError: times are empty or not finite.
        """
        if times is None:
            begin, end = self.span
            count = max(1, round((end - begin) * self.header.frames_per_second))
            times = torch.arange(count, dtype=torch.float64) / self.header.frames_per_second + begin
        requested = torch.as_tensor(times, dtype=torch.float64)
        if requested.dim() != 1 or not len(requested) or not bool(requested.isfinite().all()):
            raise InputError(self.name, expected="one or more finite times, in seconds", got=str(times))
        ordered, order = requested.sort(stable=True)
        frames = self.read(ordered.tolist(), shorter_side)
        return frames if bool((order[1:] > order[:-1]).all()) else frames[order.argsort()]

    def __repr__(self) -> str:
        h = self.header
        return f"{type(self).__name__}({self.name!r}, {h.duration_seconds:.2f} s, {h.width}×{h.height})"


@final
class VideoSpan(VideoHandle):
    """A span of a video, on the clock of the whole video, so that times in two spans of one video are comparable."""

    def __init__(self, video: VideoHandle, begin: int | float, end: int | float) -> None:
        duration = video.header.duration_seconds
        if not 0 <= begin < end <= duration + 0.5:
            raise DataError(
                video.name,
                expected=f"0 <= begin < end <= {duration:.3f} s",
                got=f"begin={begin}, end={end}",
                fix="correct the span in the manifest",
            )
        self.video, self._span = video, (begin, min(end, duration))
        super().__init__(video.name, video.header)

    @property
    def span(self) -> tuple[float, float]:
        """The beginning and end of the span."""
        return self._span

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode frames of the whole video."""
        return self.video.read(times, shorter_side)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole video, not only the span."""
        return self.video.decode_all(shorter_side)


@final
class FrameStack(VideoHandle):
    """Frames in memory.

    Args:
        frames: RGB frames.
        times: the time of each frame, ascending, in seconds; None: equally spaced, at `frames_per_second`.
        frames_per_second: the rate; None: the mean rate of `times`.
        name: the name of the video in messages.
        end: the end of the last frame, in seconds; None: one mean interval after its time.
    """

    def __init__(
        self,
        frames: UInt8[Tensor, "t c h w"],
        *,
        times: Sequence[float] | None = None,
        frames_per_second: int | float | None = None,
        name: str = "frames",
        end: int | float | None = None,
    ) -> None:
        count = len(frames)
        if times is None:
            if not frames_per_second or not count:
                got = f"{count} frames, frames_per_second={frames_per_second}"
                raise DataError(name, expected="frames with times or a rate above 0", got=got)
            times = [i / frames_per_second for i in range(count)]
        if not frames_per_second:
            spread = times[-1] - times[0]
            frames_per_second = (count - 1) / spread if spread > 0 else 1.0
        self.frames, self.times = frames, list(times)
        duration = (end if end is not None else times[-1] + 1 / frames_per_second) - times[0]
        super().__init__(
            name, VideoHeader(float(duration), float(frames_per_second), count, frames.shape[-2], frames.shape[-1])
        )

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Select the frames."""
        shown = [max(0, bisect.bisect_right(self.times, t + SAME_TIME_SECONDS) - 1) for t in times]
        return scaled(self.frames[shown], shorter_side)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """The same frames, scaled."""
        end = self.times[0] + self.header.duration_seconds
        rate = self.header.frames_per_second
        return FrameStack(
            scaled(self.frames, shorter_side), times=self.times, frames_per_second=rate, name=self.name, end=end
        )


def scaled_size(height: int, width: int, shorter_side: int | None) -> tuple[int, int]:
    """Height and width after scaling down to a shorter side; a smaller size is unchanged."""
    if shorter_side is None or min(height, width) <= shorter_side:
        return height, width
    if height <= width:
        return shorter_side, max(1, round(width * shorter_side / height))
    return max(1, round(height * shorter_side / width)), shorter_side


def scaled(frames: UInt8[Tensor, "t c h w"], shorter_side: int | None) -> UInt8[Tensor, "t c h2 w2"]:
    """Scale frames down to a shorter side (bilinear, antialiased)."""
    size = scaled_size(frames.shape[-2], frames.shape[-1], shorter_side)
    if size == tuple(frames.shape[-2:]):
        return frames
    return torch.nn.functional.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
