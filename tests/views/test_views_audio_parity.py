"""Parity with torchaudio, where it has the operation."""

import pytest
import torch
import torchaudio
from mmcon_views.audio import log_mel, phase_vocoder, spec_augment
from mmcon_views.audio import waveform_ops as ops


@pytest.fixture
def x():
    return torch.randn(3, 1, 4_000, generator=torch.Generator().manual_seed(0)) * 0.2


FULL = torch.tensor([4_000, 4_000, 4_000])
SHORT = torch.tensor([4_000, 3_000, 1_500])


def test_gain_is_that_of_vol(x):
    x = x / 10  # Vol cuts at full scale
    ours = ops.amplify(x, torch.tensor([-6.0, 0.0, 3.0]))
    for row, db in enumerate((-6.0, 0.0, 3.0)):
        torch.testing.assert_close(ours[row], torchaudio.transforms.Vol(db, "db")(x[row]), atol=1e-6, rtol=1e-5)


def test_noise_is_that_of_add_noise_over_the_real_part(x):
    noise = torch.randn(3, 1, 4_000, generator=torch.Generator().manual_seed(1))
    x = ops.silence_padding(x, SHORT)
    snr = torch.tensor([0.0, 10.0, 20.0])
    expected = torchaudio.functional.add_noise(x[:, 0], noise[:, 0], snr, SHORT)
    ours = ops.add_noise(x, noise, snr, SHORT)[:, 0]
    real = ops.valid(SHORT, 4_000)
    torch.testing.assert_close(ours * real, expected * real, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", ["linear", "exponential", "logarithmic", "quarter_sine", "half_sine"])
def test_fade_has_its_shapes(x, shape):
    ours = ops.fade(x, torch.tensor([0, 100, 1_000]), torch.tensor([50, 0, 2_000]), FULL, shape)
    for row, (n_in, n_out) in enumerate([(0, 50), (100, 0), (1_000, 2_000)]):
        theirs = torchaudio.transforms.Fade(n_in, n_out, fade_shape=shape)(x[row])
        torch.testing.assert_close(ours[row], theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("low", torchaudio.functional.lowpass_biquad),
        ("high", torchaudio.functional.highpass_biquad),
        ("band", torchaudio.functional.bandpass_biquad),
    ],
)
def test_filters_are_its_biquads(x, kind, theirs):
    cutoff = torch.tensor([300.0, 1_000.0, 4_000.0])
    b, a = ops.pass_filter(kind, cutoff, 16_000, 0.707)
    ours = ops.biquad(x, b, a, FULL)
    for row, hz in enumerate(cutoff.tolist()):
        torch.testing.assert_close(ours[row], theirs(x[row], 16_000, hz, Q=0.707), atol=1e-5, rtol=1e-4)


def test_convolution_is_fftconvolve(x):
    kernel = torch.randn(3, 1, 300, generator=torch.Generator().manual_seed(1))
    theirs = torchaudio.functional.fftconvolve(x, kernel)[..., :4_000]
    torch.testing.assert_close(ops.convolve(x, kernel, FULL), theirs, atol=1e-4, rtol=1e-4)


def test_speed_is_its_speed(x):
    ours = phase_vocoder.change_speed(x, FULL, torch.tensor([100, 110, 90]))
    for row, factor in enumerate((1.0, 1.1, 0.9)):
        theirs, _ = torchaudio.functional.speed(x[row], 16_000, factor)
        n = min(4_000, theirs.shape[-1])
        # Its rates are int(factor · rate); the ratio, and so the kernel, is the same.
        torch.testing.assert_close(ours[row, :, :n], theirs[:, :n], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.0, 1.3, 2.0])
def test_frames_advance_as_in_its_phase_vocoder(rate):
    x = torch.randn(2, 8_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = torch.stft(x, 512, 128, window=torch.hann_window(512, dtype=torch.float64), return_complex=True)
    advance = torch.linspace(0, torch.pi * 128, 257, dtype=torch.float64)[:, None]
    theirs = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    positions = torch.arange(0, spectrum.shape[-1], rate, dtype=torch.float64).expand(2, -1)
    ours = phase_vocoder.advance_phases(spectrum.transpose(1, 2), positions).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("points", [None, 1_024])
def test_log_mel_is_its_mel_spectrogram(x, points):
    view = log_mel.LogMel(low_hz=60.0, high_hz=7_800.0, fft=points)
    theirs = torchaudio.transforms.MelSpectrogram(
        16_000, points or 512, 400, 160, f_min=60.0, f_max=7_800.0, n_mels=64, pad_mode="constant"
    )(x)
    ours = view.apply({"signal": x, "length": FULL}, {})["log_mel"]
    torch.testing.assert_close(ours, theirs.clamp(min=1e-5).log(), atol=1e-4, rtol=1e-4)


def test_masks_are_its_masks(x):
    batch = torch.randn(3, 1, 64, 100, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    theirs = torchaudio.functional.mask_along_axis_iid(batch, 20, 0.0, 3)
    torch.manual_seed(3)
    # What it draws, in its order: the width, then the place in the room that is left.
    width, place = torch.rand(3, 1) * 20, torch.rand(3, 1)
    over = spec_augment.spans(width, place, torch.full((3, 1), 100), 100)
    torch.testing.assert_close(batch.masked_fill(over[:, None, None], 0.0), theirs, atol=0, rtol=0)
