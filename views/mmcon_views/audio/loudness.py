"""Loudness: gain, polarity, clipping and fades of waveforms."""

from __future__ import annotations

from typing import Any, ClassVar, final

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.waveform import Range, on_device_of, silence_padded, uniform_or_neutral, with_signal


@final
@register_view("audio/gain", modality="audio")
class Gain(ViewGenerator):
    """A drawn gain in dB."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, gain_db: Range = (-12.0, 12.0), p: float = 1.0) -> None:
        self.gain_db, self.p = gain_db, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `gain_db`."""
        return {"gain_db": uniform_or_neutral(keys, "gain", self.gain_db, self.p, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Multiply."""
        return with_signal(batch, ops.amplify(silence_padded(batch)[0], params["gain_db"]))


@final
@register_view("audio/polarity", modality="audio")
class Polarity(ViewGenerator):
    """Invert the sign of the waveform with probability p."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `sign`."""
        return {"sign": 1 - 2 * keys.bernoulli("on", self.p).long()}

    def apply(self, batch: Any, params: Params) -> Any:
        """Multiply by the sign."""
        signal, _ = silence_padded(batch)
        return with_signal(batch, signal * ops.column(params["sign"], signal))


@final
@register_view("audio/clipping", modality="audio")
class Clipping(ViewGenerator):
    """Clip the waveform at a drawn level in dB relative to its peak."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, level_db: Range = (-12.0, 0.0), p: float = 1.0) -> None:
        self.level_db, self.p = level_db, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `level_db`, relative to the peak."""
        return {"level_db": uniform_or_neutral(keys, "level", self.level_db, self.p, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Clip."""
        return with_signal(batch, ops.clip(silence_padded(batch)[0], params["level_db"]))


@final
@register_view("audio/fade", modality="audio")
class Fade(ViewGenerator):
    """A fade in and a fade out, each over a random fraction of the length.

    Args:
        max_share: the largest fraction of the real length, at each end.
        shape: linear, exponential, logarithmic, quarter_sine or half_sine, as in torchaudio.
        p: the probability of any fade.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, max_share: float = 0.5, shape: str = "linear", p: float = 1.0) -> None:
        if shape not in ops.FADE_SHAPES:
            raise InputError("audio/fade", expected=f"a shape among {sorted(ops.FADE_SHAPES)}", got=repr(shape))
        self.max_share, self.shape, self.p = max_share, shape, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `fade_in` and `fade_out`, as fractions of the real length."""
        on = keys.bernoulli("on", self.p)
        return {name: keys.uniform(name, 0.0, self.max_share) * on for name in ("fade_in", "fade_out")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Multiply by the ramps."""
        signal, length = silence_padded(batch)
        rising, falling = (
            on_device_of((length.cpu() * params[name].cpu()).long(), signal) for name in ("fade_in", "fade_out")
        )
        return with_signal(batch, ops.fade(signal, rising, falling, length, self.shape))
