"""Reverberation: convolution with a synthetic or recorded impulse response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.media import AudioFormat, open_audio
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator, select_samples
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.waveform import Range, silence_padded, with_signal


@final
@register_view("audio/reverb", modality="audio")
class Reverb(ViewGenerator):
    """Reverberation: convolution with an impulse response.

    Without recordings, the response is a direct impulse and a noise tail that decays by 60 dB in the drawn time.

    >>> far_away = mmcon.create_view("audio/reverb", decay_seconds=(0.4, 0.8))

    Args:
        decay_seconds: bounds of the time in which the tail decays by 60 dB.
        wet_db: bounds of the tail's energy relative to the direct impulse.
        impulses: recorded responses, as paths or a folder, instead of synthetic ones.
        rate_hz: the sample rate.
        p: the probability of any reverberation.
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
        """Draw `on`, the decay, the energy and the seed of the tail, and the index of a recorded response."""
        return {
            "on": keys.bernoulli("on", self.p),
            "decay_seconds": keys.uniform("decay", *self.decay_seconds),
            "wet_db": keys.uniform("wet", *self.wet_db),
            "seed": keys.bits("seed"),
            "impulse": keys.choice("impulse", max(1, len(self._impulses))),
        }

    def apply(self, batch: Any, params: Params) -> Any:
        """Convolve."""
        signal, length = silence_padded(batch)
        rows = [select_samples(params, slice(i, i + 1)) for i in range(len(signal))]
        kernel = self._recorded(params) if self._impulses else torch.cat([self._synthetic(row) for row in rows])
        echoing = ops.convolve(signal, kernel.to(signal), length)
        return with_signal(batch, torch.where(ops.column(params["on"], signal) > 0, echoing, signal))

    def _synthetic(self, params: Params) -> Float[Tensor, "1 1 k"]:
        k = round(self.decay_seconds[1] * self.rate_hz)
        noise = ops.white_noise(params["seed"], 1, k, torch.device("cpu"))
        seconds = torch.arange(k) / self.rate_hz
        tail = noise * 10.0 ** (-3 * seconds / ops.column(params["decay_seconds"], noise))
        tail[..., 0] = 0.0
        wet = ops.column(10.0 ** (params["wet_db"] / 20), noise)
        kernel = tail * (wet / ops.energy(tail).sqrt())
        kernel[..., 0] = 1.0
        return kernel

    def _recorded(self, params: Params) -> Float[Tensor, "b 1 k"]:
        chosen = [self._impulses[i] for i in params["impulse"].tolist()]
        k = max(c.shape[-1] for c in self._impulses)
        return torch.stack([torch.nn.functional.pad(c, (0, k - c.shape[-1])) for c in chosen])
