"""What a batch of waveforms is, and the window that is cut out of a recording.

    window = mmcon.create_view("audio/crop", window_seconds=2.0)     # decodes only the span that it draws

Views of waveforms take and give `{"signal": b c t, "length": b}`, or a plain `b c t` of full rows. Batches stay as wide
as they are; `length` says how much of each row is real. Whatever stands beyond it is never heard, and comes out as
silence.

A draw that leaves a sample alone (with probability 1 − p) draws the neutral value: 0 dB, tempo 1, an infinite SNR; so
parameters always say what happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator, collate
from mmcon_views.audio import signal as operations

Range = tuple[float, float]


def parts_of(batch: Any) -> tuple[Tensor, Tensor]:
    """The signal `b c t` and the lengths `b` of a batch."""
    if isinstance(batch, Mapping):
        return batch["signal"], batch["length"]
    if batch.dim() != 3:
        got = f"shape {tuple(batch.shape)}"
        raise InputError("audio views", expected="a signal `b c t`", got=got, fix="signal[:, None] adds the channel")
    return batch, torch.full((len(batch),), batch.shape[-1], device=batch.device)


def sounding(batch: Any) -> tuple[Tensor, Tensor]:
    """As `parts_of`, with silence beyond the lengths, so that no operation hears what stands there."""
    signal, length = parts_of(batch)
    return operations.silence_padding(signal, length), length


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
        return views if isinstance(batch, list | tuple) else collate(views)

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

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The lengths of the windows."""
        full = torch.full_like(meta["length"], self.window)
        length = full if self.pad == "loop" else torch.minimum(meta["length"], full)
        return {**meta, "length": length, "width": full}

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """`time`: where the window begins, in seconds."""
        return {"time": params["start"] / self.rate_hz}
