"""What a batch of waveforms is, and the window that is cut out of a recording.

    window = mmcon.create_view("audio/crop", window_seconds=2.0)     # decodes only the span that it draws

Views of waveforms take and give `{"signal": b c t, "length": b}`, or a plain `b c t` of full rows. Batches stay as wide
as they are; `length` says how much of each row is real. Whatever stands beyond it is never heard, and comes out as
silence.

A draw that leaves a sample alone (with probability 1 − p) draws the neutral value: 0 dB, tempo 1, an infinite SNR; so
parameters always say what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon_views.audio import waveform_ops as ops

Range = tuple[float, float]


def signal_and_length(batch: Any) -> tuple[Tensor, Tensor]:
    """The signal `b c t` and the lengths `b` of a batch."""
    if isinstance(batch, Mapping):
        return batch["signal"], batch["length"]
    if batch.dim() != 3:
        got = f"shape {tuple(batch.shape)}"
        raise InputError("audio views", expected="a signal `b c t`", got=got, fix="signal[:, None] adds the channel")
    return batch, torch.full((len(batch),), batch.shape[-1], device=batch.device)


def silence_padded(batch: Any) -> tuple[Tensor, Tensor]:
    """As `signal_and_length`, with silence beyond the lengths, so that no operation hears what stands there."""
    signal, length = signal_and_length(batch)
    return ops.silence_padding(signal, length), length


def with_signal(batch: Any, signal: Tensor, length: Tensor | None = None) -> Any:
    """A batch of the same form with another signal; one whose lengths changed is a mapping."""
    if length is not None:
        return {**(batch if isinstance(batch, Mapping) else {}), "signal": signal, "length": length}
    return {**batch, "signal": signal} if isinstance(batch, Mapping) else signal


def on_device_of(value: Tensor, like: Tensor) -> Tensor:
    """A parameter on the device of a signal, in its own type but for float64."""
    return value.to(like.device, torch.float32) if value.dtype == torch.float64 else value.to(like.device)


def uniform_or_neutral(keys: Keys, name: str, values: Range, p: float, neutral: float) -> Tensor:
    """Uniform draws with probability p, else the neutral value, `b` float64."""
    return torch.where(keys.bernoulli("on", p), keys.uniform(name, *values), neutral)
