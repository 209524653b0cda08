"""Published audio views as chains, and the registration of all audio views.

    pair = mmcon.create_view("audio/byol-a-v2")          # waveform in, log-mel out
    mmcon.describe_view("audio/clar")

A chain crosses from waveform to log-mel where `audio/log-mel` stands in it. Names carry their provenance; each chain
says where it deviates from its source.
"""

from __future__ import annotations

from typing import Literal

from mmcon.registry import register_view
from mmcon.views import Chain
from mmcon_views.audio import transmission  # noqa: F401  (its views are registered)
from mmcon_views.audio.log_mel import LogMel, Standardize
from mmcon_views.audio.loudness import ColaNoise, Fade, Gain, Noise
from mmcon_views.audio.spectrogram import Fader, MixupMemory, ResizeCrop, SpecAugment
from mmcon_views.audio.timing import PitchShift, Shift, TimeMask, TimeStretch
from mmcon_views.audio.waveform import Crop


@register_view("audio/plain", modality="audio")
def plain(*, window_seconds: float = 2.0, rate_hz: int = 16_000, bands: int = 64) -> Chain:
    """The window in the middle as a log-mel spectrogram, standardised: nothing random, for evaluation."""
    return Chain(
        ("crop", Crop(window_seconds=window_seconds, rate_hz=rate_hz, position="centre")),
        ("log-mel", LogMel(rate_hz=rate_hz, bands=bands)),
        ("standardize", Standardize()),
        name="audio/plain",
    )


@register_view("audio/speech", modality="audio")
def speech(*, window_seconds: float = 2.0, rate_hz: int = 16_000, bands: int = 64, strength: float = 1.0) -> Chain:
    """Ours, for speech: shift, tempo, pitch, gain, noise, then small masks and a fader on the log-mel.

    Args:
        window_seconds: the width of a view.
        rate_hz: the rate of the samples.
        bands: mel bands.
        strength: scales the ranges of tempo, pitch, noise and masks.
    """
    waveform = speech_waveform(window_seconds=window_seconds, rate_hz=rate_hz, strength=strength)
    return Chain(
        *waveform.children(),
        ("log-mel", LogMel(rate_hz=rate_hz, bands=bands)),
        ("standardize", Standardize()),
        ("fader", Fader(gain=(-0.5 * strength, 0.5 * strength))),
        ("mask", SpecAugment(bands=round(12 * strength), frames=round(20 * strength), most_share=0.2, fill=0.0)),
        name="audio/speech",
    )


@register_view("audio/speech-waveform", modality="audio")
def speech_waveform(*, window_seconds: float = 2.0, rate_hz: int = 16_000, strength: float = 1.0) -> Chain:
    """The part of audio/speech before the log-mel, for encoders that take waveforms."""
    s, frame = strength, vocoder_frame(rate_hz)
    return Chain(
        ("crop", Crop(window_seconds=window_seconds, rate_hz=rate_hz)),
        ("tempo", TimeStretch(tempo=(1 / (1 + 0.25 * s), 1 + 0.25 * s), frame=frame, p=0.5)),
        ("pitch", PitchShift(semitones=(-4 * s, 4 * s), frame=frame, p=0.5)),
        ("shift", Shift(max_seconds=0.1 * s, wrap=False, rate_hz=rate_hz)),
        ("gain", Gain(gain_db=(-6.0 * s, 6.0 * s))),
        ("noise", Noise(snr_db=(10.0 / max(s, 0.1), 40.0), slope_db=(-6.0, 0.0), p=0.5)),
        name="audio/speech-waveform",
    )


def vocoder_frame(rate_hz: int) -> int:
    """The power of two that is 64 ms or the next shorter: 1024 at 16 kHz, 512 at 8 kHz."""
    return 1 << round(rate_hz * 0.064).bit_length() - 1


