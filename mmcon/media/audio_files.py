"""Read audio files with TorchCodec if it works, else with libsndfile, else with FFmpeg through PyAV."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import DataError, MissingDependencyError
from mmcon.media.audio_headers import read_promise
from mmcon.media.decoding import DAMAGED, decoder_errors, file_size, restart_time_limit, standard_error_dropped
from mmcon.media.packet_times import read_packet_times, states_no_length, stream_start

if TYPE_CHECKING:
    import soundfile

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
AUDIO_CONTAINER_SUFFIXES = (".m4a", ".aac", ".mp4", ".mkv", ".webm", ".mov", ".avi", ".wma")
"""Suffixes of containers that may also contain video."""

# FFmpeg's decoders need some packets before the span for exact output.
_RUN_UP_SECONDS = 0.5
_BLOCK = 1 << 20
# A FLAC frame of silence has 65,535 samples in about ten bytes; no format has more samples a byte.
_MOST_SAMPLES_A_BYTE = 1 << 16
# libsndfile's limit of channels; rates from slow sensors to ultrasound.
_MOST_CHANNELS = 1024
_RATES_HZ = (100, 10_000_000)


@dataclass(frozen=True)
class AudioHeader:
    """Length, rate and channels from the header of a file.

    Attributes:
        length: the number of samples at the rate of the file.
        rate_hz: the rate of the file.
        channels: the number of channels.
        decoder: "soundfile", "av", "torchcodec" or "memory".
        estimated: whether the length is an estimate, as in compressed containers.
        missing: what the file states and does not contain; empty if it is complete as far as its header can tell.
    """

    length: int
    rate_hz: int
    channels: int
    decoder: str
    estimated: bool = False
    missing: str = ""


def read_audio_header(source: str | Path | bytes, name: str) -> AudioHeader:
    """Read the header of a file with the first decoder that accepts it.

    Raises:
        DataError: no decoder can read it, or its header has values that no recording of its size has.
        MissingDependencyError: no installed decoder can read it, and another decoder is not installed.
    """
    where = f"audio {name!r}"
    size = len(source) if isinstance(source, bytes) else file_size(source, where)
    tried, missing = [], []
    with decoder_errors(where):
        promise = read_promise(source)
        for decoder, package in ((_torchcodec, ""), (_soundfile, "soundfile"), (_av, "av")):
            try:
                header = decoder(source, promise.counted)
                _check_header(header, size)
                return replace(header, missing=promise.missing)
            except ModuleNotFoundError:
                missing += [package] if package else []
            except Exception as error:  # each library has its own types; the error below contains their messages
                tried.append(f"{decoder.__name__[1:]}: {_reason(error)}")
    if missing:
        raise MissingDependencyError(
            where,
            expected="a decoder that reads it",
            got="; ".join(tried) or "none installed",
            fix=f"pip install {' '.join(missing)}",
        )
    raise DataError(where, expected="audio that can be decoded", got="; ".join(tried), fix=DAMAGED)


def read_audio_span(
    source: str | Path | bytes, name: str, header: AudioHeader, start: int, length: int
) -> Float[Tensor, "c t"]:
    """Decode a span at the rate of the file, with the decoder that read its header; fewer samples at the end.

    Raises:
        DataError: the decoder fails.
    """
    where = f"audio {name!r}"
    if not isinstance(source, bytes):
        file_size(source, where)
    readers = {"soundfile": _read_by_soundfile, "av": _read_by_av, "torchcodec": _read_by_torchcodec}
    with decoder_errors(where, expected="decodable samples"):
        if not isinstance(source, bytes):
            Path(source).open("rb").close()  # a file that may not be read is not one that was cut
        span = readers[header.decoder](source, header, start, length)
        if len(span) != header.channels:
            raise ValueError(f"{len(span)} channels, where its header states {header.channels}")
        return span


def _reason(error: Exception) -> str:
    """The message of a decoder without the path and the number, which the errors of both libraries have too."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error) or repr(error)
    # libsndfile's words for a file named .mp3 that is none.
    return "no audio" if "not a regular file" in text else text.rstrip(".")


def _check_header(header: AudioHeader, size: int) -> None:
    """Refuse values of a damaged header before memory is reserved for them."""
    low, high = _RATES_HZ
    if not low <= header.rate_hz <= high:
        raise ValueError(f"a rate of {header.rate_hz} Hz, beyond {low} to {high:,} Hz")
    if not 1 <= header.channels <= _MOST_CHANNELS:
        raise ValueError(f"{header.channels} channels, beyond 1 to {_MOST_CHANNELS}")
    if not 0 <= header.length <= size * _MOST_SAMPLES_A_BYTE:
        raise ValueError(f"a length of {header.length:,} samples in {size:,} bytes")


def _soundfile(source: str | Path | bytes, counted: bool) -> AudioHeader:
    import soundfile

    if not counted:
        # libsndfile stops at its estimate.
        raise ValueError("an MP3 that does not state its length")
    # libmpg123 writes to the standard error what it finds in a file that is named .mp3 and is none.
    with standard_error_dropped(), soundfile.SoundFile(_binary(source)) as file:
        if file.format == "RAW":  # by the suffix alone
            raise ValueError("a file without a header")
        if not file.frames and file.format == "OGG":
            raise ValueError("a length that libsndfile cannot find")
        estimated = file.format in ("MP3", "MPEG")  # encoders may not state their padding
        return AudioHeader(file.frames, file.samplerate, file.channels, "soundfile", estimated)


