"""Second-order low-pass, high-pass and band-pass filters."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.waveform import Range, silence_padded, with_signal


@final
class PassFilter(ViewGenerator):
    """A second-order filter with a log-uniformly drawn cutoff for each sample.

    Args:
        kind: "low", "high" or "band".
        cutoff_hz: bounds of the cutoff, or of the center of a band.
        q: the quality factor; 0.707 is flat.
        rate_hz: the sample rate.
        p: the probability of any filter.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, kind: str, *, cutoff_hz: Range, q: float, rate_hz: int, p: float) -> None:
        if not 0 < cutoff_hz[0] <= cutoff_hz[1] < rate_hz / 2:
            expected = f"cutoffs above 0 and below {rate_hz / 2:g} Hz"
            raise InputError(f"audio/{kind}-pass", expected=expected, got=str(cutoff_hz), fix="lower cutoff_hz")
        self.kind, self.cutoff_hz, self.q, self.rate_hz, self.p = kind, cutoff_hz, q, rate_hz, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `cutoff_hz`; 0 means no filter."""
        cutoff = keys.log_uniform("cutoff", *self.cutoff_hz)
        return {"cutoff_hz": torch.where(keys.bernoulli("on", self.p), cutoff, 0.0)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Filter."""
        signal, length = silence_padded(batch)
        cutoff = params["cutoff_hz"].to(signal.device)
        rows = cutoff.clamp(min=1.0).split(1)
        b, a = (
            torch.cat(c) for c in zip(*(ops.pass_filter(self.kind, r, self.rate_hz, self.q) for r in rows), strict=True)
        )
        filtered = ops.biquad(signal, b, a, length)
        return with_signal(batch, torch.where(ops.column(cutoff, signal) > 0, filtered, signal))


@register_view("audio/low-pass", modality="audio")
def low_pass(*, cutoff_hz: Range = (1_000.0, 7_500.0), q: float = 0.707, rate_hz: int = 16_000, p: float = 1.0) -> Any:
    """A second-order low-pass filter with a log-uniformly drawn cutoff."""
    return PassFilter("low", cutoff_hz=cutoff_hz, q=q, rate_hz=rate_hz, p=p)


@register_view("audio/high-pass", modality="audio")
def high_pass(*, cutoff_hz: Range = (20.0, 1_000.0), q: float = 0.707, rate_hz: int = 16_000, p: float = 1.0) -> Any:
    """A second-order high-pass filter with a log-uniformly drawn cutoff."""
    return PassFilter("high", cutoff_hz=cutoff_hz, q=q, rate_hz=rate_hz, p=p)


@register_view("audio/band-pass", modality="audio")
def band_pass(*, center_hz: Range = (200.0, 4_000.0), q: float = 0.707, rate_hz: int = 16_000, p: float = 1.0) -> Any:
    """A second-order band-pass filter (peak gain 1) with a log-uniformly drawn center."""
    return PassFilter("band", cutoff_hz=center_hz, q=q, rate_hz=rate_hz, p=p)
