"""Handles on sounds: the header says how long a recording is; only the span that is drawn is decoded.

    audio_format = AudioFormat(rate_hz=16_000, channels=1)
    sound = AudioHandle("interview.flac", audio_format=audio_format)
    sound.facts                                   # {"length": 81_920, "rate_hz": 16_000}: at the contract's rate
    sound.decode(start=16_000, length=32_000)     # 1 32000: two seconds from the second second on

What a file may be, and what becomes of it:

- *rate and channels*: as the contract says; resampled with a windowed sinc, mixed down by the mean. Nothing is
  implicit: the contract is an argument, and every handle of a source has the same one;
- *8, 16, 24, 32 bits, floats*: float32, full scale at ±1;
- *video files*: their first audio stream;
- *silence*: a recording like any other;
- *NaN or infinite samples*: DataError with the sample's name, or zeros where the contract says so;
- *a header that promises more than there is*: DataError, or zeros at the end where the contract says so. Compressed
  containers (mp4, webm, …) and mp3 only estimate their length; up to a tenth of a second less is filled with zeros, and
  what an mp3 without a Xing header has beyond the estimate is not read;
- *truncated or corrupt files*: DataError with the sample's name.
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
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import DataError, InputError
from mmcon.media.audio_files import CONTAINERS, SUFFIXES, AudioHeader, open_audio_file

# torchaudio's resampling kernel has rate·rate/gcd² entries or so; beyond this a pair of rates is refused.
_LARGEST_KERNEL = 20_000_000


@dataclass(frozen=True)
class AudioFormat:
    """What every sound of a source is brought to, and what happens to bad ones.

    Attributes:
        rate_hz: the rate that sounds are resampled to.
        channels: 1 mixes all channels down by their mean; 2 and more take a mono file as many times, and else files
            with so many channels.
        on_non_finite: what becomes of NaN and infinite samples: "error" or "zero".
        on_short: what becomes of a file that holds less than its header says: "error" or "zero" (the end is filled).
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
    """A sound that is opened but not decoded.

    Args:
        source: a path, the bytes of a file, or samples in memory as a float tensor `t` or `c t`.
        contract: the rate and the channels that `decode` gives, and what happens to bad input.
        id: what the sample is called in messages; a path is its own name.
        source_rate_hz: the rate of samples in memory.
    """

    def __init__(
        self,
        source: str | Path | bytes | np.ndarray | Tensor,
        *,
        audio_format: AudioFormat | None = None,
        id: str = "",
        source_rate_hz: int | None = None,
    ) -> None:
        self.source, self.audio_format = source, audio_format or AudioFormat()
        self.id = id or (str(source) if isinstance(source, str | Path) else f"a sound from {type(source).__name__}")
        self.source_rate_hz = source_rate_hz
        if isinstance(source, np.ndarray | Tensor) and source_rate_hz is None:
            raise InputError("AudioHandle", expected="source_rate_hz with samples in memory", got="None")

    def __repr__(self) -> str:
        return f"AudioHandle({self.id!r})"

    @cached_property
    def header(self) -> AudioHeader:
        """Length, rate and channels as the file states them.

        Raises:
            DataError: it cannot be read as sound.
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
        """The length in samples and the rate, both as `decode` gives them; the header alone is read.

        A file without a readable header has length 0 here, so that it spoils no batch before it is decoded; decoding
        it raises the error that names it.
        """
        try:
            header = self.header
        except DataError:
            return {"length": 0, "rate_hz": self.audio_format.rate_hz}
        length = math.ceil(header.length * self.audio_format.rate_hz / header.rate_hz)
        return {"length": length, "rate_hz": self.audio_format.rate_hz}

    def decode(self, start: int = 0, length: int | None = None) -> Float[Tensor, "c t"]:
        """Decode a span, brought to the contract's rate and channels.

        Args:
            start: the first sample, at the contract's rate.
            length: how many samples; by default all to the end. The span must lie within the recording.

        Returns:
            The same samples that the whole recording, resampled at once, has there.

        Raises:
            DataError: the file cannot be read, breaks off, or holds NaN.
        """
        header = self.header
        total = self.facts["length"]
        length = total - start if length is None else length
        if not 0 <= start <= start + length <= total:
            raise InputError(
                f"AudioHandle.decode of {self.id!r}",
                expected=f"a span within the {total} samples",
                got=f"start={start}, length={length}",
                fix="sound.facts['length'] says how many there are; audio/crop pads what is shorter",
            )
        if header.rate_hz == self.audio_format.rate_hz:
            return self._mix(self._read(start, length))
        g = math.gcd(header.rate_hz, self.audio_format.rate_hz)
        old, new = header.rate_hz // g, self.audio_format.rate_hz // g
        # Blocks of `new` samples come from blocks of `old`; one filter's width more on both sides.
        margin = math.ceil((6 * old / (0.99 * min(old, new)) + 1) / old) + 1
        first = max(0, start // new - margin)
        last = math.ceil((start + length) / new) + margin
        stop = min(last * old, header.length)
        resampled = resampler(old, new)(self._mix(self._read(first * old, max(0, stop - first * old))))
        return resampled[:, start - first * new : start - first * new + length].contiguous()

    def _read(self, start: int, length: int) -> Tensor:
        """Samples at the file's own rate, `c length`, checked."""
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
                    f"sound {self.id!r}",
                    expected=f"{header.length} samples, as its header says",
                    got=f"{start + span.shape[1]} before it breaks off",
                    fix="replace the file, or fill the end with AudioFormat(on_short='zero')",
                )
            span = nn.functional.pad(span, (0, missing))
        if not bool(torch.isfinite(span).all()):
            if self.audio_format.on_non_finite == "error":
                raise DataError(
                    f"sound {self.id!r}",
                    expected="finite samples",
                    got=f"{int((~torch.isfinite(span)).sum())} of {span.numel()} NaN or infinite",
                    fix="replace the file, or silence them with AudioFormat(on_non_finite='zero')",
                )
            span = torch.nan_to_num(span, nan=0.0, posinf=0.0, neginf=0.0)
        return span

    def _mix(self, span: Tensor) -> Tensor:
        wanted = self.audio_format.channels
        if len(span) == wanted:
            return span
        if wanted == 1:
            return span.mean(0, keepdim=True)
        if len(span) == 1:
            return span.expand(wanted, -1)
        raise DataError(
            f"sound {self.id!r}",
            expected=f"{wanted} channels, or one that is repeated",
            got=f"{len(span)} channels",
            fix="AudioFormat(channels=1) mixes all files down",
        )


