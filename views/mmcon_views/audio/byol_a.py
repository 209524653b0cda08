"""BYOL-A: log-mel views with mixup from a memory, random resize crop and, in version 2, a random linear fader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import ConfigError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Chain, Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.crop import WaveformCrop
from mmcon_views.audio.log_mel import LogMel, Standardize, log_mel_and_length
from mmcon_views.audio.waveform import Range, on_device_of


@register_view("audio/byol-a", modality="audio")
def byol_a(*, mean: float = -5.0, std: float = 4.5, version: Literal[1, 2] = 1) -> Chain:
    """BYOL-A (Niizumi et al. 2021): 0.95 s as log-mel 64 × 96, mixup with a memory, a random resize crop.

    Log-mels are standardized before these operations, with the mean and std of the data (measure yours), and again
    after them. Deviation: the second standardization uses the statistics of each sample, not of the batch, so that a
    view does not depend on its batch.
    """
    fader = [("fader", Fader())] if version == 2 else []
    return Chain(
        ("crop", WaveformCrop(window_seconds=0.95)),
        ("log-mel", LogMel(bands=64, window=1024, hop=160, fft=1024, low_hz=60.0, high_hz=7_800.0, floor=1e-7)),
        ("before", Standardize(mean=mean, std=std)),
        ("mixup", MixupMemory(alpha=0.4)),
        ("resize-crop", ResizeCrop()),
        *fader,
        ("after", Standardize()),
        name="audio/byol-a" if version == 1 else "audio/byol-a-v2",
    )


@register_view("audio/byol-a-v2", modality="audio")
def byol_a_v2(*, mean: float = -5.0, std: float = 4.5) -> Chain:
    """BYOL-A v2 (Niizumi et al. 2022): audio/byol-a with a random linear fader."""
    return byol_a(mean=mean, std=std, version=2)


@final
@register_view("audio/resize-crop", modality="audio")
class ResizeCrop(ViewGenerator):
    """BYOL-A's random resize crop: a box of a canvas that is longer than the spectrogram, resized to the spectrogram.

    Niizumi et al. 2021. The canvas has the real frames at its center and zeros (the mean) around them. Interpolation is
    bicubic with aligned corners. Deviation: interpolation at the edge of the box reads beyond the box; the released
    code replicates the edge.

    Args:
        canvas: length of the canvas over the number of real frames.
        band_scale: bounds of the box's height, as a fraction of the bands.
        frame_scale: bounds of the box's length, as a fraction of the real frames.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, canvas: float = 1.5, band_scale: Range = (0.6, 1.5), frame_scale: Range = (0.6, 1.5)) -> None:
        self.canvas, self.band_scale, self.frame_scale = canvas, band_scale, frame_scale

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the box: sizes as fractions, and positions as fractions of the free space."""
        return {
            "height": keys.uniform("height", *self.band_scale).clamp(max=1.0),
            "width": keys.uniform("width", *self.frame_scale).clamp(max=self.canvas),
            "top": keys.uniform("top"),
            "left": keys.uniform("left"),
        }

    def apply(self, batch: Any, params: Params) -> Any:
        """Crop and interpolate within the real frames of each row."""
        x, length = log_mel_and_length(batch)
        f, t = x.shape[-2:]
        height, width, top, left = (
            on_device_of(params[name], x)[:, None] for name in ("height", "width", "top", "left")
        )
        n = length[:, None].to(x.dtype)
        h = (height * f).floor().clamp(min=1)
        w = torch.maximum((width * n).floor(), torch.ones_like(n))
        v = (self.canvas * n).floor()
        first_band = (top * (f - h + 1)).floor()
        first_frame = (left * (v - w + 1)).floor() - ((v - n) / 2).floor()
        bands = first_band + torch.arange(f, device=x.device) * (h - 1) / max(1, f - 1)
        frames = first_frame + torch.arange(t, device=x.device) * (w - 1) / (n - 1).clamp(min=1)
        grid = torch.stack(
            [
                (2 * frames / max(1, t - 1) - 1)[:, None, :].expand(-1, f, -1),
                (2 * bands / max(1, f - 1) - 1)[:, :, None].expand(-1, -1, t),
            ],
            -1,
        )
        real = ops.valid(length, t)[:, None, None]
        # Padding is set to zero first, since the canvas is zero outside of the real frames.
        sampled = torch.nn.functional.grid_sample(torch.where(real, x, 0.0), grid, "bicubic", "zeros", True)
        return {**batch, "log_mel": torch.where(real, sampled, x)}


@final
@register_view("audio/fader", modality="audio")
class Fader(ViewGenerator):
    """BYOL-A v2's random linear fader: a linear change of loudness over the real frames of a log-mel spectrogram.

    Args:
        gain: bounds of the values added at the first and at the last frame (natural logarithm of power).
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, gain: Range = (-1.0, 1.0)) -> None:
        self.gain = gain

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `head` and `tail`, the gains at both ends."""
        return {"head": keys.uniform("head", *self.gain), "tail": keys.uniform("tail", *self.gain)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the linear gain."""
        x, length = log_mel_and_length(batch)
        head, tail = on_device_of(params["head"], x)[:, None], on_device_of(params["tail"], x)[:, None]
        share = torch.arange(x.shape[-1], device=x.device) / (length - 1).clamp(min=1)[:, None]
        slope = (head + (tail - head) * share) * ops.valid(length, x.shape[-1])
        return {**batch, "log_mel": x + slope[:, None, None]}


