"""Read audio files with TorchCodec if it works, else with libsndfile, else with FFmpeg through PyAV."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import DataError, MissingDependencyError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
AUDIO_CONTAINER_SUFFIXES = (".m4a", ".aac", ".mp4", ".mkv", ".webm", ".mov", ".avi", ".wma")
"""Suffixes of containers that may also contain video."""

Reader = Callable[[int, int], Float[Tensor, "c t"]]
"""A function that reads a span at the rate of the file: (start, length) -> samples, fewer at the end of the file."""

# FFmpeg's decoders need some packets before the span for exact output.
_RUN_UP_SECONDS = 0.5


@dataclass(frozen=True)
class AudioHeader:
    """Length, rate and channels from the header of a file.

    Attributes:
        length: the number of samples at the rate of the file.
        rate_hz: the rate of the file.
        channels: the number of channels.
        decoder: "soundfile", "av", "torchcodec" or "memory".
        estimated: whether the length is an estimate, as in compressed containers.
    """

    length: int
    rate_hz: int
    channels: int
    decoder: str
    estimated: bool = False


def open_audio_file(source: str | Path | bytes, name: str) -> tuple[AudioHeader, Reader]:
    """Open a file: return its header and a function that reads spans.

    Raises:
        DataError: no decoder can read it.
        MissingDependencyError: no installed decoder can read it, and another decoder is not installed.
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DataError(f"audio {name!r}", expected="a file", got="none at this path")
    tried, missing = [], []
    for decoder, package in ((_torchcodec, ""), (_soundfile, "soundfile"), (_av, "av")):
        try:
            return decoder(source, name)
        except ModuleNotFoundError:
            missing += [package] if package else []
        except Exception as error:  # each library has its own types; the error below contains their messages
            tried.append(f"{decoder.__name__[1:]}: {str(error) or repr(error)}")
    if missing:
        raise MissingDependencyError(
            f"audio {name!r}",
            expected="a decoder that reads it",
            got="; ".join(tried) or "none installed",
            fix=f"pip install {' '.join(missing)}",
        )
    raise DataError(
        f"audio {name!r}",
        expected="audio that can be decoded",
        got="; ".join(tried),
        fix="replace or remove the file; `mmcon doctor --data PATH` lists all such files",
    )


def _soundfile(source: str | Path | bytes, name: str) -> tuple[AudioHeader, Reader]:
    import soundfile

    def file() -> soundfile.SoundFile:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)

    with file() as opened:
        estimated = opened.format in ("MP3", "MPEG")  # exact only with a Xing header
        header = AudioHeader(opened.frames, opened.samplerate, opened.channels, "soundfile", estimated)

    def read(start: int, length: int) -> Float[Tensor, "c t"]:
        try:
            return read_at_once(start, length)
        except RuntimeError:  # soundfile's own error is a subclass
            return torch.cat([torch.zeros(header.channels, 0), *_read_in_blocks(read_at_once, start, length)], 1)

    def read_at_once(start: int, length: int) -> Float[Tensor, "c t"]:
        with file() as opened:
            opened.seek(start)
            samples = opened.read(length, dtype="float32", always_2d=True)
        return torch.from_numpy(np.ascontiguousarray(samples.T))

    return header, read


def _read_in_blocks(read: Reader, start: int, length: int) -> list[Float[Tensor, "c _"]]:
    """Read a span in blocks of decreasing size, since libsndfile may fail near the end of a truncated file."""
    blocks, size = [], 4096
    while length and size:
        try:
            blocks.append(read(start, min(size, length)))
        except RuntimeError:
            size //= 2
            continue
        got = blocks[-1].shape[1]
        start, length, size = start + got, length - got, size if got else 0
    return blocks


def _av(source: str | Path | bytes, name: str) -> tuple[AudioHeader, Reader]:
    import av
    from av.error import FFmpegError

    def container() -> Any:
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))

    with container() as opened:
        if not opened.streams.audio:
            raise DataError(f"audio {name!r}", expected="an audio stream", got="a file without one")
        stream = opened.streams.audio[0]
        rate, channels = stream.rate, stream.channels
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (opened.duration or 0) / av.time_base
        header = AudioHeader(round(seconds * rate), rate, channels, "av", estimated=True)

    def read(start: int, length: int) -> Float[Tensor, "c t"]:
        span, end = np.zeros((channels, length), dtype=np.float32), 0
        try:
            with container() as opened:
                stream = opened.streams.audio[0]
                resample = av.AudioResampler(format="fltp", rate=rate)
                if start > _RUN_UP_SECONDS * rate and stream.time_base is not None:
                    at = (start / rate - _RUN_UP_SECONDS) / float(stream.time_base)
                    opened.seek(int(at), stream=stream, backward=True)
                position = None
                for frame in opened.decode(stream):
                    if position is None:
                        position = round((frame.time or 0.0) * rate)
                    for piece in resample.resample(frame):
                        block = piece.to_ndarray()
                        low, high = max(position, start), min(position + block.shape[1], start + length)
                        if low < high:
                            span[:, low - start : high - start] = block[:, low - position : high - position]
                            end = max(end, high - start)
                        position += block.shape[1]
                    if position >= start + length:
                        break
        except (FFmpegError, EOFError) as error:
            raise DataError(f"audio {name!r}", expected="decodable samples", got=str(error)) from error
        return torch.from_numpy(span[:, :end].copy())

    return header, read


@cache
def torchcodec_works() -> bool:
    """Whether TorchCodec can decode one second of silence; it may be importable without a usable FFmpeg."""
    silence = io.BytesIO()
    with wave.open(silence, "wb") as file:
        file.setparams((1, 2, 8_000, 8_000, "NONE", ""))
        file.writeframes(bytes(16_000))
    try:
        from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

        return AudioDecoder(silence.getvalue()).get_all_samples().data.shape[-1] == 8_000
    except Exception:  # ImportError, RuntimeError or OSError, by its version and FFmpeg's
        return False


def _torchcodec(source: str | Path | bytes, name: str) -> tuple[AudioHeader, Reader]:
    if not torchcodec_works():
        raise ModuleNotFoundError("torchcodec")
    from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

    decoder = AudioDecoder(source)
    meta = decoder.metadata
    rate, seconds = meta.sample_rate, meta.duration_seconds_from_header
    if not rate or not seconds:  # the next decoder may read them
        raise DataError(f"audio {name!r}", expected="a header with rate and duration", got=f"{rate} Hz, {seconds} s")
    header = AudioHeader(round(seconds * rate), rate, meta.num_channels or 1, "torchcodec", estimated=True)

    def read(start: int, length: int) -> Float[Tensor, "c t"]:
        if not length:
            return torch.zeros(header.channels, 0)
        try:
            return decoder.get_samples_played_in_range(start / rate, (start + length) / rate).data[:, :length]
        except RuntimeError as error:
            raise DataError(f"audio {name!r}", expected="decodable samples", got=str(error)) from error

    return header, read
