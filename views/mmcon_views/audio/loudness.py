"""How loud a sound is, and what else is heard with it: gain, polarity, clipping, fades, noise, background.

noisy = mmcon.create_view("audio/noise", snr_db=(5.0, 20.0))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media import AudioFormat, open_audio
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import signal as operations
from mmcon_views.audio.waveform import Range, drawn, like, sounding, to


@final
@register_view("audio/gain", modality="audio")
class Gain(ViewGenerator):
    """Loudness by so many dB."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, gain_db: Range = (-12.0, 12.0), p: float = 1.0) -> None:
        self.gain_db, self.p = gain_db, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the gain, dB."""
        return {"gain_db": drawn(keys, "gain", self.gain_db, self.p, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Multiply."""
        return like(batch, operations.amplify(sounding(batch)[0], params["gain_db"]))


@final
@register_view("audio/polarity", modality="audio")
class Polarity(ViewGenerator):
    """The waveform upside down, with probability p."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the sign."""
        return {"sign": 1 - 2 * keys.bernoulli("on", self.p).long()}

    def apply(self, batch: Any, params: Params) -> Any:
        """Multiply by the sign."""
        signal, _ = sounding(batch)
        return like(batch, signal * operations.column(params["sign"], signal))


@final
@register_view("audio/clipping", modality="audio")
class Clipping(ViewGenerator):
    """The loudest parts cut, at so many dB below the peak."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, level_db: Range = (-12.0, 0.0), p: float = 1.0) -> None:
        self.level_db, self.p = level_db, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the level, dB beside the peak."""
        return {"level_db": drawn(keys, "level", self.level_db, self.p, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Clamp."""
        return like(batch, operations.clip(sounding(batch)[0], params["level_db"]))


@final
@register_view("audio/fade", modality="audio")
class Fade(ViewGenerator):
    """Fading in and out, each over a random share of the length up to `max_share`.

    Args:
        max_share: of the real length, at each end.
        shape: linear, exponential, logarithmic, quarter_sine or half_sine, as torchaudio defines them.
        p: the probability of any fading.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, max_share: float = 0.5, shape: str = "linear", p: float = 1.0) -> None:
        if shape not in operations._SHAPES:
            raise InputError("audio/fade", expected=f"a shape among {sorted(operations._SHAPES)}", got=repr(shape))
        self.max_share, self.shape, self.p = max_share, shape, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw both ramps, as shares of the real length."""
        on = keys.bernoulli("on", self.p)
        return {name: keys.uniform(name, 0.0, self.max_share) * on for name in ("fade_in", "fade_out")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Multiply by the ramps."""
        signal, length = sounding(batch)
        rising, falling = (to((length.cpu() * params[name].cpu()).long(), signal) for name in ("fade_in", "fade_out"))
        return like(batch, operations.fade(signal, rising, falling, length, self.shape))


@final
@register_view("audio/noise", modality="audio")
class Noise(ViewGenerator):
    """Noise at a signal-to-noise ratio in dB.

    Args:
        snr_db: range of the ratio, over the real part of a row. Silence stays silent.
        slope_db: range of the spectrum's tilt in dB an octave: 0 white, −3 pink, −6 brown, +3 blue.
        p: the probability of any noise.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, snr_db: Range = (5.0, 30.0), slope_db: Range = (0.0, 0.0), p: float = 1.0) -> None:
        self.snr_db, self.slope_db, self.p = snr_db, slope_db, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the ratio, the tilt and the seed from which the noise is expanded where it is applied."""
        snr = drawn(keys, "snr", self.snr_db, self.p, math.inf)
        return {"snr_db": snr, "slope_db": keys.uniform("slope", *self.slope_db), "seed": keys.bits("seed")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the noise."""
        signal, length = sounding(batch)
        field = operations.white_noise(params["seed"], signal.shape[1], signal.shape[2], signal.device)
        if self.slope_db != (0.0, 0.0):
            field = operations.coloured(field, params["slope_db"])
        return like(batch, operations.add_noise(signal, field, params["snr_db"], length))


@final
@register_view("audio/cola-noise", modality="audio")
class ColaNoise(ViewGenerator):
    """White noise of a given standard deviation on every view but the first, as in COLA."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, std: float = 0.001) -> None:
        self.std = std

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """The first view of a sample draws an amplitude of 0."""
        return {"std": self.std * (keys.fields[:, 4] > 0).double(), "seed": keys.bits("seed")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the noise to the real part."""
        signal, length = sounding(batch)
        field = operations.white_noise(params["seed"], signal.shape[1], signal.shape[2], signal.device)
        return like(
            batch, signal + operations.silence_padding(field, length) * operations.column(params["std"], signal)
        )


@final
@register_view("audio/background", modality="audio")
class Background(ViewGenerator):
    """A span of a background recording, mixed in at a signal-to-noise ratio in dB.

    The recordings are a bank that the generator owns, so that its scope stays `sample`: which one, and which span, is
    named by the key and by nothing else in the batch. Shorter recordings repeat.

    Args:
        recordings: a folder of audio files, or paths.
        snr_db: range of the ratio.
        rate_hz: the rate that they are brought to.
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
        """Draw the recording, where in it the span begins, and the ratio."""
        which = keys.choice("recording", len(self._sounds))
        lengths = torch.tensor([self._sounds[i].facts["length"] for i in which.tolist()])
        start = keys.integers("start", 0, lengths.clamp(min=1))
        return {"recording": which, "start": start, "snr_db": drawn(keys, "snr", self.snr_db, self.p, math.inf)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Decode the spans and mix them in."""
        signal, length = sounding(batch)
        pairs = zip(params["recording"].tolist(), params["start"].tolist(), strict=True)
        spans = torch.stack([self._span(i, start, signal.shape[-1]) for i, start in pairs]).to(signal)
        return like(batch, operations.add_noise(signal, spans.expand_as(signal), params["snr_db"], length))

    def _span(self, which: int, start: int, t: int) -> Tensor:
        sound = self._sounds[which]
        if start + t <= sound.facts["length"]:
            return sound.decode(start, t)
        whole = sound.decode()
        return whole.roll(-start, -1).repeat(1, math.ceil(t / whole.shape[-1]))[:, :t]
