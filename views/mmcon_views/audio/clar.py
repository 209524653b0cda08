"""CLAR: six waveform augmentations, then a log-mel spectrogram."""

from __future__ import annotations

from mmcon.registry import register_view
from mmcon.views import Chain
from mmcon_views.audio.crop import WaveformCrop
from mmcon_views.audio.log_mel import LogMel, Standardize
from mmcon_views.audio.loudness import Fade
from mmcon_views.audio.noise import Noise
from mmcon_views.audio.phase_vocoder import vocoder_frame
from mmcon_views.audio.time_pitch import PitchShift, Shift, TimeMask, TimeStretch


@register_view("audio/clar", modality="audio")
def clar(*, window_seconds: float = 1.0, rate_hz: int = 16_000, p: float = 0.5, log_mel: bool = True) -> Chain:
    """CLAR (Al-Tahan and Mohsenzadeh 2021): fade, mask, stretch, pitch, roll and noise, each with probability p.

    Deviation: the paper compares pairs of these operations; here each is drawn independently.
    """
    crossing = [("log-mel", LogMel(rate_hz=rate_hz)), ("standardize", Standardize())] if log_mel else []
    return Chain(
        ("crop", WaveformCrop(window_seconds=window_seconds, rate_hz=rate_hz)),
        ("fade", Fade(max_share=0.5, p=p)),
        ("mask", TimeMask(max_share=0.125, p=p)),
        ("stretch", TimeStretch(tempo=(0.5, 1.5), frame=vocoder_frame(rate_hz), p=p)),
        ("pitch", PitchShift(semitones=(-15.0, 15.0), frame=vocoder_frame(rate_hz), p=p)),
        ("roll", Shift(max_seconds=8_000 / rate_hz, rate_hz=rate_hz, p=p)),
        ("noise", Noise(snr_db=(0.0, 19.0), p=p)),
        *crossing,
        name="audio/clar",
    )
