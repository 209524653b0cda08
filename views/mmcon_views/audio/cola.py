"""COLA: two windows of one normalized clip, with noise on the second."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

from mmcon.random import FIELDS, Keys
from mmcon.registry import register_view
from mmcon.views import Chain, Meta, Params, ViewGenerator
from mmcon_views.audio import waveform_ops as ops
from mmcon_views.audio.crop import WaveformCrop
from mmcon_views.audio.log_mel import LogMel
from mmcon_views.audio.waveform import silence_padded, with_signal


@register_view("audio/cola", modality="audio")
def cola(
    *,
    noise_std: float = 0.001,
    window_seconds: float = 1.0,
    position: Literal["random", "start", "center"] = "random",
) -> Chain:
    """COLA (Saeed et al. 2020): a second of the L2-normalized clip, noise on all views but the first, 64-band log-mel.

    Deviation: frames are centered (101 of them, 98 in the released code). The published similarity is bilinear.

    Args:
        noise_std: standard deviation of the noise on every view but the first.
        window_seconds: the length of a view.
        position: the position of the window; for evaluation "center", without noise.
    """
    return Chain(
        ("crop", WaveformCrop(window_seconds=window_seconds, position=position, normalize="clip")),
        ("noise", ColaNoise(std=noise_std)),
        ("log-mel", LogMel(bands=64, window=400, hop=160, fft=1024, low_hz=60.0, high_hz=7_800.0, floor=1e-5)),
        name="audio/cola",
    )


@final
@register_view("audio/cola-noise", modality="audio")
class ColaNoise(ViewGenerator):
    """White noise of a given standard deviation on every view of a sample but the first (COLA)."""

    modality: ClassVar[str] = "audio"

    def __init__(self, *, std: float = 0.001) -> None:
        self.std = std

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `std`, 0 in the first view of a sample, and `seed`."""
        return {"std": self.std * (keys.fields[:, FIELDS.index("view")] > 0).double(), "seed": keys.bits("seed")}

    def apply(self, batch: Any, params: Params) -> Any:
        """Add the noise to the real samples."""
        signal, length = silence_padded(batch)
        field = ops.white_noise(params["seed"], signal.shape[1], signal.shape[2], signal.device)
        return with_signal(batch, signal + ops.silence_padding(field, length) * ops.column(params["std"], signal))
