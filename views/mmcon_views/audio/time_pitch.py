"""Shifts, time masks, speed, tempo and pitch of waveforms."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import phase_vocoder
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.waveform import Range, on_device_of, silence_padded, uniform_or_neutral, with_signal


@final
@register_view("audio/shift", modality="audio")
class Shift(ViewGenerator):
    """A shift in time by at most `max_seconds` in either direction, circular (`wrap`) or padded with silence."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, max_seconds: float = 0.5, wrap: bool = True, rate_hz: int = 16_000, p: float = 1.0) -> None:
        self.max_seconds, self.wrap, self.rate_hz, self.p = max_seconds, wrap, rate_hz, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `by`, in samples; positive is later."""
        most = round(self.max_seconds * self.rate_hz)
        return {"by": keys.integers("by", -most, most + 1) * keys.bernoulli("on", self.p)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Shift the real samples of each row."""
        signal, length = silence_padded(batch)
        return with_signal(batch, ops.shift(signal, on_device_of(params["by"], signal), length, wrap=self.wrap))


@final
@register_view("audio/time-mask", modality="audio")
class TimeMask(ViewGenerator):
    """Silence over a random span of at most `max_share` of the real length."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, max_share: float = 0.125, p: float = 1.0) -> None:
        self.max_share, self.p = max_share, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw width and start as fractions of the length, which may be unknown before `apply`."""
        width = uniform_or_neutral(keys, "width", (0.0, self.max_share), self.p, 0.0)
        return {"width_share": width, "start_share": keys.uniform("start") * (1 - width)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Silence the span."""
        signal, length = silence_padded(batch)
        width = (length.cpu() * params["width_share"].cpu()).long()
        start = (length.cpu() * params["start_share"].cpu()).long()
        return with_signal(batch, ops.silence(signal, on_device_of(start, signal), on_device_of(width, signal)))


@final
@register_view("audio/speed", modality="audio")
class Speed(ViewGenerator):
    """Resampling to another speed, in whole percent; the pitch changes with it."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, percent: tuple[int, int] = (90, 110), p: float = 1.0) -> None:
        self.percent, self.p = percent, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `percent`."""
        drawn_percent = keys.integers("percent", self.percent[0], self.percent[1] + 1)
        return {"percent": torch.where(keys.bernoulli("on", self.p), drawn_percent, 100)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Resample each row; the width is kept, and longer rows are cut."""
        signal, length = silence_padded(batch)
        new = self._length(length.cpu(), params, signal.shape[-1]).to(length)
        return with_signal(batch, phase_vocoder.change_speed(signal, length, params["percent"]), new)

    @staticmethod
    def _length(length: Int[Tensor, " b"], params: Params, most: int | Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        return torch.minimum(torch.as_tensor(most), -(-length * 100 // params["percent"].cpu()))

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Lengths after resampling, at most the width of the rows."""
        return _stretched(meta, lambda n, width: self._length(n, params, width))


@final
@register_view("audio/time-stretch", modality="audio")
class TimeStretch(ViewGenerator):
    """Time stretch: another tempo at the same pitch, by a phase vocoder (quality: see `phase_vocoder`).

    Args:
        tempo: bounds; 2 is twice as fast.
        frame: samples in a frame; 1024 is 64 ms at 16 kHz. Halve it for 8 kHz.
        p: the probability of any change.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, tempo: Range = (0.8, 1.25), frame: int = 1024, p: float = 1.0) -> None:
        self.tempo, self.frame, self.p = tempo, frame, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `tempo`."""
        return {"tempo": uniform_or_neutral(keys, "tempo", self.tempo, self.p, 1.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Stretch; the width is kept, and longer rows are cut."""
        signal, length = silence_padded(batch)
        rate = params["tempo"].cpu()
        played = phase_vocoder.change_tempo_and_pitch(
            signal, length, tempo=rate, semitones=torch.zeros_like(rate), frame=self.frame
        )
        return with_signal(batch, played, phase_vocoder.new_length(length.cpu(), rate, signal.shape[-1]).to(length))

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Lengths after stretching, at most the width of the rows."""
        return _stretched(
            meta, lambda n, width: torch.minimum(torch.ceil(n / params["tempo"].cpu()).long(), torch.as_tensor(width))
        )


@final
@register_view("audio/pitch-shift", modality="audio")
class PitchShift(ViewGenerator):
    """Pitch shift: another pitch at the same tempo, by a phase vocoder (quality: see `phase_vocoder`).

    Args:
        semitones: bounds of the shift.
        frame: samples in a frame; 1024 is 64 ms at 16 kHz. Halve it for 8 kHz.
        p: the probability of any change.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, semitones: Range = (-4.0, 4.0), frame: int = 1024, p: float = 1.0) -> None:
        self.semitones, self.frame, self.p = semitones, frame, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `semitones`."""
        return {"semitones": uniform_or_neutral(keys, "semitones", self.semitones, self.p, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Shift the pitch."""
        signal, length = silence_padded(batch)
        by = params["semitones"].cpu()
        shifted = phase_vocoder.change_tempo_and_pitch(
            signal, length, tempo=torch.ones_like(by), semitones=by, frame=self.frame
        )
        return with_signal(batch, shifted)


def _stretched(meta: Meta, length: Any) -> Meta:
    """Lengths after a change of tempo if the width of the rows is known; else the meta has no length."""
    if "width" in meta:
        return {**meta, "length": length(meta["length"], meta["width"])}
    return {name: fact for name, fact in meta.items() if name != "length"}
