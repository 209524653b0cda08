"""Video files: PyAV reads the header, seeks by time, and decodes from a keyframe to the last requested time."""

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
from mmcon.media.video import SAME_TIME_SECONDS, Decoder, FrameStack, VideoHandle, VideoHeader, scaled, scaled_size

# Rotation, frames out of order and missing timestamps are known only after decoding some frames.
_LOOK_AHEAD_FRAMES = 8
# In a file with frames out of order, the number of later frames that may precede a requested one.
_DISORDER_FRAMES = 16
# A frame is assumed to last at least this fraction of the mean interval, since files round frame times.
_CERTAIN_INTERVAL = 0.99
# The longest accepted duration of a last frame; if the header states more, the file is truncated.
_LAST_FRAME_SECONDS = 0.5
_DAMAGED = "the file is damaged: fetch it again or leave it out"


@final
class VideoFile(VideoHandle):
    """A video file.

    Opening decodes the first frames: PyAV reports rotation on frames only, and some files have no timestamps or have
    frames out of order. In a file without timestamps, frames are counted at its rate and there is no seeking.

    Args:
        file: the file, or its bytes.
        name: the name of the video in messages; by default the path.
        frames_per_second: the rate, if the file states none.
        decoder: see `open_video`.

    Raises:
        DataError: the file cannot be opened, or has no video stream, no decodable frame, or no rate.
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
        with _OpenContainer(file, name) as opened:
            head = list(itertools.islice(opened.frames(), _LOOK_AHEAD_FRAMES))
            if not head:
                raise DataError(name, expected="frames", got="a video stream without a decodable frame", fix=_DAMAGED)
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
            counted = len(head) if len(head) < _LOOK_AHEAD_FRAMES else 0
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
        """Seek to the keyframe before the first time and decode up to the last."""
        # For frames out of order the decoders differ by a frame or two, so `auto` uses PyAV.
        use_torchcodec = self.decoder == "torchcodec" or (self.decoder == "auto" and self.ordered)
        if use_torchcodec and (decoded := self._torchcodec(times)) is not None:
            return scaled(decoded, shorter_side)
        with _OpenContainer(self.file, self.name) as opened:
            shown = self._shown_frames(opened, [t + SAME_TIME_SECONDS for t in times])
            size = scaled_size(self.header.height, self.header.width, shorter_side)
            images: dict[int, UInt8[Tensor, "c h w"]] = {}
            for frame in shown:
                # `shown` holds the frames, so that their ids stay unique.
                if id(frame) not in images:
                    images[id(frame)] = self._image(frame, size)
        return torch.stack([images[id(frame)] for frame in shown])

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole file, with frames sorted by time."""
        size = scaled_size(self.header.height, self.header.width, shorter_side)
        with _OpenContainer(self.file, self.name) as opened:
            pairs = [(time, self._image(frame, size)) for time, frame in self._timed(opened.frames())]
        pairs.sort(key=lambda pair: pair[0])
        times = [time for time, _ in pairs]
        self._check_end(self.header.duration_seconds - 1 / self.rate, times[-1])
        frames = torch.stack([image for _, image in pairs])
        end = self.header.duration_seconds + times[0]
        return FrameStack(frames, times=times, frames_per_second=self.header.frames_per_second, name=self.name, end=end)

    def _shown_frames(self, opened: _OpenContainer, times: Sequence[float]) -> list[Any]:
        """The frame at each of the ascending times."""
        start = times[0] + self.start if self.timed else None
        shown = self._shown_without_others(opened, times) if self.timed and self.ordered else None
        if shown is None:
            shown = self._last_before(self._timed(opened.frames(seek=start)), times)
        if shown[0] is None and self.timed:  # the seek went too far, which happens with a coarse index
            shown = self._last_before(self._timed(opened.frames(seek=-math.inf)), times)
        missing = [time for time, frame in zip(times, shown, strict=True) if frame is None]
        if missing:
            self._check_end(missing[0], 0.0)
        return shown

    def _shown_without_others(self, opened: _OpenContainer, times: Sequence[float]) -> list[Any] | None:
        """The same, decoding only requested and reference frames; None if a requested frame may be missing.

        All frames that begin less than one mean interval before a requested time are decoded. If the latest such frame
        is older, some frames last longer than the mean interval, and a later frame may not have been decoded.
        """
        reach = _CERTAIN_INTERVAL / self.rate
        file_times = [time + self.start for time in times]
        frames = opened.frames(seek=file_times[0], shown=(file_times, reach))
        shown = self._last_before(self._timed(frames), times)
        near = (
            f is not None and f.time is not None and f.time > time - reach
            for f, time in zip(shown, file_times, strict=True)
        )
        return shown if all(near) else None

    def _last_before(self, frames: Iterator[tuple[float, Any]], times: Sequence[float]) -> list[Any]:
        """For each of the ascending times, the last frame whose time is at most that time."""
        shown: list[Any] = [None] * len(times)
        shown_times = [-math.inf] * len(times)
        later_frames, last = 0, 0.0
        for time, frame in frames:
            last = max(last, time)
            if time > times[-1]:
                later_frames += 1
                if later_frames >= (1 if self.ordered else _DISORDER_FRAMES):
                    return shown
                continue
            for i in range(bisect.bisect_left(times, time), len(times)):
                if shown_times[i] < time:
                    shown[i], shown_times[i] = frame, time
        self._check_end(times[-1], last)
        return shown

    def _timed(self, frames: Iterator[Any]) -> Iterator[tuple[float, Any]]:
        """Frames with their times on the clock of the video; a missing timestamp is derived from the previous frame."""
        before = -1 / self.rate
        for number, frame in enumerate(frames):
            if not self.timed:
                time = number / self.rate
            elif frame.time is None:
                time = before + 1 / self.rate
            else:
                time = frame.time - self.start
            if frame.is_corrupt:
                raise DataError(self.name, expected="whole frames", got=f"a damaged one at {time:.3f} s", fix=_DAMAGED)
            before = time
            yield time, frame

    def _image(self, frame: Any, size: tuple[int, int]) -> UInt8[Tensor, "c h w"]:
        height, width = size[::-1] if self.quarter_turns % 2 else size
        # Scaling and color conversion in one pass: an RGB image of full size never exists.
        rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
        return torch.rot90(torch.from_numpy(rgb).permute(2, 0, 1), self.quarter_turns, (1, 2)).contiguous()

    def _check_end(self, time: float, last: float) -> None:
        """Raise DataError if a requested time is too long after the last frame, since the file is then truncated."""
        if time > last + max(_LAST_FRAME_SECONDS, 2.5 / self.rate):
            raise DataError(
                self.name,
                expected=f"frames up to {time:.2f} s, as the header says ({self.header.duration_seconds:.2f} s)",
                got=f"the last at {last:.2f} s",
                fix="the file is truncated: fetch it again or leave it out",
            )

    def _torchcodec(self, times: Sequence[float]) -> UInt8[Tensor, "t c h w"] | None:
        """Decode with TorchCodec; return None if its decoder cannot be constructed and `decoder` is `auto`."""
        try:
            from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

            # TorchCodec's approximate mode computes positions from the mean rate, which is wrong for variable rates.
            decoder = VideoDecoder(self.file, seek_mode="exact")
        # Without FFmpeg's libraries some versions fail at import and others at construction, with different errors.
        except Exception as error:
            if self.decoder == "torchcodec":
                fix = "pip install torchcodec, with FFmpeg's libraries on the system, or decoder='pyav'"
                raise MissingDependencyError(self.name, expected="TorchCodec", got=repr(error), fix=fix) from error
            return None
        begin = decoder.metadata.begin_stream_seconds or 0.0
        # TorchCodec raises on a time at or after the end of the stream.
        last = decoder.metadata.end_stream_seconds - 1e-3
        try:
            return decoder.get_frames_played_at([min(begin + t + SAME_TIME_SECONDS, last) for t in times]).data
        except RuntimeError as error:
            raise DataError(self.name, expected="a readable file", got=str(error), fix=_DAMAGED) from error


