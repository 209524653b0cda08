"""Random crops of recordings: a window of fixed length; only that span is decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator, collate
from mmcon_views.audio.waveform import signal_and_length


@final
@register_view("audio/crop", modality="audio")
class WaveformCrop(ViewGenerator):
    """A window of fixed length at a random position of a recording; only that span is decoded.

    Shorter recordings are repeated, or padded at the end with zeros (`length` is the number of real samples).

    Args:
        window_seconds: the length of the view.
        rate_hz: the sample rate; handles must have it.
        position: "random", "start" or "center".
        pad: "zero" or "loop".
        normalize: "clip" divides by the L2 norm of the whole recording, which is then completely decoded; or "none".

    >>> view = WaveformCrop(window_seconds=0.5, rate_hz=16_000)
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
        position: Literal["random", "start", "center"] = "random",
        pad: Literal["zero", "loop"] = "zero",
        normalize: Literal["none", "clip"] = "none",
    ) -> None:
        self.window, self.rate_hz = round(window_seconds * rate_hz), rate_hz
        self.position, self.pad, self.normalize = position, pad, normalize
        if self.window < 1:
            raise InputError("audio/crop", expected="a window of a sample or more", got=f"{window_seconds} s")

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `start`, `b` int64, in samples."""
        if "rate_hz" in meta and bool((meta["rate_hz"] != self.rate_hz).any()):
            raise InputError(
                "audio/crop",
                expected=f"audio at {self.rate_hz} Hz",
                got=f"{sorted(set(meta['rate_hz'].tolist()))} Hz",
                fix="pass the same rate_hz to the source and the views",
            )
        room = (meta["length"] - self.window).clamp(min=0)
        starts = {"random": keys.integers("start", 0, room + 1), "start": 0 * room, "center": room // 2}
        return {"start": starts[self.position]}

    def apply(self, batch: Any, params: Params) -> Any:
        """Decode the windows; each is `{"signal": c t, "length": scalar}`."""
        if isinstance(batch, Mapping | Tensor):
            samples: Any = [s[:, : int(n)] for s, n in zip(*signal_and_length(batch), strict=True)]
        else:
            samples = batch
        views = [self._one(sample, int(start)) for sample, start in zip(samples, params["start"], strict=True)]
        return views if isinstance(batch, list | tuple) else collate(views)

    def _one(self, sample: Any, start: int) -> dict[str, Shaped[Tensor, "..."]]:
        if isinstance(sample, Tensor) and sample.dim() != 2:
            got = f"shape {tuple(sample.shape)}"
            raise InputError("audio/crop", expected="a sound `c t`", got=got, fix="sound[None] adds the channel")
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
            raise DataError(f"audio {getattr(sample, 'id', '')!r}", expected="at least one sample", got="none")
        if self.normalize == "clip":
            span = span / whole.square().sum().sqrt().clamp(min=1e-12)
        missing = self.window - span.shape[-1]
        length = span.shape[-1]
        if missing and self.pad == "loop":
            span, length = span.repeat(1, math.ceil(self.window / length))[:, : self.window], self.window
        elif missing:
            span = torch.nn.functional.pad(span, (0, missing))
        # A part of a whole recording is copied, so that the rest of it is freed; what was decoded for it is its own.
        from_file = isinstance(getattr(sample, "source", None), str | Path | bytes)
        span = span if from_file and span is whole and span.is_contiguous() else span.clone()
        return {"signal": span, "length": torch.tensor(length)}

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The lengths and the width of the windows."""
        full = torch.full_like(meta["length"], self.window)
        length = full if self.pad == "loop" else torch.minimum(meta["length"], full)
        return {**meta, "length": length, "width": full}

    def columns(self, meta: Meta, params: Params) -> dict[str, Float[Tensor, " b"]]:
        """`time`: the start of the window, in seconds."""
        return {"time": params["start"] / self.rate_hz}
