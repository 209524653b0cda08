"""Handles on audio: the header gives the length of a recording; only the requested span is decoded.

    audio_format = AudioFormat(rate_hz=16_000, channels=1)
    audio = AudioHandle("interview.flac", audio_format=audio_format)
    audio.facts                                   # {"length": 81_920, "rate_hz": 16_000}: at the rate of the format
    audio.decode(start=16_000, length=32_000)     # 1 32000: two seconds, from the first second on

What a file may contain, and how it is handled:

- *rate and channels*: converted to the audio format, by windowed-sinc resampling and the mean of the channels. All
  handles of a source have the same format;
- *8, 16, 24, 32 bits, floats*: float32, full scale at ±1;
- *video files*: their first audio stream;
- *silence*: like any other recording;
- *NaN or infinite samples*: DataError with the name of the sample, or zeros (`on_non_finite`);
- *fewer samples than the header states*: DataError, or zeros at the end (`on_short`). Compressed containers (mp4,
  webm) and mp3 only estimate their length: up to a tenth of a second is padded with zeros, and samples of an mp3
  without a Xing header beyond the estimate are not read;
- *truncated or corrupt files*: DataError with the name of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmcon.errors import DataError, InputError
from mmcon.media.audio_files import AUDIO_CONTAINER_SUFFIXES, AUDIO_SUFFIXES, AudioHeader, open_audio_file

# torchaudio's resampling kernel has about rate·rate/gcd² entries; a pair of rates with a larger kernel raises.
_LARGEST_KERNEL = 20_000_000


@dataclass(frozen=True)
class AudioFormat:
    """The rate and channels of decoded audio, and the handling of bad files.

    Attributes:
        rate_hz: the rate to resample to.
        channels: 1 averages all channels; 2 or more accepts files with that number of channels, and repeats the
            channel of a mono file.
        on_non_finite: "error" raises on NaN or infinite samples; "zero" replaces them.
        on_short: "error" raises on a file with fewer samples than its header states; "zero" pads the end.
    """

    rate_hz: int = 16_000
    channels: int = 1
    on_non_finite: Literal["error", "zero"] = "error"
    on_short: Literal["error", "zero"] = "error"

    def __post_init__(self) -> None:
        if self.rate_hz < 1 or self.channels < 1:
            got = f"rate_hz={self.rate_hz}, channels={self.channels}"
            raise InputError("AudioFormat", expected="rate_hz >= 1 and channels >= 1", got=got)


@final
class AudioHandle:
    """An opened, undecoded recording.

    Args:
        source: a path, the bytes of a file, or samples in memory as a float tensor `t` or `c t`.
        audio_format: the rate and channels that `decode` returns, and the handling of bad files.
        id: the name of the sample in messages; by default the path.
        source_rate_hz: the rate of samples in memory.
    """

    def __init__(
        self,
        source: str | Path | bytes | Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."],
        *,
        audio_format: AudioFormat | None = None,
        id: str = "",
        source_rate_hz: int | None = None,
    ) -> None:
        self.source, self.audio_format = source, audio_format or AudioFormat()
        self.id = id or (str(source) if isinstance(source, str | Path) else f"audio from {type(source).__name__}")
        self.source_rate_hz = source_rate_hz
        if isinstance(source, np.ndarray | Tensor) and source_rate_hz is None:
            raise InputError("AudioHandle", expected="source_rate_hz with samples in memory", got="None")

    def __repr__(self) -> str:
        return f"AudioHandle({self.id!r})"

    @cached_property
    def header(self) -> AudioHeader:
        """Length, rate and channels from the header of the file.

        Raises:
            DataError: no decoder reads the file.
        """
        if isinstance(self.source, np.ndarray | Tensor):
            samples = torch.as_tensor(self.source)
            assert self.source_rate_hz is not None
            return AudioHeader(
                samples.shape[-1], self.source_rate_hz, 1 if samples.dim() == 1 else len(samples), "memory"
            )
        return open_audio_file(self.source, self.id)[0]

    @cached_property
    def facts(self) -> dict[str, int]:
        """The length (samples) and rate of the decoded recording; only the header is read.

        A file without a readable header has length 0, so that the parameters of its batch can be drawn; decoding it
        raises an error with its name.
        """
        try:
            header = self.header
        except DataError:
            return {"length": 0, "rate_hz": self.audio_format.rate_hz}
        length = math.ceil(header.length * self.audio_format.rate_hz / header.rate_hz)
        return {"length": length, "rate_hz": self.audio_format.rate_hz}

    def decode(self, start: int = 0, length: int | None = None) -> Float[Tensor, "c t"]:
        """Decode a span at the rate and channels of the format.

        Args:
            start: the first sample, at the rate of the format.
            length: the number of samples, within the recording; by default all to the end.

        Returns:
            The same samples as a span of the whole resampled recording.

        Raises:
            DataError: the file cannot be read, is truncated, or contains NaN.
            InputError: the span is not within the recording.
        """
        header = self.header
        total = self.facts["length"]
        length = total - start if length is None else length
        if not 0 <= start <= start + length <= total:
            raise InputError(
                f"AudioHandle.decode of {self.id!r}",
                expected=f"a span within the {total} samples",
                got=f"start={start}, length={length}",
                fix="read the length from facts['length']; audio/crop pads shorter recordings",
            )
        if header.rate_hz == self.audio_format.rate_hz:
            return self._mix(self._read(start, length))
        # In lowest terms the ratio gives the smallest kernel, and the blocks that make a span exact.
        g = math.gcd(header.rate_hz, self.audio_format.rate_hz)
        old, new = header.rate_hz // g, self.audio_format.rate_hz // g
        # A block of `new` samples depends on a block of `old` samples and one filter width on both sides.
        margin = math.ceil((6 * old / (0.99 * min(old, new)) + 1) / old) + 1
        first = max(0, start // new - margin)
        last = math.ceil((start + length) / new) + margin
        stop = min(last * old, header.length)
        resampled = resampler(old, new)(self._mix(self._read(first * old, max(0, stop - first * old))))
        return resampled[:, start - first * new : start - first * new + length].contiguous()

    def _read(self, start: int, length: int) -> Float[Tensor, "c t"]:
        """Read and check samples at the rate of the file."""
        if isinstance(self.source, np.ndarray | Tensor):
            samples = torch.as_tensor(self.source, dtype=torch.float32)
            span = (samples if samples.dim() == 2 else samples[None])[:, start : start + length]
        else:
            header, file = open_audio_file(self.source, self.id)
            span = file(start, length)
            missing = length - span.shape[1]
            slack = header.rate_hz // 10 if header.estimated else 0
            if missing > slack and self.audio_format.on_short == "error":
                raise DataError(
                    f"audio {self.id!r}",
                    expected=f"{header.length} samples, as its header says",
                    got=f"a file that ends after {start + span.shape[1]}",
                    fix="replace the file, or fill the end with AudioFormat(on_short='zero')",
                )
            span = nn.functional.pad(span, (0, missing))
        if not bool(torch.isfinite(span).all()):
            if self.audio_format.on_non_finite == "error":
                raise DataError(
                    f"audio {self.id!r}",
                    expected="finite samples",
                    got=f"{int((~torch.isfinite(span)).sum())} of {span.numel()} NaN or infinite",
                    fix="replace the file, or silence them with AudioFormat(on_non_finite='zero')",
                )
            span = torch.nan_to_num(span, nan=0.0, posinf=0.0, neginf=0.0)
        return span

    def _mix(self, span: Float[Tensor, "c t"]) -> Float[Tensor, "c2 t"]:
        """Average or repeat channels to the number of channels of the format."""
        wanted = self.audio_format.channels
        if len(span) == wanted:
            return span
        if wanted == 1:
            return span.mean(0, keepdim=True)
        if len(span) == 1:
            return span.expand(wanted, -1)
        raise DataError(
            f"audio {self.id!r}",
            expected=f"{wanted} channels, or one to repeat",
            got=f"{len(span)} channels",
            fix="mix all files down with AudioFormat(channels=1)",
        )


@lru_cache(maxsize=32)
def resampler(old: int, new: int) -> nn.Module:
    """Torchaudio's windowed-sinc resampler for a pair of rates, cached."""
    import torchaudio

    g = math.gcd(old, new)
    if (old // g) * (new // g) > _LARGEST_KERNEL:
        raise DataError(
            f"resampling {old} Hz to {new} Hz",
            expected="rates with a larger common divisor",
            got=f"a ratio of {old // g}:{new // g}",
            fix="resample the files once, or choose a rate_hz that divides their rate",
        )
    return torchaudio.transforms.Resample(old // g, new // g)


def open_audio(
    sources: str | Path | Sequence[str | Path | bytes], *, audio_format: AudioFormat | None = None
) -> list[AudioHandle]:
    """Open all audio files below a folder, or the listed ones, with one format. Every header is read.

    Raises:
        DataError: no file was found, or a file cannot be read or is empty.
    """
    if isinstance(sources, str | Path):
        suffixes = AUDIO_SUFFIXES + AUDIO_CONTAINER_SUFFIXES
        files: Sequence[Any] = sorted(f for f in Path(sources).expanduser().rglob("*") if f.suffix.lower() in suffixes)
    else:
        files = sources
    handles = [AudioHandle(file, audio_format=audio_format) for file in files]
    if not handles:
        raise DataError("audio files", expected="at least one", got=f"none in {str(sources)!r}", fix="check the path")
    for handle in handles:
        if not handle.header.length:
            raise DataError(f"audio {handle.id!r}", expected="at least one sample", got="none", fix="remove the file")
    return handles
