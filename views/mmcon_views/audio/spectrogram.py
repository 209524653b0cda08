"""View generators on log-mel spectrograms: masks, warps, crops, fades and mixing.

The layout of batches is that of `mmcon_views.audio.log_mel`. Only real frames change; padding stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mmcon.errors import ConfigError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import signal as operations
from mmcon_views.audio.log_mel import spectrogram_parts, sum_of_rows
from mmcon_views.audio.waveform import Range, to


@final
@register_view("audio/spec-augment", modality="audio")
class SpecAugment(ViewGenerator):
    """SpecAugment: time warping, and masks over bands and over frames.

    Park et al. 2019 (arXiv 1904.08779), with their names of the settings in brackets. The warp is piecewise linear
    along time (the paper's image warp moves one point of the middle line, which is the same but at the rim).

    Args:
        warp: most frames that the anchor moves (W); 0 for none.
        bands: widest mask over bands (F).
        band_masks: how many (m_F).
        frames: widest mask over frames (T).
        frame_masks: how many (m_T).
        most_share: a mask over frames covers at most so much of the real frames (p).
        fill: what masks hold; 0 is the mean of standardised spectrograms, "mean" the sample's own mean.

    >>> view = SpecAugment(bands=8, frames=10)
    >>> batch = {"log_mel": torch.randn(2, 1, 64, 100), "length": torch.tensor([100, 60])}
    >>> view.apply(batch, view.draw(mmcon.keys(sample=[1, 2]), {"length": batch["length"]}))["log_mel"].shape
    torch.Size([2, 1, 64, 100])
    """

    modality: ClassVar[str] = "audio"

    def __init__(
        self,
        *,
        warp: int = 0,
        bands: int = 15,
        band_masks: int = 1,
        frames: int = 35,
        frame_masks: int = 1,
        most_share: float = 1.0,
        fill: float | Literal["mean"] = "mean",
    ) -> None:
        self.warp, self.bands, self.band_masks = warp, bands, band_masks
        self.frames, self.frame_masks, self.most_share, self.fill = frames, frame_masks, most_share, fill

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw widths in bands and frames, and places as shares of the room that a mask has."""
        f, t = (self.band_masks,), (self.frame_masks,)
        return {
            "warp": keys.uniform("warp", -float(self.warp), float(self.warp)),
            "anchor": keys.uniform("anchor"),
            "band_width": keys.uniform("band width", 0.0, float(self.bands), shape=f),
            "band_place": keys.uniform("band place", shape=f),
            "frame_width": keys.uniform("frame width", 0.0, float(self.frames), shape=t),
            "frame_place": keys.uniform("frame place", shape=t),
        }

    def apply(self, batch: Any, params: Params) -> Any:
        """Warp, then mask."""
        x, length = spectrogram_parts(batch)
        if self.warp:
            x = warp_time(x, length, to(params["anchor"], x), to(params["warp"], x), self.warp)
        n = length[:, None]
        width = torch.minimum(to(params["frame_width"], x), n * self.most_share)
        over_frames = spans(width, to(params["frame_place"], x), n, x.shape[-1]) & operations.valid(length, x.shape[-1])
        all_bands = torch.full_like(n, x.shape[-2])
        over_bands = spans(to(params["band_width"], x), to(params["band_place"], x), all_bands, x.shape[-2])
        real = operations.valid(length, x.shape[-1])[:, None, None]
        mask = (over_frames[:, None, None] | over_bands[:, None, :, None]) & real
        if self.fill == "mean":
            count = (length * x.shape[1] * x.shape[2]).clamp(min=1)[:, None, None, None]
            mean = sum_of_rows(torch.where(real, x, 0.0)) / count
            return {**batch, "log_mel": torch.where(mask, mean, x)}
        return {**batch, "log_mel": x.masked_fill(mask, float(self.fill))}


def spans(width: Tensor, place: Tensor, room: Tensor, size: int) -> Tensor:
    """Which positions lie in any of a row's spans, `b size`; as torchaudio rounds: whole start, whole width."""
    start = (place * (room - width).clamp(min=0)).long()[..., None]
    at = torch.arange(size, device=width.device)
    return ((at >= start) & (at < start + width.long()[..., None])).any(1)


def warp_time(x: Tensor, length: Tensor, anchor: Tensor, by: Tensor, most: int) -> Tensor:
    """Move an anchor frame along time and stretch both sides to it, by linear interpolation; rows too short stay."""
    room = length - 2 * most
    from_ = most + anchor * room.clamp(min=0)
    to_ = from_ + by * (room > 0)
    at, last = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype), (length - 1).clamp(min=0)[:, None]
    f, g = from_[:, None], to_[:, None]
    early = at * f / g.clamp(min=1e-3)
    late = f + (at - g) * (last - f) / (last - g).clamp(min=1e-3)
    source = torch.where((room > 0)[:, None], torch.where(at < g, early, late), at.expand(len(x), -1))
    inside = operations.valid(length, x.shape[-1])
    source = torch.minimum(source.clamp(min=0), last)
    left = source.floor().long()
    right = torch.minimum(left + 1, last)

    def frames(i: Tensor) -> Tensor:
        return x.gather(-1, i[:, None, None].expand_as(x))

    warped = torch.lerp(frames(left), frames(right), (source - left)[:, None, None])
    return torch.where(inside[:, None, None], warped, x)


