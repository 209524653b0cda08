"""Noise and background recordings, mixed in at a signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.media import AudioFormat, open_audio
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.waveform import Range, silence_padded, uniform_or_neutral, with_signal


@final
@register_view("audio/noise", modality="audio")
class Noise(ViewGenerator):
    """Noise at a signal-to-noise ratio in dB.

    >>> noisy = mmcon.create_view("audio/noise", snr_db=(5.0, 20.0))

    Args:
        snr_db: bounds of the ratio, over the real samples of a row. Silence stays silent.
        slope_db: bounds of the spectral slope in dB per octave: 0 white, −3 pink, −6 brown, +3 blue.
        p: the probability of any noise.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, snr_db: Range = (5.0, 30.0), slope_db: Range = (0.0, 0.0), p: float = 1.0) -> None:
        self.snr_db, self.slope_db, self.p = snr_db, slope_db, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `snr_db`, `slope_db` and `seed`, from which `apply` makes the noise."""
        snr = uniform_or_neutral(keys, "snr", self.snr_db, self.p, math.inf)
        return {"snr_db": snr, "slope_db": keys.uniform("slope", *self.slope_db), "seed": keys.bits("seed")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the noise."""
        signal, length = silence_padded(batch)
        field = ops.white_noise(params["seed"], signal.shape[1], signal.shape[2], signal.device)
        if self.slope_db != (0.0, 0.0):
            field = ops.color_noise(field, params["slope_db"])
        return with_signal(batch, ops.add_noise(signal, field, params["snr_db"], length))


@final
@register_view("audio/background", modality="audio")
class Background(ViewGenerator):
    """A span of a background recording, added at a signal-to-noise ratio in dB.

    The background recordings are part of the generator, so its scope is `sample`: recording and span depend only on the
    key. Short recordings are repeated.

    Args:
        recordings: a folder of audio files, or paths.
        snr_db: bounds of the ratio.
        rate_hz: the sample rate to which they are resampled.
        p: the probability of any background.
    """

    modality: ClassVar[str] = "audio"

    def __init__(
        self,
        *,
        recordings: str | Path | Sequence[str | Path],
        snr_db: Range = (3.0, 20.0),
        rate_hz: int = 16_000,
        p: float = 1.0,
    ) -> None:
        self.snr_db, self.p = snr_db, p
        self._sounds = open_audio(recordings, audio_format=AudioFormat(rate_hz=rate_hz))

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `recording`, the `start` of the span in samples, and `snr_db`."""
        which = keys.choice("recording", len(self._sounds))
        lengths = torch.tensor([self._sounds[i].facts["length"] for i in which.tolist()])
        start = keys.integers("start", 0, lengths.clamp(min=1))
        return {
            "recording": which,
            "start": start,
            "snr_db": uniform_or_neutral(keys, "snr", self.snr_db, self.p, math.inf),
        }

    def apply(self, batch: Any, params: Params) -> Any:
        """Decode the spans and add them."""
        signal, length = silence_padded(batch)
        pairs = zip(params["recording"].tolist(), params["start"].tolist(), strict=True)
        spans = torch.stack([self._span(i, start, signal.shape[-1]) for i, start in pairs]).to(signal)
        return with_signal(batch, ops.add_noise(signal, spans.expand_as(signal), params["snr_db"], length))

    def _span(self, which: int, start: int, t: int) -> Float[Tensor, "c {t}"]:
        sound = self._sounds[which]
        if start + t <= sound.facts["length"]:
            return sound.decode(start, t)
        whole = sound.decode()
        return whole.roll(-start, -1).repeat(1, math.ceil(t / whole.shape[-1]))[:, :t]
