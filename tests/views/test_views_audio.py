"""Laws and properties of audio views: padding stays untouched, units mean what they say."""

import numpy as np
import pytest
import soundfile
import torch
from mmcon_views.audio import log_mel, waveform_ops

import mmcon
from mmcon.errors import DataError, InputError
from mmcon.media import AudioHandle
from mmcon.testing import check_view
from mmcon.views import collate

WAVEFORM = {
    "audio/crop": {"window_seconds": 0.3},
    "audio/gain": {},
    "audio/polarity": {},
    "audio/noise": {"slope_db": (-6.0, 3.0)},
    "audio/cola-noise": {},
    "audio/shift": {},
    "audio/fade": {},
    "audio/low-pass": {},
    "audio/high-pass": {},
    "audio/band-pass": {},
    "audio/reverb": {},
    "audio/speed": {},
    "audio/time-stretch": {},
    "audio/pitch-shift": {},
    "audio/clipping": {},
    "audio/codec": {},
    "audio/time-mask": {},
    "audio/log-mel": {},
}
CHAINS = ["audio/plain", "audio/speech", "audio/cola", "audio/byol-a", "audio/byol-a-v2", "audio/clar"]


def signals(n=4, t=8_000):
    """Tones with noise, of differing lengths; padding is zero."""
    length = torch.tensor([t, t // 2, t - 17, 3 * t // 4][:n])
    at = torch.arange(t) / 16_000
    hz = torch.tensor([220.0, 440.0, 700.0, 990.0])[:n, None]
    noise = torch.randn(n, t, generator=torch.Generator().manual_seed(0))
    signal = 0.3 * torch.sin(2 * torch.pi * hz * at) + 0.03 * noise
    return {"signal": (signal * (torch.arange(t) < length[:, None]))[:, None], "length": length}


def spectrograms(n=4, t=120):
    length = torch.tensor([t, t // 2, t - 17, 90])[:n]
    x = torch.randn(n, 1, 64, t, generator=torch.Generator().manual_seed(0))
    return {"log_mel": x, "length": length}


@pytest.mark.parametrize("name", WAVEFORM)
def test_laws_of_waveform_views(name):
    view = mmcon.create_view(name, **WAVEFORM[name])
    check_view(view, signals())
    check_view(view, signals()["signal"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("audio/standardize", {}),
        ("audio/standardize", {"mean": -1.0, "std": 2.0}),
        ("audio/spec-augment", {"warp": 10}),
        ("audio/spec-augment-policy", {"policy": "SM"}),
        ("audio/resize-crop", {}),
        ("audio/fader", {}),
        ("audio/mixup-memory", {}),
    ],
)
def test_laws_of_spectrogram_views(name, options):
    check_view(mmcon.create_view(name, **options), spectrograms())


@pytest.mark.parametrize("name", CHAINS)
def test_laws_of_chains(name):
    check_view(mmcon.create_view(name), [row[:, :n] for row, n in zip(*signals(t=24_000).values(), strict=True)])


def keys(n=4, seed=0):
    return mmcon.keys(seed=seed, sample=list(range(n)), view=1)


def test_noise_has_the_ratio_that_was_drawn_and_silence_stays_silent():
    view, batch = mmcon.create_view("audio/noise", snr_db=(3.0, 12.0)), signals()
    params = view.draw(keys(), {})
    noise = view.apply(batch, params)["signal"] - batch["signal"]
    measured = 10 * torch.log10(batch["signal"].square().sum((1, 2)) / noise.square().sum((1, 2)))
    torch.testing.assert_close(measured.double(), params["snr_db"], atol=1e-3, rtol=0)
    silent = {"signal": torch.zeros(4, 1, 800), "length": torch.full((4,), 800)}
    assert view(silent, keys())["signal"].abs().max() == 0


@pytest.mark.parametrize("slope_db", [-6.0, -3.0, 0.0, 3.0])
def test_colored_noise_falls_by_the_slope(slope_db):
    from mmcon_views.audio.waveform_ops import color_noise, white_noise

    white = white_noise(torch.arange(64), 1, 16_000, torch.device("cpu"))
    power = torch.fft.rfft(color_noise(white, torch.full((64,), slope_db))).abs().square().mean((0, 1))
    octave = 10 * torch.log10(power[2_000:2_200].mean() / power[1_000:1_100].mean())
    assert float(octave) == pytest.approx(slope_db, abs=0.3)


@pytest.mark.parametrize("semitones", [-12.0, -5.3, 3.0, 7.0])
def test_pitch_moves_a_tone_by_so_many_semitones(semitones):
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(32_000) / 16_000)[None, None]
    view = mmcon.create_view("audio/pitch-shift", semitones=(semitones, semitones))
    out = view(tone, keys(1))[0, 0, 4_000:28_000]
    peak = torch.fft.rfft(out * torch.hann_window(24_000), n=480_000).abs().argmax() / 30
    assert float(12 * torch.log2(peak / 440)) == pytest.approx(semitones, abs=0.07)


@pytest.mark.parametrize("name", ["audio/time-stretch", "audio/pitch-shift"])
def test_no_change_gives_the_signal_back(name):
    out = mmcon.create_view(name, p=0.0)(signals(), keys())
    torch.testing.assert_close(out["signal"], signals()["signal"], atol=0, rtol=0)


def test_tempo_changes_the_length_and_keeps_the_pitch():
    batch = {"signal": torch.sin(2 * torch.pi * 440 * torch.arange(32_000) / 16_000)[None, None]}
    batch["length"] = torch.tensor([32_000])
    out = mmcon.create_view("audio/time-stretch", tempo=(1.25, 1.25))(batch, keys(1))
    assert out["length"].tolist() == [25_600]
    assert int(torch.fft.rfft(out["signal"][0, 0, 4_000:20_000]).abs().argmax()) == 440


def test_crop_decodes_only_the_span_and_pads(tmp_path):
    samples = np.linspace(-0.5, 0.5, 12_000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", samples[:3_000], 16_000, subtype="FLOAT")
    sounds = [AudioHandle(tmp_path / "a.wav"), AudioHandle(tmp_path / "b.wav")]
    view = mmcon.create_view("audio/crop", window_seconds=0.5)
    params = view.draw(keys(2), {"length": torch.tensor([12_000, 3_000])})
    out = collate(view.apply(sounds, params))
    assert out["length"].tolist() == [8_000, 3_000]
    start = int(params["start"][0])
    torch.testing.assert_close(out["signal"][0, 0], torch.from_numpy(samples[start : start + 8_000]))
    looped = collate(mmcon.create_view("audio/crop", window_seconds=0.5, pad="loop").apply(sounds, params))
    torch.testing.assert_close(looped["signal"][1, 0, 3_000:6_000], torch.from_numpy(samples[:3_000]))
    with pytest.raises(InputError, match="8000"):
        mmcon.create_view("audio/crop", rate_hz=8_000).draw(
            keys(1), {"length": torch.tensor([5]), "rate_hz": torch.tensor([16_000])}
        )


def test_an_empty_recording_is_an_error(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    with pytest.raises(DataError, match="empty"):
        mmcon.create_view("audio/crop")([AudioHandle(tmp_path / "empty.wav")], keys(1))


@pytest.fixture
def bank(tmp_path):
    """Three recordings of 5,000 samples, and a text beside them."""
    for i in range(3):
        tone = np.sin(np.arange(5_000) * (i + 1) / 9).astype(np.float32) * 0.1
        soundfile.write(tmp_path / f"{i}.wav", tone, 16_000)
    (tmp_path / "LICENSE.txt").write_text("public domain")
    return tmp_path


def test_background_is_named_by_the_key_alone(bank):
    check_view(mmcon.create_view("audio/background", recordings=bank), signals())


def test_a_recorded_room_is_convolved(bank):
    """A response that is a lone click gives the sound back, delayed to where the click is."""
    click = np.zeros(64, dtype=np.float32)
    click[3] = 0.5
    soundfile.write(bank / "click.wav", click, 16_000, subtype="FLOAT")
    view = mmcon.create_view("audio/reverb", impulses=[bank / "click.wav"])
    check_view(view, signals())
    x = signals()["signal"][:1]
    torch.testing.assert_close(view(x, keys(1))[..., 3:], 0.5 * x[..., :-3], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "option"), [("audio/background", "recordings"), ("audio/reverb", "impulses")])
def test_a_bank_that_cannot_be_read_is_told_when_the_view_is_made(name, option, bank):
    (bank / "3.wav").write_bytes(b"not a sound")
    with pytest.raises(DataError, match=r"3\.wav"):
        mmcon.create_view(name, **{option: bank})
    with pytest.raises(DataError, match="none in"):
        mmcon.create_view(name, **{option: bank / "nowhere"})


def test_the_memory_of_byol_a_is_saved_and_goes_on():
    one, two = (mmcon.create_view("audio/mixup-memory", size=6) for _ in range(2))
    first = one(spectrograms(), keys())
    torch.testing.assert_close(first["log_mel"], spectrograms()["log_mel"])  # nothing to mix with yet
    two.load_state_dict(one.state_dict())
    a, b = one(spectrograms(), keys(seed=1)), two(spectrograms(), keys(seed=1))
    torch.testing.assert_close(a["log_mel"], b["log_mel"], rtol=0, atol=0)
    assert not torch.equal(a["log_mel"], spectrograms()["log_mel"])
    assert len(one.state_dict()["memory"]) == 6


def test_cola_puts_noise_on_the_second_view_only():
    view = mmcon.create_view("audio/cola-noise")
    assert view.draw(mmcon.keys(sample=[1], view=0), {})["std"].item() == 0
    assert view.draw(mmcon.keys(sample=[1], view=1), {})["std"].item() == 0.001


def test_published_shapes():
    rows = list(torch.randn(3, 1, 32_000, generator=torch.Generator().manual_seed(0)))
    assert mmcon.create_view("audio/byol-a")(rows, keys(3))["log_mel"].shape == (3, 1, 64, 96)
    assert mmcon.create_view("audio/cola")(rows, keys(3))["log_mel"].shape == (3, 1, 64, 101)


def test_spectrogram_views_ask_for_the_crossing():
    with pytest.raises(InputError, match="audio/log-mel"):
        mmcon.create_view("audio/fader")(torch.zeros(2, 1, 100), keys(2))


def test_sounds_without_an_axis_of_channels_are_refused_with_what_to_write():
    batch, k = torch.zeros(2, 16000), mmcon.keys(seed=0, epoch=0, sample=torch.arange(2), view=0)
    for given, fix in (
        (batch, "signal[:, None]"),
        ({"signal": batch, "length": torch.tensor([9, 9])}, "signal[:, None]"),
        (list(batch), "sound[None]"),
    ):
        with pytest.raises(InputError, match=r"expected a s\w+ `(b )?c t`; got shape") as raised:
            mmcon.create_view("audio/crop")(given, k)
        assert fix in str(raised.value)


def test_noise_and_spectra_do_not_depend_on_how_many_rows_are_computed_at_once(monkeypatch):
    seeds = torch.arange(5) - 2
    noise = waveform_ops.white_noise(seeds, 2, 1_001, torch.device("cpu"))
    power = log_mel.LogMel(rate_hz=16_000).power(noise)
    monkeypatch.setattr(waveform_ops, "_CACHED", 1)
    monkeypatch.setattr(log_mel, "_CACHED", 1)
    assert torch.equal(waveform_ops.white_noise(seeds, 2, 1_001, torch.device("cpu")), noise)
    assert torch.equal(log_mel.LogMel(rate_hz=16_000).power(noise), power)


def test_a_window_does_not_share_memory_with_a_recording_that_is_kept():
    recording = torch.randn(1, 800)
    handle = AudioHandle(recording, source_rate_hz=16_000)
    (view,) = mmcon.create_view("audio/crop", window_seconds=0.05).apply([handle], {"start": torch.tensor([0])})
    view["signal"].zero_()
    assert recording.abs().sum() > 0
