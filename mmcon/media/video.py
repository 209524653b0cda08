"""What a clip is: a header that is read at once, and frames that are decoded only when their times are asked for.

A clip is known by time, not by frame number: a moment shows the last frame whose own time is not after it. So variable
frame rates, missing frames and a stride that falls between frames need no rule of their own, and seconds mean the same
in every file. The clock starts at the first frame.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import stable_id

# Frame times and asked-for times come from different sums; closer than this they are the same moment.
SAME_MOMENT_SECONDS = 1e-6
Decoder = Literal["pyav", "torchcodec", "auto"]


@dataclass(frozen=True)
class VideoHeader:
    """What is known of a clip without decoding what will be drawn.

    Attributes:
        duration_seconds: from the first frame to the end of the last.
        frames_per_second: the mean rate.
        frames: how many there are; an estimate where the file does not count them.
        height: of the upright picture, in pixels.
        width: of the upright picture, in pixels.
    """

    duration_seconds: float
    frames_per_second: float
    frames: int
    height: int
    width: int


class VideoHandle(ABC):
    """A clip whose frames are decoded on request. A subclass implements `read`.

    Args:
        name: what the clip is called in messages; its hash is the `group` that all spans of the clip share.
        header: the whole clip's header.
    """

    def __init__(self, name: str, header: VideoHeader) -> None:
        if not (header.duration_seconds > 0 and header.frames_per_second > 0 and min(header.height, header.width) > 0):
            raise DataError(
                name,
                expected="a clip with a duration, a frame rate and a size above 0",
                got=str(header),
                fix="give its rate, open_video(path, frames_per_second=25), or leave the clip out",
            )
        self.name, self.header = name, header

    @abstractmethod
    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode the frames that ascending moments show, on the clip's own clock."""

    @abstractmethod
    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole clip, every frame at its own time."""

    @property
    def span(self) -> tuple[float, float]:
        """Where the clip begins and ends, in seconds of its own clock."""
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
        self, times: Sequence[float] | Tensor | None = None, *, shorter_side: int | None = None
    ) -> UInt8[Tensor, "t c h w"]:
        """Decode the frames shown at some moments, and nothing beside them that the codec does not force.

        Args:
            times: in seconds of the clip's clock, in any order, repeats allowed; before the first frame the first is
                shown. None: the whole span at the mean rate.
            shorter_side: scale down, while colours are converted, until the shorter side has this many pixels; a
                smaller clip is left as it is.

        Raises:
            DataError: the file is damaged or ends before a moment that its header promises.
        """
        if times is None:
            begin, end = self.span
            count = max(1, round((end - begin) * self.header.frames_per_second))
            times = torch.arange(count, dtype=torch.float64) / self.header.frames_per_second + begin
        moments = torch.as_tensor(times, dtype=torch.float64)
        if moments.dim() != 1 or not len(moments) or not bool(moments.isfinite().all()):
            raise InputError(self.name, expected="one or more finite times, in seconds", got=str(times))
        ordered, order = moments.sort(stable=True)
        frames = self.read(ordered.tolist(), shorter_side)
        return frames if bool((order[1:] > order[:-1]).all()) else frames[order.argsort()]

    def __repr__(self) -> str:
        h = self.header
        return f"{type(self).__name__}({self.name!r}, {h.duration_seconds:.2f} s, {h.width}×{h.height})"


@final
class VideoSpan(VideoHandle):
    """A part of a clip, on the whole clip's clock, so that times in two parts of one clip can be compared."""

    def __init__(self, clip: VideoHandle, begin: int | float, end: int | float) -> None:
        duration = clip.header.duration_seconds
        if not 0 <= begin < end <= duration + 0.5:
            raise DataError(
                clip.name,
                expected=f"0 <= begin < end <= {duration:.3f} s",
                got=f"begin={begin}, end={end}",
                fix="correct the span in the manifest",
            )
        self.clip, self._span = clip, (begin, min(end, duration))
        super().__init__(clip.name, clip.header)

    @property
    def span(self) -> tuple[float, float]:
        """Where the part begins and ends."""
        return self._span

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode in the whole clip."""
        return self.clip.read(times, shorter_side)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole clip that it is a part of."""
        return self.clip.decode_all(shorter_side)


@final
class FrameStack(VideoHandle):
    """Frames in memory.

    Args:
        frames: `t c h w` uint8.
        times: of each frame, ascending, in seconds; None: evenly at `frames_per_second`.
        frames_per_second: the rate; None: the mean of what `times` say.
        name: what it is called in messages.
        end: when the last frame ends; None: after the mean interval.
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
        """Look the frames up."""
        shown = [max(0, bisect.bisect_right(self.times, t + SAME_MOMENT_SECONDS) - 1) for t in times]
        return scaled(self.frames[shown], shorter_side)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """The same frames, scaled."""
        end = self.times[0] + self.header.duration_seconds
        rate = self.header.frames_per_second
        return FrameStack(
            scaled(self.frames, shorter_side), times=self.times, frames_per_second=rate, name=self.name, end=end
        )


def scaled_size(height: int, width: int, shorter_side: int | None) -> tuple[int, int]:
    """Height and width after scaling down to a shorter side; what is smaller stays."""
    if shorter_side is None or min(height, width) <= shorter_side:
        return height, width
    if height <= width:
        return shorter_side, max(1, round(width * shorter_side / height))
    return max(1, round(height * shorter_side / width)), shorter_side


def scaled(frames: UInt8[Tensor, "t c h w"], shorter_side: int | None) -> UInt8[Tensor, "t c h2 w2"]:
    """Frames scaled down to a shorter side (bilinear, antialiased)."""
    size = scaled_size(frames.shape[-2], frames.shape[-1], shorter_side)
    if size == tuple(frames.shape[-2:]):
        return frames
    return torch.nn.functional.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
