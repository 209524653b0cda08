"""View generators on waveforms. All take and give `{"signal": b c t, "length": b}`, or a plain `b c t` of full rows.

    window = mmcon.create_view("audio/crop", window_seconds=2.0)     # decodes only the span that it draws
    noisy = mmcon.create_view("audio/noise", snr_db=(5.0, 20.0))

A draw that leaves a sample alone (with probability 1 − p) draws the neutral value: 0 dB, tempo 1, an infinite SNR; so
parameters always say what happened. Batches stay as wide as they are; `length` says how much of each row is real, and
nothing is ever written beyond it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media import Sound, SoundContract
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator, stack, take_rows
from views import signal as operations
from views import tempo

Range = tuple[float, float]


def parts_of(batch: Any) -> tuple[Tensor, Tensor]:
    """The signal `b c t` and the lengths `b` of a batch."""
    if isinstance(batch, Mapping):
        return batch["signal"], batch["length"]
    if batch.dim() != 3:
        got = f"shape {tuple(batch.shape)}"
        raise InputError("audio views", expected="a signal `b c t`", got=got, fix="signal[:, None] adds the channel")
    return batch, torch.full((len(batch),), batch.shape[-1], device=batch.device)


def like(batch: Any, signal: Tensor, length: Tensor | None = None) -> Any:
    """A batch of the same form with another signal; one whose lengths changed is a mapping."""
    if length is not None:
        return {**(batch if isinstance(batch, Mapping) else {}), "signal": signal, "length": length}
    return {**batch, "signal": signal} if isinstance(batch, Mapping) else signal


def to(value: Tensor, like: Tensor) -> Tensor:
    """A parameter on the device of a signal, in its own type but for float64."""
    return value.to(like.device, torch.float32) if value.dtype == torch.float64 else value.to(like.device)


def drawn(keys: Keys, name: str, values: Range, p: float, neutral: float) -> Tensor:
    """Uniform draws with probability p, else the neutral value, `b` float64."""
    return torch.where(keys.bernoulli("on", p), keys.uniform(name, *values), neutral)


@final
@register_view("audio/crop", modality="audio")
class Crop(ViewGenerator):
    """A window at a random place of a recording, of which only that span is decoded.

    Shorter recordings are padded at the end, with zeros (then `length` says what is real) or by repeating themselves.

    Args:
        window_seconds: the width of the view.
        rate_hz: the rate of the samples; handles must give it.
        position: "random", "start" or "centre".
        pad: "zero" or "loop".
        normalize: "clip" divides by the L2 norm of the whole recording, which is then decoded whole; or "none".

    >>> view = Crop(window_seconds=0.5, rate_hz=16_000)
    >>> view.apply(torch.randn(2, 1, 16_000), {"start": torch.tensor([0, 8_000])})["signal"].shape
    torch.Size([2, 1, 8000])
    """

    modality: ClassVar[str] = "audio"
    ragged: ClassVar[bool] = True

    def __init__(
        self,
        *,
        window_seconds: float = 2.0,
        rate_hz: int = 16_000,
        position: Literal["random", "start", "centre"] = "random",
        pad: Literal["zero", "loop"] = "zero",
        normalize: Literal["none", "clip"] = "none",
    ) -> None:
        self.window, self.rate_hz = round(window_seconds * rate_hz), rate_hz
        self.position, self.pad, self.normalize = position, pad, normalize
        if self.window < 1:
            raise InputError("audio/crop", expected="a window of a sample or more", got=f"{window_seconds} s")

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw where the window begins, in samples."""
        if "rate_hz" in meta and bool((meta["rate_hz"] != self.rate_hz).any()):
            raise InputError(
                "audio/crop",
                expected=f"sounds at {self.rate_hz} Hz",
                got=f"{sorted(set(meta['rate_hz'].tolist()))} Hz",
                fix="give source and views one rate_hz",
            )
        room = (meta["length"] - self.window).clamp(min=0)
        starts = {"random": keys.integers("start", 0, room + 1), "start": 0 * room, "centre": room // 2}
        return {"start": starts[self.position]}

    def apply(self, batch: Any, params: Params) -> Any:
        """Decode the windows; each is `{"signal": c t, "length": number}`."""
        if isinstance(batch, Mapping):
            samples: Any = [s[:, : int(n)] for s, n in zip(*parts_of(batch), strict=True)]
        else:
            samples = batch
        views = [self._one(sample, int(start)) for sample, start in zip(samples, params["start"], strict=True)]
        return views if isinstance(batch, list | tuple) else stack(views)

    def _one(self, sample: Any, start: int) -> dict[str, Tensor]:
        if isinstance(sample, Tensor):
            total, span = sample.shape[-1], sample[:, start : start + self.window]
            whole = sample
        elif self.normalize == "clip":
            whole = sample.decode()
            total, span = whole.shape[-1], whole[:, start : start + self.window]
        else:
            total = sample.facts["length"]
            span = whole = sample.decode(start, min(self.window, total - start))
        if total == 0:
            raise DataError(f"sound {getattr(sample, 'id', '')!r}", expected="at least one sample", got="none")
        if self.normalize == "clip":
            span = span / whole.square().sum().sqrt().clamp(min=1e-12)
        missing = self.window - span.shape[-1]
        length = span.shape[-1]
        if missing and self.pad == "loop":
            span, length = span.repeat(1, math.ceil(self.window / length))[:, : self.window], self.window
        elif missing:
            span = torch.nn.functional.pad(span, (0, missing))
        return {"signal": span.clone(), "length": torch.tensor(length)}

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """The lengths of the windows."""
        full = torch.full_like(meta["length"], self.window)
        length = full if self.pad == "loop" else torch.minimum(meta["length"], full)
        return {**meta, "length": length, "width": full}

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """`time`: where the window begins, in seconds."""
        return {"time": params["start"] / self.rate_hz}


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
        return like(batch, operations.amplify(parts_of(batch)[0], params["gain_db"]))


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
        signal, _ = parts_of(batch)
        return like(batch, signal * operations.column(params["sign"], signal))


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
        signal, length = parts_of(batch)
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
        signal, length = parts_of(batch)
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
        files = recordings if isinstance(recordings, list | tuple) else sorted(Path(str(recordings)).rglob("*.*"))
        if not files:
            raise DataError("audio/background", expected="recordings", got=f"none in {recordings!r}")
        self.snr_db, self.p = snr_db, p
        self._sounds = [Sound(file, contract=SoundContract(rate_hz=rate_hz)) for file in files]

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the recording, where in it the span begins, and the ratio."""
        which = keys.choice("recording", len(self._sounds))
        lengths = torch.tensor([self._sounds[i].facts["length"] for i in which.tolist()])
        start = keys.integers("start", 0, lengths.clamp(min=1))
        return {"recording": which, "start": start, "snr_db": drawn(keys, "snr", self.snr_db, self.p, math.inf)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Decode the spans and mix them in."""
        signal, length = parts_of(batch)
        pairs = zip(params["recording"].tolist(), params["start"].tolist(), strict=True)
        spans = torch.stack([self._span(i, start, signal.shape[-1]) for i, start in pairs]).to(signal)
        return like(batch, operations.add_noise(signal, spans.expand_as(signal), params["snr_db"], length))

    def _span(self, which: int, start: int, t: int) -> Tensor:
        sound = self._sounds[which]
        if start + t <= sound.facts["length"]:
            return sound.decode(start, t)
        whole = sound.decode()
        return whole.roll(-start, -1).repeat(1, math.ceil(t / whole.shape[-1]))[:, :t]


@final
@register_view("audio/shift", modality="audio")
class Shift(ViewGenerator):
    """The sound moved in time, up to so many seconds either way; what leaves enters at the other end, or is lost."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, max_seconds: float = 0.5, wrap: bool = True, rate_hz: int = 16_000, p: float = 1.0) -> None:
        self.max_seconds, self.wrap, self.rate_hz, self.p = max_seconds, wrap, rate_hz, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the shift, in samples; positive is later."""
        most = round(self.max_seconds * self.rate_hz)
        return {"by": keys.integers("by", -most, most + 1) * keys.bernoulli("on", self.p)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Move the real part of each row."""
        signal, length = parts_of(batch)
        return like(batch, operations.shift(signal, to(params["by"], signal), length, wrap=self.wrap))


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
        signal, length = parts_of(batch)
        rising, falling = (to((length.cpu() * params[name].cpu()).long(), signal) for name in ("fade_in", "fade_out"))
        return like(batch, operations.fade(signal, rising, falling, length, self.shape))


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
        signal, length = parts_of(batch)
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
        files = [] if impulses is None else impulses
        if isinstance(files, str | Path):
            files = sorted(Path(files).rglob("*.*"))
        self._impulses = [Sound(file, contract=SoundContract(rate_hz=rate_hz)).decode() for file in files]

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
        signal, length = parts_of(batch)
        rows = [take_rows(params, slice(i, i + 1)) for i in range(len(signal))]
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
@register_view("audio/speed", modality="audio")
class Speed(ViewGenerator):
    """Played faster or slower, pitch and all; the speed is a whole number of percent."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, percent: tuple[int, int] = (90, 110), p: float = 1.0) -> None:
        self.percent, self.p = percent, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the speed, percent."""
        drawn_percent = keys.integers("percent", self.percent[0], self.percent[1] + 1)
        return {"percent": torch.where(keys.bernoulli("on", self.p), drawn_percent, 100)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Resample each row; rows stay as wide, and what is longer is cut."""
        signal, length = parts_of(batch)
        played = operations.silence_padding(signal, length)
        new = self._length(length.cpu(), params, signal.shape[-1]).to(length)
        return like(batch, tempo.change_speed(played, length, params["percent"]), new)

    @staticmethod
    def _length(length: Tensor, params: Params, most: int | Tensor) -> Tensor:
        return torch.minimum(torch.as_tensor(most), -(-length * 100 // params["percent"].cpu()))

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """Shorter where faster; longer only as far as the row is wide, which only `width` tells before."""
        return _stretched(meta, lambda n, width: self._length(n, params, width))


@final
@register_view("audio/time-stretch", modality="audio")
class TimeStretch(ViewGenerator):
    """Another tempo at the same pitch, by a phase vocoder (see views.tempo for its quality).

    Args:
        tempo: range; 2 is twice as fast.
        frame: samples in a frame; 1024 is 64 ms at 16 kHz. Halve it for 8 kHz.
        p: the probability of any change.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, tempo: Range = (0.8, 1.25), frame: int = 1024, p: float = 1.0) -> None:
        self.tempo, self.frame, self.p = tempo, frame, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the tempo."""
        return {"tempo": drawn(keys, "tempo", self.tempo, self.p, 1.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Stretch; rows stay as wide, and what is longer is cut."""
        signal, length = parts_of(batch)
        rate = params["tempo"].cpu()
        played = tempo.change_tempo_and_pitch(
            signal, length, tempo=rate, semitones=torch.zeros_like(rate), frame=self.frame
        )
        return like(batch, played, tempo.new_length(length.cpu(), rate, signal.shape[-1]).to(length))

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """Shorter where faster; longer only as far as the row is wide."""
        return _stretched(
            meta, lambda n, width: torch.minimum(torch.ceil(n / params["tempo"].cpu()).long(), torch.as_tensor(width))
        )


def _stretched(meta: Meta, length: Any) -> Meta:
    """Lengths after a change of tempo, where the width of the rows is known; else the length is left unsaid."""
    if "width" in meta:
        return {**meta, "length": length(meta["length"], meta["width"])}
    return {name: fact for name, fact in meta.items() if name != "length"}


@final
@register_view("audio/pitch-shift", modality="audio")
class PitchShift(ViewGenerator):
    """Another pitch at the same tempo, by a phase vocoder (see views.tempo for its quality).

    Args:
        semitones: range of the shift.
        frame: samples in a frame; 1024 is 64 ms at 16 kHz. Halve it for 8 kHz.
        p: the probability of any change.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, semitones: Range = (-4.0, 4.0), frame: int = 1024, p: float = 1.0) -> None:
        self.semitones, self.frame, self.p = semitones, frame, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the shift, semitones."""
        return {"semitones": drawn(keys, "semitones", self.semitones, self.p, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Shift."""
        signal, length = parts_of(batch)
        by = params["semitones"].cpu()
        shifted = tempo.change_tempo_and_pitch(
            signal, length, tempo=torch.ones_like(by), semitones=by, frame=self.frame
        )
        return like(batch, shifted)


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
        return like(batch, operations.clip(parts_of(batch)[0], params["level_db"]))


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
        signal, length = parts_of(batch)
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


@final
@register_view("audio/time-mask", modality="audio")
class TimeMask(ViewGenerator):
    """Silence over a random span of up to `max_share` of the real length."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, max_share: float = 0.125, p: float = 1.0) -> None:
        self.max_share, self.p = max_share, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the span's width and place as shares, since the length may be known only where it is applied."""
        width = drawn(keys, "width", (0.0, self.max_share), self.p, 0.0)
        return {"width_share": width, "start_share": keys.uniform("start") * (1 - width)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Silence the span."""
        signal, length = parts_of(batch)
        width = (length.cpu() * params["width_share"].cpu()).long()
        start = (length.cpu() * params["start_share"].cpu()).long()
        return like(batch, operations.silence(signal, to(start, signal), to(width, signal)))
