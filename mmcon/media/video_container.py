"""Video files: the header by PyAV, then a seek by time, and no more decoded than from a keyframe to the last moment."""

from __future__ import annotations

import bisect
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import DataError, MissingDependencyError
from mmcon.media.video import SAME_MOMENT_SECONDS, Decoder, FrameStack, VideoHandle, VideoHeader, scaled, scaled_size

# Only decoded frames tell of rotation, of an order that is not that of time, and of missing timestamps.
LOOK_AHEAD_FRAMES = 8
# How many frames too late may come before one that is in time, in a file whose frames are out of order.
DISORDER_FRAMES = 16
# The share of a mean interval within which a moment must follow a frame to show it: times are rounded in files.
ALONE = 0.99
# How long a last frame may stand; a header that promises more is that of a truncated file.
HOLD_SECONDS = 0.5


@final
class VideoFile(VideoHandle):
    """A video file.

    The first frames are decoded when it is opened: the bindings show rotation on frames only, and some files have no
    timestamps or frames out of order. A file without timestamps is counted at its rate and never sought in.

    Args:
        file: the file, or its bytes.
        name: what it is called in messages.
        frames_per_second: the rate where the file has none.
        decoder: see `open_video`.

    Raises:
        DataError: it cannot be opened, has no video stream, no decodable frame, or no rate.
    """

    def __init__(
        self,
        file: Path | bytes,
        *,
        name: str = "",
        frames_per_second: int | float | None = None,
        decoder: Decoder = "pyav",
    ) -> None:
        self.file, self.decoder = file, decoder
        name = name or (str(file) if isinstance(file, Path) else "bytes")
        with _Opened(file, name) as opened:
            head = list(itertools.islice(opened.frames(), LOOK_AHEAD_FRAMES))
            if not head:
                raise DataError(name, expected="frames", got="a video stream that decodes to none", fix=_LEAVE_OUT)
            stamps = [frame.time for frame in head]
            self.timed = all(stamp is not None for stamp in stamps)
            self.ordered = not self.timed or stamps == sorted(stamps)
            self.start = min(stamps) if self.timed else 0.0
            self.quarter_turns = round(head[0].rotation / 90) % 4
            sideways = self.quarter_turns % 2 == 1
            height, width = (head[0].width, head[0].height) if sideways else (head[0].height, head[0].width)
            rate = (
                opened.rate() or float(frames_per_second or 0) or (_rate_of(stamps) if self.timed else opened.guess())
            )
            duration = opened.duration(self.start, rate)
            counted = len(head) if len(head) < LOOK_AHEAD_FRAMES else 0
            rate = rate or (counted / duration if duration else 0)
        if not rate:
            raise DataError(
                name, expected="a frame rate", got="none in the file", fix="open_video(path, frames_per_second=25)"
            )
        self.rate = rate
        count = counted or opened.count or max(1, round(duration * rate))
        super().__init__(
            name, VideoHeader(max(duration, 1 / rate), count / max(duration, 1 / rate), count, height, width)
        )

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Seek to the keyframe before the first moment and decode up to the last."""
        # Where frames come out of the order of their times, decoders differ by a frame or two: `auto` stays with PyAV.
        other = self.decoder == "torchcodec" or (self.decoder == "auto" and self.ordered)
        if other and (decoded := self._torchcodec(times)) is not None:
            return scaled(decoded, shorter_side)
        with _Opened(self.file, self.name) as opened:
            shown = self._shown(opened, [t + SAME_MOMENT_SECONDS for t in times])
            size = scaled_size(self.header.height, self.header.width, shorter_side)
            pictures: dict[int, Tensor] = {}
            for frame in shown:
                if id(frame) not in pictures:
                    pictures[id(frame)] = self._picture(frame, size)
        return torch.stack([pictures[id(frame)] for frame in shown])

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole file; frames come out in the order of their times."""
        size = scaled_size(self.header.height, self.header.width, shorter_side)
        with _Opened(self.file, self.name) as opened:
            pairs = [(time, self._picture(frame, size)) for time, frame in self._timed(opened, opened.frames())]
        pairs.sort(key=lambda pair: pair[0])
        times = [time for time, _ in pairs]
        self._check_end(self.header.duration_seconds - 1 / self.rate, times[-1])
        frames = torch.stack([picture for _, picture in pairs])
        end = self.header.duration_seconds + times[0]
        return FrameStack(frames, times=times, frames_per_second=self.header.frames_per_second, name=self.name, end=end)

    def _shown(self, opened: _Opened, wanted: Sequence[float]) -> list[Any]:
        """The frame that each ascending moment shows."""
        at = wanted[0] + self.start if self.timed else None
        found = self._shown_alone(opened, wanted) if self.timed and self.ordered else None
        if found is None:
            found = self._last_before(self._timed(opened, opened.frames(seek=at)), wanted)
        if found[0] is None and self.timed:  # the seek went too far, as it may where an index is coarse
            found = self._last_before(self._timed(opened, opened.frames(seek=-math.inf)), wanted)
        missing = [t for t, frame in zip(wanted, found, strict=True) if frame is None]
        if missing:
            self._check_end(missing[0], 0.0)
        return found

    def _shown_alone(self, opened: _Opened, wanted: Sequence[float]) -> list[Any] | None:
        """The same without decoding frames that are neither shown nor referred to; None where one may be missing.

        A moment shows a frame that comes less than an interval before it; all such are decoded. Where the latest found
        is older, frames stand longer there than the mean interval, and a later one may not have been decoded.
        """
        reach = ALONE / self.rate
        moments = [t + self.start for t in wanted]
        frames = opened.frames(seek=moments[0], shown=(moments, reach))
        found = self._last_before(self._timed(opened, frames), wanted)
        near = (
            f is not None and f.time is not None and f.time > t - reach for f, t in zip(found, moments, strict=True)
        )
        return found if all(near) else None

    def _last_before(self, frames: Iterator[tuple[float, Any]], wanted: Sequence[float]) -> list[Any]:
        shown: list[Any] = [None] * len(wanted)
        times = [-math.inf] * len(wanted)
        late, last = 0, 0.0
        for time, frame in frames:
            last = max(last, time)
            if time > wanted[-1]:
                late += 1
                if late >= (1 if self.ordered else DISORDER_FRAMES):
                    return shown
                continue
            for i in range(bisect.bisect_left(wanted, time), len(wanted)):
                if times[i] < time:
                    shown[i], times[i] = frame, time
        self._check_end(wanted[-1], last)
        return shown

    def _timed(self, opened: _Opened, frames: Iterator[Any]) -> Iterator[tuple[float, Any]]:
        """Frames with their times on the clip's clock; a single missing stamp follows from the frame before."""
        before = -1 / self.rate
        for number, frame in enumerate(frames):
            if not self.timed:
                time = number / self.rate
            elif frame.time is None:
                time = before + 1 / self.rate
            else:
                time = frame.time - self.start
            if frame.is_corrupt:
                raise DataError(
                    self.name, expected="whole frames", got=f"a damaged one at {time:.3f} s", fix=_LEAVE_OUT
                )
            before = time
            yield time, frame

    def _picture(self, frame: Any, size: tuple[int, int]) -> UInt8[Tensor, "c h w"]:
        height, width = size[::-1] if self.quarter_turns % 2 else size
        rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
        picture = torch.from_numpy(rgb).permute(2, 0, 1)
        return torch.rot90(picture, self.quarter_turns, (1, 2)).contiguous()

    def _check_end(self, wanted: float, last: float) -> None:
        if wanted > last + max(HOLD_SECONDS, 2.5 / self.rate):
            raise DataError(
                self.name,
                expected=f"frames up to {wanted:.2f} s, as the header's {self.header.duration_seconds:.2f} s promise",
                got=f"the last at {last:.2f} s",
                fix="the file is truncated: fetch it again or leave it out",
            )

    def _torchcodec(self, times: Sequence[float]) -> Tensor | None:
        """Decode by TorchCodec where that is asked for and can be constructed."""
        try:
            from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

            decoder = VideoDecoder(self.file, seek_mode="exact")
        # Without FFmpeg's libraries one version fails at import and another when a decoder is made, each its own way.
        except Exception as error:
            if self.decoder == "torchcodec":
                fix = "pip install torchcodec, with FFmpeg's libraries on the system, or decoder='pyav'"
                raise MissingDependencyError(self.name, expected="TorchCodec", got=repr(error), fix=fix) from error
            return None
        begin = decoder.metadata.begin_stream_seconds or 0.0
        last = decoder.metadata.end_stream_seconds - 1e-3
        moments = [min(begin + t + SAME_MOMENT_SECONDS, last) for t in times]
        try:
            return decoder.get_frames_played_at(moments).data
        except RuntimeError as error:
            raise DataError(self.name, expected="a readable file", got=str(error), fix=_LEAVE_OUT) from error