@register_view("audio/cola", modality="audio")
def cola(
    *,
    noise_std: float = 0.001,
    window_seconds: float = 1.0,
    position: Literal["random", "start", "centre"] = "random",
) -> Chain:
    """COLA (Saeed et al. 2020): a second of the L2-normalised clip, noise on the second view, log-mel of 64 bands.

    Deviation: frames are centred (101 of them; 98 in the released code). The published similarity is bilinear.

    Args:
        noise_std: of the noise on every view but the first.
        window_seconds: the width of a view.
        position: where the window lies; "centre" with no noise makes a view for evaluation.
    """
    return Chain(
        ("crop", Crop(window_seconds=window_seconds, position=position, normalize="clip")),
        ("noise", ColaNoise(std=noise_std)),
        ("log-mel", LogMel(bands=64, window=400, hop=160, fft=1024, low_hz=60.0, high_hz=7_800.0, floor=1e-5)),
        name="audio/cola",
    )


@register_view("audio/byol-a", modality="audio")
def byol_a(*, mean: float = -5.0, std: float = 4.5, version: Literal[1, 2] = 1) -> Chain:
    """BYOL-A (Niizumi et al. 2021): .95 s as log-mel 64 × 96, mixing with a memory, a random resize crop.

    Statistics are normalised before, by the data's mean and std (measure yours), and after; the released code does the
    latter with the batch's statistics, ours with each sample's own, so that a view does not depend on its batch.
    """
    fader = [("fader", Fader())] if version == 2 else []
    return Chain(
        ("crop", Crop(window_seconds=0.95)),
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
    """BYOL-A v2 (Niizumi et al. 2022): as audio/byol-a, and a random linear fader."""
    return byol_a(mean=mean, std=std, version=2)


@register_view("audio/clar", modality="audio")
def clar(*, window_seconds: float = 1.0, rate_hz: int = 16_000, p: float = 0.5, log_mel: bool = True) -> Chain:
    """CLAR (Al-Tahan and Mohsenzadeh 2021): fade, mask, stretch, pitch, roll and noise, each with probability p.

    Deviation: the paper tries pairs of these; here each is drawn for itself. Set p to taste.
    """
    crossing = [("log-mel", LogMel(rate_hz=rate_hz)), ("standardize", Standardize())] if log_mel else []
    return Chain(
        ("crop", Crop(window_seconds=window_seconds, rate_hz=rate_hz)),
        ("fade", Fade(max_share=0.5, p=p)),
        ("mask", TimeMask(max_share=0.125, p=p)),
        ("stretch", TimeStretch(tempo=(0.5, 1.5), frame=vocoder_frame(rate_hz), p=p)),
        ("pitch", PitchShift(semitones=(-15.0, 15.0), frame=vocoder_frame(rate_hz), p=p)),
        ("roll", Shift(max_seconds=8_000 / rate_hz, rate_hz=rate_hz, p=p)),
        ("noise", Noise(snr_db=(0.0, 19.0), p=p)),
        *crossing,
        name="audio/clar",
    )


# Park et al. 2019, table 1.
POLICIES = {
    "LB": {"warp": 80, "bands": 27, "band_masks": 1, "frames": 100, "frame_masks": 1, "most_share": 1.0},
    "LD": {"warp": 80, "bands": 27, "band_masks": 2, "frames": 100, "frame_masks": 2, "most_share": 1.0},
    "SM": {"warp": 40, "bands": 15, "band_masks": 2, "frames": 70, "frame_masks": 2, "most_share": 0.2},
    "SS": {"warp": 40, "bands": 27, "band_masks": 2, "frames": 70, "frame_masks": 2, "most_share": 0.2},
}


@register_view("audio/spec-augment-policy", modality="audio")
def spec_augment_policy(*, policy: Literal["LB", "LD", "SM", "SS"] = "LB", fill: float = 0.0) -> SpecAugment:
    """SpecAugment with the settings of a published policy (for 80 bands): LB, LD, SM or SS."""
    return SpecAugment(**POLICIES[policy], fill=fill)  # pyright: ignore[reportArgumentType]
