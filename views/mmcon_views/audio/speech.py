"""The evaluation view of audio, and training views for speech."""

from __future__ import annotations

from mmcon.registry import register_view
from mmcon.views import Chain
from mmcon_views.audio.byol_a import Fader
from mmcon_views.audio.crop import WaveformCrop
from mmcon_views.audio.log_mel import LogMel, Standardize
from mmcon_views.audio.loudness import Gain
from mmcon_views.audio.noise import Noise
from mmcon_views.audio.phase_vocoder import vocoder_frame
from mmcon_views.audio.spec_augment import SpecAugment
from mmcon_views.audio.time_pitch import PitchShift, Shift, TimeStretch


@register_view("audio/plain", modality="audio")
def plain(*, window_seconds: float = 2.0, rate_hz: int = 16_000, bands: int = 64) -> Chain:
    """The evaluation view: the center window as a standardized log-mel spectrogram; nothing is drawn."""
    return Chain(
        ("crop", WaveformCrop(window_seconds=window_seconds, rate_hz=rate_hz, position="center")),
        ("log-mel", LogMel(rate_hz=rate_hz, bands=bands)),
        ("standardize", Standardize()),
        name="audio/plain",
    )


@register_view("audio/speech", modality="audio")
def speech(*, window_seconds: float = 2.0, rate_hz: int = 16_000, bands: int = 64, strength: float = 1.0) -> Chain:
    """Views for speech (our design): shift, tempo, pitch, gain and noise, then a fader and small masks on the log-mel.

    Args:
        window_seconds: the length of a view.
        rate_hz: the sample rate.
        bands: mel bands.
        strength: a factor on the ranges of tempo, pitch, noise and masks.
    """
    waveform = speech_waveform(window_seconds=window_seconds, rate_hz=rate_hz, strength=strength)
    return Chain(
        *waveform.children(),
        ("log-mel", LogMel(rate_hz=rate_hz, bands=bands)),
        ("standardize", Standardize()),
        ("fader", Fader(gain=(-0.5 * strength, 0.5 * strength))),
        ("mask", SpecAugment(bands=round(12 * strength), frames=round(20 * strength), max_share=0.2, fill=0.0)),
        name="audio/speech",
    )


@register_view("audio/speech-waveform", modality="audio")
def speech_waveform(*, window_seconds: float = 2.0, rate_hz: int = 16_000, strength: float = 1.0) -> Chain:
    """The waveform operations of audio/speech, for encoders that take waveforms."""
    s, frame = strength, vocoder_frame(rate_hz)
    return Chain(
        ("crop", WaveformCrop(window_seconds=window_seconds, rate_hz=rate_hz)),
        ("tempo", TimeStretch(tempo=(1 / (1 + 0.25 * s), 1 + 0.25 * s), frame=frame, p=0.5)),
        ("pitch", PitchShift(semitones=(-4 * s, 4 * s), frame=frame, p=0.5)),
        ("shift", Shift(max_seconds=0.1 * s, wrap=False, rate_hz=rate_hz)),
        ("gain", Gain(gain_db=(-6.0 * s, 6.0 * s))),
        ("noise", Noise(snr_db=(10.0 / max(s, 0.1), 40.0), slope_db=(-6.0, 0.0), p=0.5)),
        name="audio/speech-waveform",
    )
