"""Padding is never heard: whatever stands there, the real part comes out the same, and the padding as it should."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmcon
from mmcon.registry import entries

# Every view of waveforms that is no chain; audio/crop makes the padding, and audio/log-mel leaves waveforms.
WAVEFORM = [
    "audio/background", "audio/band-pass", "audio/clipping", "audio/codec", "audio/cola-noise", "audio/fade",
    "audio/gain", "audio/high-pass", "audio/low-pass", "audio/noise", "audio/pitch-shift", "audio/polarity",
    "audio/reverb", "audio/shift", "audio/speed", "audio/time-mask", "audio/time-stretch",
]  # fmt: skip
SPECTROGRAM = ["audio/fader", "audio/mixup-memory", "audio/resize-crop", "audio/spec-augment", "audio/standardize"]
OPTIONS = {"audio/noise": {"slope_db": (-6.0, 3.0)}, "audio/spec-augment": {"warp": 10, "bands": 20, "frames": 40}}
WIDTH, FRAMES = 3_000, 80

lengths = st.lists(st.integers(1, WIDTH), min_size=1, max_size=3)
frames = st.lists(st.integers(1, FRAMES), min_size=1, max_size=3)
garbage = st.sampled_from([99.0, -1e6, float("nan"), float("inf")])


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    soundfile.write(folder / "hum.wav", np.sin(np.arange(2_000) * 0.1) * 0.1, 16_000)
    return folder


def keys(n, seed):
    return mmcon.keys(seed=seed, sample=list(range(n)), view=1)


def filled(shape, length, value):
    """Normal numbers with one value beyond each length, and which positions those are."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    beyond = (torch.arange(shape[-1]) >= length[:, None]).view(len(length), *[1] * (len(shape) - 2), -1)
    return x.masked_fill(beyond, value)


@pytest.mark.parametrize("name", WAVEFORM)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=lengths, value=garbage, seed=st.integers(0, 99))
def test_waveform_views_are_deaf_to_padding_and_leave_it_silent(name, bank, n, value, seed):
    options = {"recordings": bank} if name == "audio/background" else OPTIONS.get(name, {})
    view, length = mmcon.create_view(name, **options), torch.tensor(n)
    outs = [
        view({"signal": filled((len(n), 1, WIDTH), length, v), "length": length}, keys(len(n), seed))
        for v in (0.0, value)
    ]
    torch.testing.assert_close(outs[0]["signal"], outs[1]["signal"], rtol=0, atol=0)
    for row, real in zip(outs[1]["signal"], outs[1]["length"].tolist(), strict=True):
        assert bool(torch.isfinite(row).all())
        assert not row[:, real:].any()


@pytest.mark.parametrize("name", SPECTROGRAM)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=frames, value=garbage, seed=st.integers(0, 99))
def test_spectrogram_views_are_deaf_to_padding(name, n, value, seed):
    length = torch.tensor(n)
    outs = []
    for v in (0.0, value):
        view = mmcon.create_view(name, **OPTIONS.get(name, {}))
        for _ in range(2):  # the memory of mixup is empty at first
            out = view({"log_mel": filled((len(n), 1, 64, FRAMES), length, v), "length": length}, keys(len(n), seed))
        outs.append(out["log_mel"])
    for one, two, real in zip(*outs, n, strict=True):
        torch.testing.assert_close(one[..., :real], two[..., :real], rtol=0, atol=0)
        assert bool(torch.isfinite(one[..., :real]).all())
    if name != "audio/standardize":  # which makes padding the mean
        beyond = filled((len(n), 1, 64, FRAMES), length, value)
        for out, was, real in zip(outs[1], beyond, n, strict=True):
            torch.testing.assert_close(out[..., real:], was[..., real:], rtol=0, atol=0, equal_nan=True)


def test_no_view_of_sound_is_left_out():
    chains = {name for name in names() if len(mmcon.create_view(name).children()) > 1}
    assert names() - chains == {*WAVEFORM, *SPECTROGRAM, "audio/crop", "audio/log-mel", "audio/spec-augment-policy"} - {
        "audio/background"
    }


def names():
    """All built-in audio views but audio/background, which needs recordings."""
    return {entry.name for entry in entries("view", "audio") if entry.name.startswith("audio/")} - {"audio/background"}
