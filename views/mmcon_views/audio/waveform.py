"""Batches of waveforms: their layout and padding, and draws with a neutral value.

Waveform views take and return `{"signal": b c t, "length": b}`, or a tensor `b c t` without padding. The width of a
batch does not change; `length` is the number of real samples of each row. Padding is never read, and is silence in the
output.

With probability 1 − p, a draw is the neutral value (0 dB, tempo 1, an infinite SNR), so that the parameters describe
the operation on every sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon_views.audio import waveform_ops as ops

Range = tuple[float, float]


def signal_and_length(batch: Any) -> tuple[Float[Tensor, "b c t"], Int[Tensor, " b"]]:
    """The signal and the lengths of a batch."""
    signal = batch["signal"] if isinstance(batch, Mapping) else batch
    if signal.dim() != 3:
        got = f"shape {tuple(signal.shape)}"
        raise InputError("audio views", expected="a signal `b c t`", got=got, fix="signal[:, None] adds the channel")
    if isinstance(batch, Mapping):
        return signal, batch["length"]
    return signal, torch.full((len(signal),), signal.shape[-1], device=signal.device)


def silence_padded(batch: Any) -> tuple[Float[Tensor, "b c t"], Int[Tensor, " b"]]:
    """As `signal_and_length`, with the padding set to zero."""
    signal, length = signal_and_length(batch)
    return ops.silence_padding(signal, length), length


def with_signal(batch: Any, signal: Float[Tensor, "b c t"], length: Int[Tensor, " b"] | None = None) -> Any:
    """A batch of the same layout with another signal; with changed lengths it is a mapping."""
    if length is not None:
        return {**(batch if isinstance(batch, Mapping) else {}), "signal": signal, "length": length}
    return {**batch, "signal": signal} if isinstance(batch, Mapping) else signal


def on_device_of(value: Shaped[Tensor, "b ..."], like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "b ..."]:
    """A parameter on the device of a signal; float64 becomes float32."""
    return value.to(like.device, torch.float32) if value.dtype == torch.float64 else value.to(like.device)


def uniform_or_neutral(keys: Keys, name: str, values: Range, p: float, neutral: float) -> Float64[Tensor, " b"]:
    """Uniform draws with probability p, else the neutral value."""
    return torch.where(keys.bernoulli("on", p), keys.uniform(name, *values), neutral)