class _OpenContainer:
    """An open video container. FFmpeg's errors on a damaged file become DataError with the name of the file."""

    def __init__(self, file: Path | bytes, name: str) -> None:
        self.file, self.name = file, name

    def __enter__(self) -> _OpenContainer:
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
        """Decode from the keyframe before a time on the clock of the file, or from the current position.

        Args:
            seek: the time.
            shown: ascending times, and how long before them a frame may begin. Of other frames only reference frames
                are decoded, which skips about half of the frames of a file with B-frames.
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
        """FFmpeg's guess of the rate, or 0. For files with timestamps it is the smallest timestamp step, not a rate."""
        return float(self.stream.guessed_rate or 0)

    def duration(self, start: float, rate: float) -> float:
        """The duration from the stream, from the container if it has no other stream, or from the packets."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        # With several streams the container has the length of the longest, which may be the audio.
        if self.container.duration and len(self.container.streams) == 1:
            return self.container.duration / 1e6
        import av
        from av.error import FFmpegError

        try:
            # The file is opened again, since a raw stream cannot seek back to its start.
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
        return DataError(self.name, expected="a readable video", got=f"{type(error).__name__}: {error}", fix=_DAMAGED)


def _is_shown(begin: float, times: Sequence[float], reach: float) -> bool:
    """Whether one of the ascending times is at most `reach` after the beginning of a frame."""
    following = bisect.bisect_left(times, begin)
    return following < len(times) and times[following] < begin + reach


def _rate_of(stamps: Sequence[float]) -> float:
    """The mean rate of timestamps, or 0."""
    spread = max(stamps, default=0.0) - min(stamps, default=0.0)
    return (len(stamps) - 1) / spread if spread > 0 else 0.0