def _read_by_soundfile(
    source: str | Path | bytes, header: AudioHeader, start: int, length: int
) -> Float[Tensor, "c t"]:
    import soundfile

    def read(start: int, length: int) -> Float[np.ndarray, "t c"]:
        with soundfile.SoundFile(_binary(source)) as file:
            if file.seekable():
                file.seek(start)
            else:  # telephone codecs: what is before the span is decoded and dropped
                _read_blocks(file, start)
            return _read_blocks(file, length)

    # For each span that begins inside an MP3, libmpg123 writes to the standard error that frames before it lack.
    with standard_error_dropped() if header.estimated else nullcontext():
        try:
            samples = read(start, length)
        except soundfile.LibsndfileError:  # libsndfile may fail near the end of a truncated file
            samples = _read_until_failure(read, start, length, header.channels)
    return torch.from_numpy(np.ascontiguousarray(samples.T))


def _read_blocks(file: soundfile.SoundFile, length: int) -> Float[np.ndarray, "t c"]:
    """Read in blocks, so that a length that is not there reserves no memory."""
    blocks = [file.read(min(length, _BLOCK), dtype="float32", always_2d=True)]
    while len(blocks[-1]) and (missing := length - sum(len(block) for block in blocks)):
        restart_time_limit()
        blocks.append(file.read(min(missing, _BLOCK), dtype="float32", always_2d=True))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _read_until_failure(
    read: Callable[[int, int], Float[np.ndarray, "_ c"]], start: int, length: int, channels: int
) -> Float[np.ndarray, "t {channels}"]:
    """Read a span in blocks of decreasing size, up to the first sample that cannot be read."""
    blocks, size = [np.zeros((0, channels), np.float32)], 4096
    while length and size:
        try:
            blocks.append(read(start, min(size, length)))
        except RuntimeError:  # soundfile's own error is a subclass
            size //= 2
            continue
        got = len(blocks[-1])
        start, length, size = start + got, length - got, size if got else 0
    return np.concatenate(blocks)


def _binary(source: str | Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _container(source: str | Path | bytes) -> Any:
    import av

    return av.open(_binary(source))


def _av(source: str | Path | bytes, counted: bool) -> AudioHeader:
    with _container(source) as opened:
        if not opened.streams.audio:
            raise ValueError("a file without an audio stream")
        stream = opened.streams.audio[0]
        rate, channels = stream.rate, stream.channels
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        uncertain = states_no_length(opened, stream)
        whole, begin = stream.duration is not None, stream_start(stream)
    if uncertain:
        end = read_packet_times(lambda: _container(source), "audio", whole=whole).end
        seconds = seconds if end is None else end - begin
    return AudioHeader(round(seconds * rate), rate, channels, "av", estimated=True)


def _read_by_av(source: str | Path | bytes, header: AudioHeader, start: int, length: int) -> Float[Tensor, "c t"]:
    import av

    rate, channels = header.rate_hz, header.channels
    span, end = np.zeros((channels, length), dtype=np.float32), 0
    with _container(source) as opened:
        stream = opened.streams.audio[0]
        begin = stream_start(stream)
        # Packed samples: PyAV reads beyond the pointers of planes of eight or more channels.
        resample = av.AudioResampler(format="flt", rate=rate)
        if start > _RUN_UP_SECONDS * rate and stream.time_base is not None:
            at = (begin + start / rate - _RUN_UP_SECONDS) / float(stream.time_base)
            opened.seek(int(at), stream=stream, backward=True)
        position = None
        for frame in opened.decode(stream):
            restart_time_limit()
            if position is None:
                position = round(((begin if frame.time is None else frame.time) - begin) * rate)
            for piece in resample.resample(frame):
                block = piece.to_ndarray().reshape(-1, channels).T
                low, high = max(position, start), min(position + block.shape[1], start + length)
                if low < high:
                    span[:, low - start : high - start] = block[:, low - position : high - position]
                    end = max(end, high - start)
                position += block.shape[1]
            if position >= start + length:
                break
    return torch.from_numpy(span[:, :end].copy())


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


def _torchcodec(source: str | Path | bytes, counted: bool) -> AudioHeader:
    if not torchcodec_works():
        raise ModuleNotFoundError("torchcodec")
    from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

    meta = AudioDecoder(source).metadata
    rate, seconds = meta.sample_rate, meta.duration_seconds_from_header
    if not counted or not rate or not seconds:  # the next decoder may know the length
        raise ValueError(f"a header without rate and duration: {rate} Hz, {seconds} s")
    return AudioHeader(round(seconds * rate), rate, meta.num_channels or 1, "torchcodec", estimated=True)


def _read_by_torchcodec(
    source: str | Path | bytes, header: AudioHeader, start: int, length: int
) -> Float[Tensor, "c t"]:
    from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

    if not length:
        return torch.zeros(header.channels, 0)
    rate = header.rate_hz
    return AudioDecoder(source).get_samples_played_in_range(start / rate, (start + length) / rate).data[:, :length]
