"""SpecAugment: time warping, and masks over bands and frames of log-mel spectrograms."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.log_mel import log_mel_and_length, sum_per_sample
from mmcon_views.audio.waveform import on_device_of


@final
@register_view("audio/spec-augment", modality="audio")
class SpecAugment(ViewGenerator):
    """SpecAugment: time warping, and masks over bands and over frames (Park et al. 2019, arXiv 1904.08779).

    Deviation: the warp is piecewise linear along time; the paper's image warp differs from it only at the borders.

    Args:
        warp: the largest displacement of the anchor frame, in frames (the paper's W); 0 for none.
        bands: the widest mask over bands (F).
        band_masks: the number of masks over bands (m_F).
        frames: the widest mask over frames (T).
        frame_masks: the number of masks over frames (m_T).
        max_share: the largest fraction of the real frames that a mask covers (p).
        fill: the masked value; 0 is the mean of standardized spectrograms, "mean" the mean of the sample.

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
        max_share: float = 1.0,
        fill: float | Literal["mean"] = "mean",
    ) -> None:
        self.warp, self.bands, self.band_masks = warp, bands, band_masks
        self.frames, self.frame_masks, self.max_share, self.fill = frames, frame_masks, max_share, fill

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw widths in bands and frames, and positions as fractions of the free space."""
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
        x, length = log_mel_and_length(batch)
        if self.warp:
            x = warp_time(x, length, on_device_of(params["anchor"], x), on_device_of(params["warp"], x), self.warp)
        n = length[:, None]
        width = torch.minimum(on_device_of(params["frame_width"], x), n * self.max_share)
        over_frames = spans(width, on_device_of(params["frame_place"], x), n, x.shape[-1]) & ops.valid(
            length, x.shape[-1]
        )
        all_bands = torch.full_like(n, x.shape[-2])
        over_bands = spans(
            on_device_of(params["band_width"], x), on_device_of(params["band_place"], x), all_bands, x.shape[-2]
        )
        real = ops.valid(length, x.shape[-1])[:, None, None]
        mask = (over_frames[:, None, None] | over_bands[:, None, :, None]) & real
        if self.fill == "mean":
            count = (length * x.shape[1] * x.shape[2]).clamp(min=1)[:, None, None, None]
            mean = sum_per_sample(torch.where(real, x, 0.0)) / count
            return {**batch, "log_mel": torch.where(mask, mean, x)}
        return {**batch, "log_mel": x.masked_fill(mask, float(self.fill))}


# Park et al. 2019, table 1.
POLICIES = {
    "LB": {"warp": 80, "bands": 27, "band_masks": 1, "frames": 100, "frame_masks": 1, "max_share": 1.0},
    "LD": {"warp": 80, "bands": 27, "band_masks": 2, "frames": 100, "frame_masks": 2, "max_share": 1.0},
    "SM": {"warp": 40, "bands": 15, "band_masks": 2, "frames": 70, "frame_masks": 2, "max_share": 0.2},
    "SS": {"warp": 40, "bands": 27, "band_masks": 2, "frames": 70, "frame_masks": 2, "max_share": 0.2},
}


@register_view("audio/spec-augment-policy", modality="audio")
def spec_augment_policy(*, policy: Literal["LB", "LD", "SM", "SS"] = "LB", fill: float = 0.0) -> SpecAugment:
    """SpecAugment with a published policy (for 80 bands): LB, LD, SM or SS."""
    return SpecAugment(**POLICIES[policy], fill=fill)  # pyright: ignore[reportArgumentType]


Spectrogram = Float[Tensor, "b c f t"]


def spans(
    width: Float[Tensor, "b k"], position: Float[Tensor, "b k"], room: Int[Tensor, "b 1"], size: int
) -> Bool[Tensor, "b size"]:
    """The union of each row's spans; start and width are rounded down, as in torchaudio."""
    start = (position * (room - width).clamp(min=0)).long()[..., None]
    at = torch.arange(size, device=width.device)
    return ((at >= start) & (at < start + width.long()[..., None])).any(1)


def warp_time(
    x: Spectrogram, length: Int[Tensor, " b"], anchor: Float[Tensor, " b"], by: Float[Tensor, " b"], most: int
) -> Spectrogram:
    """Displace an anchor frame and stretch both sides by linear interpolation; too short rows are unchanged."""
    room = length - 2 * most
    source_anchor = most + anchor * room.clamp(min=0)
    target_anchor = source_anchor + by * (room > 0)
    at, last = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype), (length - 1).clamp(min=0)[:, None]
    f, g = source_anchor[:, None], target_anchor[:, None]
    early = at * f / g.clamp(min=1e-3)
    late = f + (at - g) * (last - f) / (last - g).clamp(min=1e-3)
    source = torch.where((room > 0)[:, None], torch.where(at < g, early, late), at.expand(len(x), -1))
    inside = ops.valid(length, x.shape[-1])
    source = torch.minimum(source.clamp(min=0), last)
    left = source.floor().long()
    right = torch.minimum(left + 1, last)

    def frames(i: Int[Tensor, "b t"]) -> Spectrogram:
        return x.gather(-1, i[:, None, None].expand_as(x))

    warped = torch.lerp(frames(left), frames(right), (source - left)[:, None, None])
    return torch.where(inside[:, None, None], warped, x)
