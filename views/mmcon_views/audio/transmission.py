"""What a sound goes through on its way to the listener: filters, rooms, codecs.

far_away = mmcon.create_view("audio/reverb", decay_seconds=(0.4, 0.8))
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media import AudioFormat, open_audio
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator, select_samples
from mmcon_views.audio import signal as operations
from mmcon_views.audio.waveform import Range, like, sounding


@final
class PassFilter(ViewGenerator):
    """A second-order filter with its own cutoff for each sample, drawn evenly in octaves.

    Args:
        kind: "low", "high" or "band".
        cutoff_hz: range of the cutoff, or of the centre of a band.
        q: quality; 0.707 is flat.
        rate_hz: the rate of the samples.
        p: the probability of any filtering.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, kind: str, *, cutoff_hz: Range, q: float, rate_hz: int, p: float) -> None:
        if not 0 < cutoff_hz[0] <= cutoff_hz[1] < rate_hz / 2:
            expected = f"cutoffs above 0 and below {rate_hz / 2:g} Hz"
            raise InputError(f"audio/{kind}-pass", expected=expected, got=str(cutoff_hz), fix="lower cutoff_hz")
        self.kind, self.cutoff_hz, self.q, self.rate_hz, self.p = kind, cutoff_hz, q, rate_hz, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the cutoff, Hz; 0 leaves the sample alone."""
        cutoff = keys.log_uniform("cutoff", *self.cutoff_hz)
        return {"cutoff_hz": torch.where(keys.bernoulli("on", self.p), cutoff, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Filter."""
        signal, length = sounding(batch)
        cutoff = params["cutoff_hz"].to(signal.device)
        rows = cutoff.clamp(min=1.0).split(1)
        b, a = (
            torch.cat(c)
            for c in zip(*(operations.pass_filter(self.kind, r, self.rate_hz, self.q) for r in rows), strict=True)
        )
        filtered = operations.biquad(signal, b, a, length)
        return like(batch, torch.where(operations.column(cutoff, signal) > 0, filtered, signal))


@register_view("audio/low-pass", modality="audio")
def low_pass(*, cutoff_hz: Range = (1_000.0, 7_500.0), q: float = 0.707, rate_hz: int = 16_000, p: float = 1.0) -> Any:
    """A low pass of second order, its cutoff drawn evenly in octaves."""
    return PassFilter("low", cutoff_hz=cutoff_hz, q=q, rate_hz=rate_hz, p=p)


@register_view("audio/high-pass", modality="audio")
def high_pass(*, cutoff_hz: Range = (20.0, 1_000.0), q: float = 0.707, rate_hz: int = 16_000, p: float = 1.0) -> Any:
    """A high pass of second order, its cutoff drawn evenly in octaves."""
    return PassFilter("high", cutoff_hz=cutoff_hz, q=q, rate_hz=rate_hz, p=p)


@register_view("audio/band-pass", modality="audio")
def band_pass(*, centre_hz: Range = (200.0, 4_000.0), q: float = 0.707, rate_hz: int = 16_000, p: float = 1.0) -> Any:
    """A band pass of second order (peak gain 1), its centre drawn evenly in octaves."""
    return PassFilter("band", cutoff_hz=centre_hz, q=q, rate_hz=rate_hz, p=p)