@lru_cache(maxsize=32)
def resampler(old: int, new: int) -> nn.Module:
    """The windowed-sinc resampler of a pair of rates (torchaudio's), made once for each pair."""
    import torchaudio

    g = math.gcd(old, new)
    if (old // g) * (new // g) > _LARGEST_KERNEL:
        raise DataError(
            f"resampling {old} Hz to {new} Hz",
            expected="rates with a large common divisor",
            got=f"a ratio of {old // g}:{new // g}",
            fix="resample the files once with a tool for it, or choose a rate_hz that divides theirs",
        )
    return torchaudio.transforms.Resample(old // g, new // g)


def open_audio(
    sources: str | Path | Sequence[str | Path | bytes], *, audio_format: AudioFormat | None = None
) -> list[AudioHandle]:
    """Handles on all sounds below a folder, or on those that are named, with one contract; every header is read.

    Raises:
        DataError: there are none, or one cannot be read or holds nothing.
    """
    if isinstance(sources, str | Path):
        endings = SUFFIXES + CONTAINERS
        files: Sequence[Any] = sorted(f for f in Path(sources).expanduser().rglob("*") if f.suffix.lower() in endings)
    else:
        files = sources
    sounds = [AudioHandle(file, audio_format=audio_format) for file in files]
    if not sounds:
        raise DataError("sounds", expected="at least one", got=f"none in {str(sources)!r}", fix="check the path")
    for sound in sounds:
        if not sound.header.length:
            raise DataError(f"sound {sound.id!r}", expected="at least one sample", got="none", fix="take the file out")
    return sounds
