"""Log-mel spectrograms of waveforms, and their standardization.

A batch of spectrograms is `{"log_mel": b c f t, "length": b}`: mel bands from low to high, frames, and the number of
real frames of each row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.waveform import silence_padded

# Samples whose spectra are computed at once on a CPU: eight recordings of two seconds.
_CACHED = 1 << 18


@lru_cache(maxsize=32)
def mel_bank(rate_hz: int, fft: int, bands: int, low_hz: float, high_hz: float) -> Float[Tensor, "bins bands"]:
    """The triangular filters of torchaudio (HTK's mel scale, no normalization), cached."""
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(fft // 2 + 1, low_hz, high_hz, bands, rate_hz)


def log_mel_and_length(batch: Any) -> tuple[Float[Tensor, "b c f t"], Int[Tensor, " b"]]:
    """The log-mels and the numbers of real frames of a batch."""
    if not isinstance(batch, Mapping) or "log_mel" not in batch:
        raise InputError(
            "spectrogram views",
            expected='{"log_mel": b c f t, "length": b}',
            got=str(sorted(batch)) if isinstance(batch, Mapping) else type(batch).__name__,
            fix="put audio/log-mel before them in the chain",
        )
    return batch["log_mel"], batch["length"]


@final
@register_view("audio/log-mel", modality="audio")
class LogMel(ViewGenerator):
    """The log-mel spectrogram of a waveform; nothing is drawn.

    Frames are centered (frame i at sample i · hop), so that `length` samples give `length // hop + 1` frames; the
    window is Hann's. Powers are clamped to at least `floor` before the natural logarithm.

    Args:
        rate_hz: the sample rate.
        bands: the number of mel bands.
        window: samples in a window; by default 25 ms.
        hop: samples from frame to frame; by default 10 ms.
        fft: points of the transform; by default the next power of two from the window.
        low_hz: the lower edge of the bands.
        high_hz: the upper edge of the bands; by default half of the rate.
        floor: the smallest power.
    """

    modality: ClassVar[str] = "audio"

    def __init__(
        self,
        *,
        rate_hz: int = 16_000,
        bands: int = 64,
        window: int | None = None,
        hop: int | None = None,
        fft: int | None = None,
        low_hz: float = 60.0,
        high_hz: float | None = None,
        floor: float = 1e-5,
    ) -> None:
        self.rate_hz, self.bands, self.floor = rate_hz, bands, floor
        self.window, self.hop = window or rate_hz // 40, hop or rate_hz // 100
        # Longer transforms, in which no low band has a single bin, helped a random encoder but no trained one.
        self.fft = fft or 1 << (self.window - 1).bit_length()
        self.low_hz, self.high_hz = low_hz, high_hz or rate_hz / 2
        if not (0 <= self.low_hz < self.high_hz <= rate_hz / 2 and self.window <= self.fft):
            got = f"{self.low_hz}–{self.high_hz} Hz at {rate_hz} Hz, window {self.window} in fft {self.fft}"
            raise InputError("audio/log-mel", expected="bands below half of the rate, window <= fft", got=got)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Any, params: Params) -> Any:
        """Transform; padding frames get the value of silence."""
        signal, length = silence_padded(batch)
        power = self.power(signal)
        bank = mel_bank(self.rate_hz, self.fft, self.bands, self.low_hz, self.high_hz).to(power)
        # Row by row: one matrix product over all rows may round differently.
        mel = torch.stack([row @ bank for row in power]).transpose(-1, -2)
        frames = self._frames(length)
        log_mel = mel.clamp(min=self.floor).log()
        real = ops.valid(frames, log_mel.shape[-1])[:, None, None]
        return {"log_mel": torch.where(real, log_mel, math.log(self.floor)), "length": frames}

    def power(self, signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b c frames bins"]:
        """The power spectrogram."""
        # Some rows at a time on a CPU: all frames of a batch, which overlap, would not stay in its cache.
        rows = max(1, _CACHED // signal[0].numel()) if signal.device.type == "cpu" else len(signal)
        return torch.cat([self._power(some) for some in signal.split(rows)])

    def _power(self, signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b c frames bins"]:
        b, c, t = signal.shape
        # Zeros at the ends: a reflection would mirror the signal only in rows that fill the width of the batch.
        spectrum = torch.stft(
            signal.reshape(b * c, t),
            self.fft,
            self.hop,
            self.window,
            torch.hann_window(self.window, device=signal.device),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.real.square().add_(spectrum.imag.square())
        return power.transpose(-1, -2).reshape(b, c, -1, self.fft // 2 + 1)

    def _frames(self, length: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        return (length // self.hop + 1) * (length > 0)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Length and width in frames."""
        return {**meta, **{name: self._frames(meta[name]) for name in ("length", "width") if name in meta}}


@final
@register_view("audio/standardize", modality="audio")
class Standardize(ViewGenerator):
    """Standardize by a given mean and standard deviation, or by those of each sample's real frames."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, mean: float | None = None, std: float | None = None) -> None:
        if (mean is None) != (std is None):
            raise InputError("audio/standardize", expected="mean and std, or neither", got=f"mean={mean}, std={std}")
        self.mean, self.std = mean, std

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Any, params: Params) -> Any:
        """Standardize; padding becomes 0, which is the mean."""
        x, length = log_mel_and_length(batch)
        real = ops.valid(length, x.shape[-1])[:, None, None]
        if self.mean is not None and self.std is not None:
            return {**batch, "log_mel": torch.where(real, (x - self.mean) / self.std, 0.0)}
        count = (length * x.shape[1] * x.shape[2]).clamp(min=1)[:, None, None, None]
        mean = sum_per_sample(torch.where(real, x, 0.0)) / count
        # Centered first: the difference of mean squares would lose digits, as log-mels are far from 0.
        centered = torch.where(real, x - mean, 0.0)
        return {**batch, "log_mel": centered / (sum_per_sample(centered.square()) / count).sqrt().clamp(min=1e-5)}


def sum_per_sample(x: Float[Tensor, "b c f t"]) -> Float[Tensor, "b 1 1 1"]:
    """The sum over a sample, first along rows, with the same bits in any batch."""
    return x.sum(-1, keepdim=True).sum(-2, keepdim=True).sum(-3, keepdim=True)