@final
@register_view("audio/resize-crop", modality="audio")
class ResizeCrop(ViewGenerator):
    """BYOL-A's random resize crop: a box of a canvas that is wider than the spectrogram, brought back to its size.

    Niizumi et al. 2021. The canvas holds the real frames in its middle and zeros (the mean) around. Interpolation is
    bicubic with corners aligned; ours looks beyond the box at its rim, where the released code repeats the rim.

    Args:
        canvas: how many times as long the canvas is as the real frames.
        band_scale: range of the box's height, as a share of the bands.
        frame_scale: range of the box's length, as a share of the real frames.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, canvas: float = 1.5, band_scale: Range = (0.6, 1.5), frame_scale: Range = (0.6, 1.5)) -> None:
        self.canvas, self.band_scale, self.frame_scale = canvas, band_scale, frame_scale

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the box: sizes as shares, places as shares of the room."""
        return {
            "height": keys.uniform("height", *self.band_scale).clamp(max=1.0),
            "width": keys.uniform("width", *self.frame_scale).clamp(max=self.canvas),
            "top": keys.uniform("top"),
            "left": keys.uniform("left"),
        }

    def apply(self, batch: Any, params: Params) -> Any:
        """Interpolate within the real frames of each row."""
        x, length = spectrogram_parts(batch)
        f, t = x.shape[-2:]
        height, width, top, left = (to(params[name], x)[:, None] for name in ("height", "width", "top", "left"))
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
        real = operations.valid(length, t)[:, None, None]
        # Padding is made zero first, so that a box that leaves the real frames meets the canvas.
        sampled = torch.nn.functional.grid_sample(torch.where(real, x, 0.0), grid, "bicubic", "zeros", True)
        return {**batch, "log_mel": torch.where(real, sampled, x)}


@final
@register_view("audio/fader", modality="audio")
class Fader(ViewGenerator):
    """BYOL-A v2's random linear fader: a slope of loudness over the real frames, on a log-mel spectrogram.

    Args:
        gain: range of the values added at the first and at the last frame (natural logarithm of power).
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, gain: Range = (-1.0, 1.0)) -> None:
        self.gain = gain

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the gain at both ends."""
        return {"head": keys.uniform("head", *self.gain), "tail": keys.uniform("tail", *self.gain)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the slope."""
        x, length = spectrogram_parts(batch)
        head, tail = to(params["head"], x)[:, None], to(params["tail"], x)[:, None]
        share = torch.arange(x.shape[-1], device=x.device) / (length - 1).clamp(min=1)[:, None]
        slope = (head + (tail - head) * share) * operations.valid(length, x.shape[-1])
        return {**batch, "log_mel": x + slope[:, None, None]}


@final
@register_view("audio/mixup-memory", modality="audio")
class MixupMemory(ViewGenerator):
    """BYOL-A's log-mixup-exp with a memory of past samples: log((1 − λ) eˣ + λ eᶻ), λ = α·U(0, 1).

    Its scope is stateful: the memory lives in the training process (each process has its own, of its own rows) and is
    part of a checkpoint through `state_dict`. The first batch meets an empty memory and stays as it is. A whole batch
    is mixed with what was there before it, where the released code goes sample by sample.

    Args:
        alpha: the largest share of the other sample.
        size: how many past samples are kept, first in, first out.
    """

    modality: ClassVar[str] = "audio"
    scope: ClassVar[Any] = "stateful"

    def __init__(self, *, alpha: float = 0.4, size: int = 2048) -> None:
        self.alpha, self.size = alpha, size
        self._memory: Tensor | None = None

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the share, and which of the memory as a share of what it holds."""
        return {"share": keys.uniform("share", 0.0, self.alpha), "which": keys.uniform("which")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Mix, then remember the unmixed batch."""
        x, length = spectrogram_parts(batch)
        out, held = x, self._memory
        real = operations.valid(length, x.shape[-1])[:, None, None]
        if held is not None:
            if held.shape[1:] != x.shape[1:]:
                raise ConfigError(
                    "audio/mixup-memory", expected=f"views of shape {tuple(held.shape[1:])}", got=str(tuple(x.shape))
                )
            which = (params["which"].to(held.device) * len(held)).long()
            share = to(params["share"], x)[:, None, None, None].clamp(min=1e-12)
            mixed = torch.logaddexp(x + torch.log1p(-share), held[which].to(x) + share.log())
            out = torch.where(real, mixed, x)
        # Beyond a row's real frames the memory holds silence, the logarithm of nothing.
        unmixed = torch.where(real, x.detach(), -torch.inf)
        past = unmixed if held is None else torch.cat([held.to(x), unmixed])
        self._memory = past[-self.size :].clone()
        return {**batch, "log_mel": out}

    def state_dict(self) -> dict[str, Tensor]:
        """The memory."""
        return {} if self._memory is None else {"memory": self._memory}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put a memory back."""
        self._memory = state.get("memory")
