"""Video files: PyAV reads the header, seeks by time, and decodes from a keyframe to the last requested time."""

from __future__ import annotations

import bisect
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import DataError, MissingDependencyError
from mmcon.media.decoding import decoder_errors, file_size, restart_time_limit
from mmcon.media.image import PIXELS_PER_BYTE
from mmcon.media.packet_times import SAME_RATE, measure_frames, promised_seconds
from mmcon.media.video import SAME_TIME_SECONDS, Decoder, FrameStack, VideoHandle, VideoHeader, scaled, scaled_size

# Rotation, frames out of order and missing timestamps are known only after decoding some frames.
_LOOK_AHEAD_FRAMES = 8
# In a file with frames out of order, the number of later frames that may precede a requested one.
_DISORDER_FRAMES = 16
# A frame is assumed to last at least this fraction of the mean interval, since files round frame times.
_CERTAIN_INTERVAL = 0.99
# The longest accepted duration of a last frame; if the header states more, the file is truncated.
_LAST_FRAME_SECONDS = 0.5
_MOST_PIXELS = 1 << 26  # 8,192 × 8,192: a decoder reserves memory for several frames before it reads one
# A seek that lands after the requested frame, as in transport streams, is repeated this much earlier; at last the file
# is decoded from its first frame.
_SEEK_EARLIER_SECONDS = (0.0, 2.0, 8.0, 32.0, math.inf)
# Frames up to this size may be in a file of any size.
_SMALL_PIXELS = 1 << 22
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
        with _opened(file, name) as opened:
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
            opened.measure(self.start)
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
        if count > opened.size:
            raise DataError(name, expected="at least a byte a frame", got=f"{count:,} frames in {opened.size:,} bytes")
        super().__init__(
            name, VideoHeader(max(duration, 1 / rate), count / max(duration, 1 / rate), count, height, width)
        )

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Seek to the keyframe before the first time and decode up to the last."""
        # For frames out of order the decoders differ by a frame or two, so `auto` uses PyAV.
        use_torchcodec = self.decoder == "torchcodec" or (self.decoder == "auto" and self.ordered)
        if use_torchcodec and (decoded := self._torchcodec(times)) is not None:
            return scaled(decoded, shorter_side)
        with _opened(self.file, self.name) as opened:
            shown = self._shown_frames(opened, [max(0.0, t) + SAME_TIME_SECONDS for t in times])
            size = scaled_size(self.header.height, self.header.width, shorter_side)
            images: dict[int, UInt8[Tensor, "c h w"]] = {}
            for frame in shown:
                # `shown` holds the frames, so that their ids stay unique.
                if id(frame) not in images:
                    images[id(frame)] = self._image(frame, size, opened)
        return torch.stack([images[id(frame)] for frame in shown])

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode the whole file, with frames sorted by time."""
        size = scaled_size(self.header.height, self.header.width, shorter_side)
        with _opened(self.file, self.name) as opened:
            shown = [(t, self._image(frame, size, opened), end) for t, frame, end in self._timed(opened.frames())]
        shown.sort(key=lambda item: item[0])
        times = [time for time, _, _ in shown]
        self._check_end(self.header.duration_seconds - 1 / self.rate, max((end for _, _, end in shown), default=0.0))
        frames = torch.stack([image for _, image, _ in shown])
        end = self.header.duration_seconds + times[0]
        return FrameStack(frames, times=times, frames_per_second=self.header.frames_per_second, name=self.name, end=end)

    def _shown_frames(self, opened: _OpenContainer, times: Sequence[float]) -> list[Any]:
        """The frame at each of the ascending times."""
        shown, last = None, 0.0
        for earlier in _SEEK_EARLIER_SECONDS:
            from_start = not self.timed or times[0] <= earlier
            seek = None if from_start else times[0] + self.start - earlier
            if earlier == 0 and self.timed and self.ordered:
                shown = self._shown_without_others(opened, times, seek)
            if shown is None:
                shown, last = self._last_before(opened.frames(seek=seek), times)
            if shown[0] is not None:
                return shown
            if from_start:
                break
            shown = None
        ends = f"frames that end at {last:.2f} s"
        raise DataError(self.name, expected=f"a frame at {times[0]:.2f} s", got=ends, fix=_DAMAGED)

    def _shown_without_others(
        self, opened: _OpenContainer, times: Sequence[float], seek: float | None
    ) -> list[Any] | None:
        """The same, decoding only requested and reference frames; None if a requested frame may be missing.

        All frames that begin less than one mean interval before a requested time are decoded. If the latest such frame
        is older, some frames last longer than the mean interval, and a later frame may not have been decoded.
        """
        reach = _CERTAIN_INTERVAL / self.rate
        file_times = [time + self.start for time in times]
        shown, _ = self._last_before(opened.frames(seek=seek, shown=(file_times, reach)), times)
        near = (
            f is not None and f.time is not None and f.time > time - reach
            for f, time in zip(shown, file_times, strict=True)
        )
        return shown if all(near) else None

    def _last_before(self, frames: Iterator[Any], times: Sequence[float]) -> tuple[list[Any], float]:
        """For each of the ascending times, the last frame whose time is at most that time; and where the frames end."""
        shown: list[Any] = [None] * len(times)
        shown_times = [-math.inf] * len(times)
        later_frames, last = 0, 0.0
        for time, frame, end in self._timed(frames):
            last = max(last, end)
            if time > times[-1]:
                later_frames += 1
                if later_frames >= (1 if self.ordered else _DISORDER_FRAMES):
                    return shown, last
                continue
            for i in range(bisect.bisect_left(times, time), len(times)):
                if shown_times[i] < time:
                    shown[i], shown_times[i] = frame, time
        if shown[0] is not None:  # else the seek landed too late, and the end of the file is not known
            self._check_end(times[-1], last)
        return shown, last

    def _timed(self, frames: Iterator[Any]) -> Iterator[tuple[float, Any, float]]:
        """Frames with their times, on the clock of the video, and their ends beyond a mean interval.

        A missing timestamp is derived from the previous frame.
        """
        before = -1 / self.rate
        for number, frame in enumerate(frames):
            restart_time_limit()
            if not self.timed:
                time = number / self.rate
            elif frame.time is None:
                time = before + 1 / self.rate
            else:
                time = frame.time - self.start
            if frame.is_corrupt:
                raise DataError(self.name, expected="whole frames", got=f"a damaged one at {time:.3f} s", fix=_DAMAGED)
            lasts = float(frame.duration * frame.time_base) if self.timed and frame.time_base else 0.0
            before = time
            yield time, frame, time + max(0.0, lasts - 1 / self.rate)

    def _image(self, frame: Any, size: tuple[int, int], opened: _OpenContainer) -> UInt8[Tensor, "c h w"]:
        height, width = size[::-1] if self.quarter_turns % 2 else size
        # Scaling and color conversion in one pass: an RGB image of full size never exists.
        rgb = opened.reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
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
    """An open video container.

    Attributes:
        count: the number of frames, or 0.
        seconds: the duration by the packets, or 0 if the header is trusted.
    """

    def __init__(self, file: Path | bytes, name: str) -> None:
        self.file, self.name = file, name
        self.size = len(file) if isinstance(file, bytes) else file_size(file, name)
        self.seconds = 0.0
        self.container = self._open()
        if not self.container.streams.video:
            kinds = sorted({stream.type for stream in self.container.streams}) or ["nothing"]
            self.container.close()
            raise DataError(
                self.name,
                expected="a video stream",
                got=f"streams of {', '.join(kinds)} only",
                fix="leave the file out, or use it as audio",
            )
        self.stream, self._is_at_start = self.container.streams.video[0], True
        height, width = self.stream.height, self.stream.width
        if height * width > _MOST_PIXELS:
            self.container.close()
            raise DataError(name, expected=f"at most {_MOST_PIXELS:,} pixels a frame", got=f"{height} × {width}")
        self.count: int = self.stream.frames

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def frames(self, *, seek: float | None = None, shown: tuple[Sequence[float], float] | None = None) -> Iterator[Any]:
        """Decode from the keyframe before a time on the clock of the file, or from the first frame.

        Args:
            seek: the time.
            shown: ascending times, and how long before them a frame may begin. Of other frames only reference frames
                are decoded, which skips about half of the frames of a file with B-frames.
        """
        from av.error import FFmpegError

        if seek is not None:
            try:
                self.container.seek(math.floor(seek / self.stream.time_base), stream=self.stream, backward=True)
                self._is_at_start = False
            except FFmpegError:  # a format without seeking
                seek = None
        if seek is None and not self._is_at_start:
            # Opened again, since some formats do not seek to their first frame.
            self.container.close()
            self.container = self._open()
            self.stream = self.container.streams.video[0]
        self._is_at_start = False
        for packet in self.container.demux(self.stream):
            needed = shown is None or packet.pts is None or _is_shown(float(packet.pts * packet.time_base), *shown)
            self.stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from packet.decode()

    def measure(self, start: float) -> None:
        """Replace the number of frames and the duration by those of the packets where the header misleads."""
        self.count, self.seconds = measure_frames(self._open, self.container, self.stream, start=start, size=self.size)

    def rate(self) -> float:
        """The mean rate by the packets, or that which the file states, or 0."""
        mean = float(self.stream.average_rate or 0)
        measured = self.count / self.seconds if self.seconds else 0.0
        return measured if measured and not (mean and abs(measured / mean - 1) < SAME_RATE) else mean

    def guess(self) -> float:
        """FFmpeg's guess of the rate, or 0. For files with timestamps it is the smallest timestamp step, not a rate."""
        return float(self.stream.guessed_rate or 0)

    def duration(self, start: float, rate: float) -> float:
        """The duration by the packets, by the header, or by the number of frames without times."""
        stated = promised_seconds(self.container, self.stream, start)
        return self.seconds or stated or (self.count / rate if rate else 0.0)

    def _open(self) -> Any:
        import av
        from av.video.reformatter import VideoReformatter

        self.reformatter = VideoReformatter()  # a new one for each frame doubles the time
        container = av.open(io.BytesIO(self.file) if isinstance(self.file, bytes) else str(self.file))
        for stream in container.streams.video:
            # A damaged frame may state any size, and a decoder reserves its memory first.
            most = min(_MOST_PIXELS, max(_SMALL_PIXELS, PIXELS_PER_BYTE * self.size))
            stream.codec_context.options = {"max_pixels": str(most)}
        return container


@contextmanager
def _opened(file: Path | bytes, name: str) -> Iterator[_OpenContainer]:
    """Open a container; any exception of FFmpeg on a damaged file becomes a DataError with the name of the file."""
    with decoder_errors(name, expected="a readable video", fix=_DAMAGED):
        container = _OpenContainer(file, name)
        try:
            yield container
        finally:
            container.close()


def _is_shown(begin: float, times: Sequence[float], reach: float) -> bool:
    """Whether one of the ascending times is at most `reach` after the beginning of a frame."""
    following = bisect.bisect_left(times, begin)
    return following < len(times) and times[following] < begin + reach


def _rate_of(stamps: Sequence[float]) -> float:
    """The mean rate of timestamps, or 0."""
    spread = max(stamps, default=0.0) - min(stamps, default=0.0)
    return (len(stamps) - 1) / spread if spread > 0 else 0.0