@final
@register_view("audio/mixup-memory", modality="audio")
class MixupMemory(ViewGenerator):
    """BYOL-A's log-mixup-exp with a memory of past samples: log((1 − λ) eˣ + λ eᶻ), λ = α·U(0, 1).

    Its scope is stateful: the memory is in the training process (each rank has a memory of its own samples), and
    checkpoints contain it through `state_dict`. The first batch is not mixed. Deviation: a batch is mixed with the
    memory before that batch; the released code mixes and stores sample by sample.

    Args:
        alpha: the largest weight of the past sample.
        size: the number of past samples that are kept, first in, first out.
    """

    modality: ClassVar[str] = "audio"
    scope: ClassVar[Any] = "stateful"

    def __init__(self, *, alpha: float = 0.4, size: int = 2048) -> None:
        self.alpha, self.size = alpha, size
        self._memory: Tensor | None = None

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `share` (λ) and `which`, a fraction of the memory."""
        return {"share": keys.uniform("share", 0.0, self.alpha), "which": keys.uniform("which")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Mix, then add the unmixed batch to the memory."""
        x, length = log_mel_and_length(batch)
        out, held = x, self._memory
        real = ops.valid(length, x.shape[-1])[:, None, None]
        if held is not None:
            if held.shape[1:] != x.shape[1:]:
                raise ConfigError(
                    "audio/mixup-memory", expected=f"views of shape {tuple(held.shape[1:])}", got=str(tuple(x.shape))
                )
            which = (params["which"].to(held.device) * len(held)).long()
            share = on_device_of(params["share"], x)[:, None, None, None].clamp(min=1e-12)
            # log((1 - λ) eˣ + λ eᶻ) without the exponentials, which float32 could not hold for large log-mels.
            mixed = torch.logaddexp(x + torch.log1p(-share), held[which].to(x) + share.log())
            out = torch.where(real, mixed, x)
        # Outside of the real frames the memory has silence, the logarithm of 0.
        unmixed = torch.where(real, x.detach(), -torch.inf)
        past = unmixed if held is None else torch.cat([held.to(x), unmixed])
        self._memory = past[-self.size :].clone()
        return {**batch, "log_mel": out}

    def state_dict(self) -> dict[str, Float[Tensor, "k c f t"]]:
        """The memory."""
        return {} if self._memory is None else {"memory": self._memory}

    def load_state_dict(self, state: Mapping[str, Float[Tensor, "k c f t"]]) -> None:
        """Restore the memory."""
        self._memory = state.get("memory")