@final
@register_view("audio/reverb", modality="audio")
class Reverb(ViewGenerator):
    """A room: convolution with an impulse response.

    Without recordings the response is the direct sound and a tail of noise that decays by 60 dB in the drawn time.

    Args:
        decay_seconds: range of the time in which the tail falls by 60 dB.
        wet_db: range of the tail's energy beside that of the direct sound.
        impulses: recorded responses, as paths or a folder; used in place of the synthetic ones.
        rate_hz: the rate of the samples.
        p: the probability of any room.
    """

    modality: ClassVar[str] = "audio"

    def __init__(
        self,
        *,
        decay_seconds: Range = (0.1, 0.6),
        wet_db: Range = (-20.0, 0.0),
        impulses: str | Path | Sequence[str | Path] | None = None,
        rate_hz: int = 16_000,
        p: float = 1.0,
    ) -> None:
        self.decay_seconds, self.wet_db, self.rate_hz, self.p = decay_seconds, wet_db, rate_hz, p
        audio_format = AudioFormat(rate_hz=rate_hz)
        recorded = [] if impulses is None else open_audio(impulses, audio_format=audio_format)
        self._impulses = [sound.decode() for sound in recorded]

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the decay, the tail's share and seed, or which recorded response; whether at all."""
        return {
            "on": keys.bernoulli("on", self.p),
            "decay_seconds": keys.uniform("decay", *self.decay_seconds),
            "wet_db": keys.uniform("wet", *self.wet_db),
            "seed": keys.bits("seed"),
            "impulse": keys.choice("impulse", max(1, len(self._impulses))),
        }

    def apply(self, batch: Any, params: Params) -> Any:
        """Convolve."""
        signal, length = sounding(batch)
        rows = [select_samples(params, slice(i, i + 1)) for i in range(len(signal))]
        kernel = self._recorded(params) if self._impulses else torch.cat([self._synthetic(row) for row in rows])
        echoing = operations.convolve(signal, kernel.to(signal), length)
        return like(batch, torch.where(operations.column(params["on"], signal) > 0, echoing, signal))

    def _synthetic(self, params: Params) -> Tensor:
        k = round(self.decay_seconds[1] * self.rate_hz)
        noise = operations.white_noise(params["seed"], 1, k, torch.device("cpu"))
        seconds = torch.arange(k) / self.rate_hz
        tail = noise * 10.0 ** (-3 * seconds / operations.column(params["decay_seconds"], noise))
        tail[..., 0] = 0.0
        wet = operations.column(10.0 ** (params["wet_db"] / 20), noise)
        kernel = tail * (wet / operations.energy(tail).sqrt())
        kernel[..., 0] = 1.0
        return kernel

    def _recorded(self, params: Params) -> Tensor:
        chosen = [self._impulses[i] for i in params["impulse"].tolist()]
        k = max(c.shape[-1] for c in self._impulses)
        return torch.stack([torch.nn.functional.pad(c, (0, k - c.shape[-1])) for c in chosen])


@final
@register_view("audio/codec", modality="audio")
class Codec(ViewGenerator):
    """Through a lossy codec and back, on the host: MP3 or Vorbis at a drawn compression, or telephone µ-law.

    Args:
        codecs: which ones may be drawn: "mp3", "ogg", "mu-law".
        compression: range, from 0 (best quality) to 1 (smallest).
        rate_hz: the rate of the samples.
        p: the probability of any coding.
    """

    modality: ClassVar[str] = "audio"

    def __init__(
        self,
        *,
        codecs: Sequence[str] = ("mp3", "ogg", "mu-law"),
        compression: Range = (0.0, 0.9),
        rate_hz: int = 16_000,
        p: float = 1.0,
    ) -> None:
        if not codecs or set(codecs) - {"mp3", "ogg", "mu-law"}:
            raise InputError("audio/codec", expected="codecs among mp3, ogg, mu-law", got=str(codecs))
        self.codecs, self.compression, self.rate_hz, self.p = tuple(codecs), compression, rate_hz, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the codec (−1 for none) and the compression."""
        which = torch.where(keys.bernoulli("on", self.p), keys.choice("codec", len(self.codecs)), -1)
        return {"codec": which, "compression": keys.uniform("compression", *self.compression)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Code and decode row by row."""
        signal, length = sounding(batch)
        out = signal.clone()
        for row, which in enumerate(params["codec"].tolist()):
            if which >= 0 and int(length[row]):
                coded = self._code(
                    self.codecs[which], signal[row, :, : int(length[row])], float(params["compression"][row])
                )
                out[row, :, : coded.shape[-1]] = coded
        return like(batch, out)

    def _code(self, codec: str, samples: Tensor, compression: float) -> Tensor:
        if codec == "mu-law":
            from torchaudio.functional import mu_law_decoding, mu_law_encoding

            return mu_law_decoding(mu_law_encoding(samples.clamp(-1, 1), 256), 256)
        import soundfile

        file = io.BytesIO()
        options: dict[str, Any] = {"format": codec.upper(), "compression_level": compression}
        soundfile.write(file, samples.T.cpu().numpy(), self.rate_hz, **options)
        coded = torch.from_numpy(soundfile.read(io.BytesIO(file.getvalue()), dtype="float32", always_2d=True)[0].T)
        n = samples.shape[-1]
        return torch.nn.functional.pad(coded, (0, max(0, n - coded.shape[-1])))[:, :n].to(samples)
