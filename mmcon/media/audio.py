"""Handles on audio: the header gives the length of a recording; only the requested span is decoded.

    audio_format = AudioFormat(rate_hz=16_000, channels=1)
    audio = AudioHandle("interview.flac", audio_format=audio_format)
    audio.facts                                   # {"length": 81_920, "rate_hz": 16_000}: at the rate of the format
    audio.decode(start=16_000, length=32_000)     # 1 32000: two seconds, from the first second on

What a file may contain, and how it is handled:

- *rate and channels*: converted to the audio format, by windowed-sinc resampling and the mean of the channels. All
  handles of a source have the same format;
- *8, 16, 24, 32 bits, floats, telephone codecs* (A-law, µ-law, GSM 6.10, G.721, G.723, ADPCM): float32, full scale
  at ±1;
- *video files*: their first audio stream, from its first sample on;
- *silence*: like any other recording;
- *NaN or infinite samples*: DataError with the name of the sample, or zeros (`on_non_finite`);
- *truncated files* (the container states more bytes than the file has, or an Ogg file has no last page): DataError when
  the header is read, or what is there (`on_short`);
- *fewer samples than the header states*: DataError, or zeros at the end (`on_short`). Compressed containers (mp4,
  webm) and mp3 only estimate their length: up to a tenth of a second is padded with zeros;
- *an mp3 or aac file that does not state its length*: its packets are counted, and all of it is read;
- *corrupt files*: DataError with the name of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor, nn

from mmcon.errors import DataError, InputError
from mmcon.media.audio_files import (
    AUDIO_CONTAINER_SUFFIXES,
    AUDIO_SUFFIXES,
    AudioHeader,
    read_audio_header,
    read_audio_span,
)
from mmcon.media.resampling import resample_span, resampled_length

# By dtype of samples in memory: the value of silence, and full scale.
_INTEGERS = {
    torch.int8: (0, 1 << 7),
    torch.uint8: (1 << 7, 1 << 7),
    torch.int16: (0, 1 << 15),
    torch.uint16: (1 << 15, 1 << 15),
    torch.int32: (0, 1 << 31),
}


@dataclass(frozen=True)
class AudioFormat:
    """The rate and channels of decoded audio, and the handling of bad files.

    Attributes:
        rate_hz: the rate to resample to.
        channels: 1 averages all channels; 2 or more accepts files with that number of channels, and repeats the
            channel of a mono file.
        on_non_finite: "error" raises on NaN or infinite samples; "zero" replaces them.
        on_short: "error" raises on a truncated file; "zero" takes what is there, and pads with zeros the samples that
            its header states beyond the last.
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
        source: a path, the bytes of a file, or samples in memory, `t`, `c t` or `t c` (the longer axis is the time).
            Whole numbers of 8, 16 or 32 bits are brought to full scale 1.
        audio_format: the rate and channels that `decode` returns, and the handling of bad files.
        id: the name of the sample in messages; by default the path.
        source_rate_hz: the rate of samples in memory.

    Raises:
        InputError: samples in memory without a rate, or of another shape or dtype.
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
        if isinstance(source, np.ndarray | Tensor):
            if not source_rate_hz or source_rate_hz < 0:
                got = str(source_rate_hz)
                raise InputError("AudioHandle", expected="source_rate_hz above 0 with samples in memory", got=got)
            _samples_in_memory(source, self.id)

    def __repr__(self) -> str:
        return f"AudioHandle({self.id!r})"

    @cached_property
    def header(self) -> AudioHeader:
        """Length, rate and channels from the header of the file.

        Raises:
            DataError: no decoder reads the file, or it is truncated or empty.
        """
        if isinstance(self.source, np.ndarray | Tensor):
            channels, length = _samples_in_memory(self.source, self.id).shape
            assert self.source_rate_hz is not None
            return AudioHeader(length, self.source_rate_hz, channels, "memory")
        header = read_audio_header(self.source, self.id)
        if header.missing and self.audio_format.on_short == "error":
            raise DataError(
                f"audio {self.id!r}",
                expected="a complete file",
                got=f"one without {header.missing}",
                fix="replace the file, or take what is there with AudioFormat(on_short='zero')",
            )
        if not header.length:
            raise DataError(f"audio {self.id!r}", expected="at least one sample", got="none", fix="remove the file")
        return header

    @cached_property
    def facts(self) -> dict[str, int]:
        """The length (samples) and rate of the decoded recording; only the header is read.

        Raises:
            DataError: no decoder reads the file.
        """
        header = self.header
        length = resampled_length(header.length, header.rate_hz, self.audio_format.rate_hz)
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

        def read(first: int, count: int) -> Float[Tensor, "c t"]:
            return self._mix(self._read(first, count))

        return resample_span(read, header.length, header.rate_hz, self.audio_format.rate_hz, start, length)

    def _read(self, start: int, length: int) -> Float[Tensor, "c t"]:
        """Read and check samples at the rate of the file."""
        if isinstance(self.source, np.ndarray | Tensor):
            span = _full_scale(_samples_in_memory(self.source, self.id)[:, start : start + length])
        else:
            header = self.header
            span = read_audio_span(self.source, self.id, header, start, length)
            missing = length - span.shape[1]
            slack = header.rate_hz // 10 if header.estimated else 0
            if missing > slack and self.audio_format.on_short == "error":
                raise DataError(
                    f"audio {self.id!r}",
                    expected=f"{header.length} samples, as its header says",
                    got=f"a file that ends after {start + span.shape[1]}",
                    fix="replace the file, or fill the end with AudioFormat(on_short='zero')",
                )
            span = nn.functional.pad(span, (0, missing)) if missing else span
        # A finite sum has finite terms; only another one needs a look at each.
        if not math.isfinite(float(span.sum())) and not bool(torch.isfinite(span).all()):
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


def _samples_in_memory(source: Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."], name: str) -> Shaped[Tensor, "c t"]:
    """Samples as `c t`, unscaled and without a copy where the memory allows it.

    Raises:
        InputError: another number of axes, or numbers whose full scale is unknown.
    """
    if isinstance(source, np.ndarray) and source.dtype.kind in "iuf":
        # Other byte orders and reversed arrays, which torch does not take, are copied.
        source = torch.from_numpy(np.require(source, source.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(source, Tensor) or not (source.is_floating_point() or source.dtype in _INTEGERS):
        raise InputError(
            f"audio {name!r}",
            expected="samples as floats, or as whole numbers of 8, 16 or 32 bits",
            got=f"{source.dtype}",
            fix="divide by full scale: samples / 2**15 for 16 bits",
        )
    if source.dim() not in (1, 2):
        raise InputError(
            f"audio {name!r}",
            expected="samples `t`, `c t` or `t c`",
            got=f"shape {tuple(source.shape)}",
            fix="one handle for each recording of a batch",
        )
    samples = source if source.dim() == 2 else source[None]
    return samples.T if samples.shape[0] > samples.shape[1] > 0 else samples


def _full_scale(samples: Shaped[Tensor, "c t"]) -> Float32[Tensor, "c t"]:
    """Samples with full scale at ±1, by their dtype; floats are already."""
    if samples.is_floating_point():
        return samples.to(torch.float32)
    silence, full = _INTEGERS[samples.dtype]
    return ((samples.to(torch.float64) - silence) / full).to(torch.float32)


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
        _ = handle.header
    return handles