_LEAVE_OUT = "the file is damaged: fetch it again or leave it out"


class _Opened:
    """An open container; whatever FFmpeg says of a damaged file becomes DataError with the file's name."""

    def __init__(self, file: Path | bytes, name: str) -> None:
        self.file, self.name = file, name

    def __enter__(self) -> _Opened:
        import av
        from av.error import FFmpegError

        self.container: Any = None
        try:
            self.container = av.open(self._source())
        except (FFmpegError, OSError, ValueError) as error:
            raise self._error(error) from error
        if not self.container.streams.video:
            kinds = sorted({stream.type for stream in self.container.streams}) or ["nothing"]
            self.container.close()
            raise DataError(
                self.name,
                expected="a video stream",
                got=f"streams of {', '.join(kinds)} only",
                fix="leave the file out, or use it as audio",
            )
        self.stream = self.container.streams.video[0]
        self.count: int = self.stream.frames
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def frames(self, *, seek: float | None = None, shown: tuple[Sequence[float], float] | None = None) -> Iterator[Any]:
        """Decode from the keyframe before a moment of the file's clock, or from where the container stands.

        Args:
            seek: the moment.
            shown: ascending moments, and how far before them a frame may begin: of others, only frames to which others
                refer are decoded, which spares about half of a file with B-frames.
        """
        from av.error import FFmpegError

        try:
            if seek is not None:
                start = self.stream.start_time or 0
                offset = start if seek == -math.inf else math.floor(seek / self.stream.time_base)
                self.container.seek(offset, stream=self.stream, backward=True)
            for packet in self.container.demux(self.stream):
                needed = shown is None or packet.pts is None or _is_shown(float(packet.pts * packet.time_base), *shown)
                self.stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
                yield from packet.decode()
        except (FFmpegError, OSError) as error:
            raise self._error(error) from error

    def _source(self) -> Any:
        return io.BytesIO(self.file) if isinstance(self.file, bytes) else str(self.file)

    def rate(self) -> float:
        """The mean rate that the file states, or 0."""
        return float(self.stream.average_rate or 0)

    def guess(self) -> float:
        """FFmpeg's guess, or 0: with timestamps it is their finest step, which is no rate."""
        return float(self.stream.guessed_rate or 0)

    def duration(self, start: float, rate: float) -> float:
        """The video's length by its stream, by the container where there is no other stream, or by its packets."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        if self.container.duration and len(self.container.streams) == 1:
            return self.container.duration / 1e6
        import av
        from av.error import FFmpegError

        try:
            # Opened anew: the first packets are read already, and a bare stream cannot be wound back.
            with av.open(self._source()) as again:
                packets: Any = again.demux(again.streams.video[0])  # type: ignore[union-attr]
                stamps = [packet.pts for packet in packets if packet.size]
        except FFmpegError as error:
            raise self._error(error) from error
        self.count = self.count or len(stamps)
        known = [stamp for stamp in stamps if stamp is not None]
        if known and self.stream.time_base:
            return float(max(known) * self.stream.time_base) - start + (1 / rate if rate else 0)
        return len(stamps) / rate if rate else 0.0

    def _error(self, error: Exception) -> DataError:
        return DataError(self.name, expected="a readable video", got=f"{type(error).__name__}: {error}", fix=_LEAVE_OUT)


def _is_shown(begin: float, moments: Sequence[float], reach: float) -> bool:
    """Whether a moment lies within reach of a frame's beginning."""
    following = bisect.bisect_left(moments, begin)
    return following < len(moments) and moments[following] < begin + reach


def _rate_of(stamps: Sequence[float]) -> float:
    spread = max(stamps, default=0.0) - min(stamps, default=0.0)
    return (len(stamps) - 1) / spread if spread > 0 else 0.0
