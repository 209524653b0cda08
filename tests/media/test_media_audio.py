"""Handles on sounds: spans equal the whole, odd formats decode, and bad files are named."""

import pickle
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from mmcon.errors import DataError, InputError, MissingDependencyError
from mmcon.media import AudioFormat, AudioHandle, audio_files
from mmcon.media.resampling import resampler
from mmcon.views import meta_of


def tone(rate_hz, seconds=1.3, hz=440.0, channels=1):
    t = np.arange(int(rate_hz * seconds)) / rate_hz
    return np.stack([0.5 * np.sin(2 * np.pi * hz * (c + 1) * t) for c in range(channels)], 1).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    def write(name, samples, rate_hz, **options):
        soundfile.write(tmp_path / name, samples, rate_hz, **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 8e-3),
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "FLOAT", 0.0),
        ("a.flac", "PCM_24", 1e-6),
        ("a.ogg", "VORBIS", 0.06),
        ("a.mp3", "MPEG_LAYER_III", 0.06),
    ],
)
def test_formats_and_depths_give_the_samples(write, name, subtype, tolerance):
    samples = tone(16_000)
    sound = AudioHandle(write(name, samples, 16_000, subtype=subtype))
    assert sound.facts == {"length": len(samples), "rate_hz": 16_000}
    inside = slice(2_000, 18_000)  # codecs ring at the edges
    torch.testing.assert_close(
        sound.decode()[:, inside], torch.from_numpy(samples.T)[:, inside], atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_a_span_is_the_same_span_of_the_whole(write, rate_hz):
    sound = AudioHandle(write("a.flac", tone(rate_hz, channels=2), rate_hz))
    whole = sound.decode()
    assert whole.shape == (1, sound.facts["length"])
    for start, length in [(0, 100), (1, 5_000), (7_777, 8_000), (whole.shape[1] - 50, 50), (30, 0)]:
        torch.testing.assert_close(sound.decode(start, length), whole[:, start : start + length], atol=1e-6, rtol=0)


def test_resampling_keeps_the_frequency_and_is_made_once(write):
    spectrum = torch.fft.rfft(AudioHandle(write("a.wav", tone(44_100, seconds=1.0), 44_100)).decode()[0]).abs()
    assert int(spectrum.argmax()) == 440  # bins of 1 Hz: 16,000 samples in one second
    assert resampler(44_100, 16_000) is resampler(44_100, 16_000)


def test_channels_follow_the_contract(write):
    samples = tone(16_000, channels=2)
    path = write("a.wav", samples, 16_000, subtype="FLOAT")
    torch.testing.assert_close(AudioHandle(path).decode()[0], torch.from_numpy(samples.mean(1)))
    assert AudioHandle(path, audio_format=AudioFormat(channels=2)).decode().shape[0] == 2
    mono = write("m.wav", samples[:, 0], 16_000)
    assert AudioHandle(mono, audio_format=AudioFormat(channels=2)).decode().shape[0] == 2
    with pytest.raises(DataError, match="3 channels, or one"):
        AudioHandle(path, audio_format=AudioFormat(channels=3)).decode()


def test_bytes_and_arrays_are_sounds_too(write):
    path = write("a.wav", tone(8_000), 8_000, subtype="FLOAT")
    from_bytes = AudioHandle(path.read_bytes(), id="in a table")
    from_array = AudioHandle(torch.from_numpy(tone(8_000)[:, 0]), source_rate_hz=8_000)
    torch.testing.assert_close(from_bytes.decode(), AudioHandle(path).decode())
    torch.testing.assert_close(from_array.decode(), AudioHandle(path).decode())
    assert "in a table" in repr(pickle.loads(pickle.dumps(from_bytes)))
    with pytest.raises(InputError, match="source_rate_hz"):
        AudioHandle(torch.zeros(10))


def test_the_sound_of_a_video(tmp_path):
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("aac", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone(48_000, 2.0, channels=2).T), "fltp", "stereo")
        frame.rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            film.mux(packet)
    sound = AudioHandle(path)
    assert sound.header.decoder == "av"
    assert abs(sound.facts["length"] - 32_000) < 1_600
    whole = sound.decode()
    spectrum = torch.fft.rfft(whole[0, 8_000:24_000]).abs()
    assert set(spectrum.topk(2).indices.tolist()) == {440, 880}  # a tone in each channel
    torch.testing.assert_close(sound.decode(20_000, 8_000), whole[:, 20_000:28_000], atol=1e-3, rtol=0)


def test_silence_is_a_sound(write):
    assert AudioHandle(write("a.wav", np.zeros(100), 16_000)).decode().abs().sum() == 0


def test_nan_is_an_error_with_the_name_or_zero(write):
    samples = tone(16_000)
    samples[5:8] = np.nan
    path = write("broken.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"broken\.wav.*\n?.*3 of \d+ NaN"):
        AudioHandle(path).decode()
    assert AudioHandle(path, audio_format=AudioFormat(on_non_finite="zero")).decode()[0, 5:8].tolist() == [0, 0, 0]


def test_a_header_that_lies_is_an_error_or_filled(write):
    path = write("lying.flac", tone(16_000), 16_000)
    data = bytearray(path.read_bytes())
    # STREAMINFO: the total number of samples is the low 36 bits of the 8 bytes at offset 18.
    (word,) = struct.unpack(">Q", data[18:26])
    data[18:26] = struct.pack(">Q", word + 16_000)
    path.write_bytes(data)
    assert AudioHandle(path).facts["length"] == 20_800 + 16_000
    with pytest.raises(DataError, match="lying"):
        AudioHandle(path).decode()
    # What is there can be read; the rest is zeros where asked for.
    assert AudioHandle(path).decode(0, 20_000).abs().max() > 0.4
    filled = AudioHandle(path, audio_format=AudioFormat(on_short="zero")).decode()
    assert filled.shape == (1, 36_800)
    assert filled[:, :20_000].abs().max() > 0.4
    assert not filled[:, 20_800:].any()


def test_a_wav_that_claims_more_is_as_long_as_its_data(write):
    path = write("long.wav", tone(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 10_000_000)
    path.write_bytes(data)
    assert AudioHandle(path).decode().shape[1] == AudioHandle(path).facts["length"] == 20_800


@pytest.mark.parametrize("content", [b"", b"not a sound at all" * 20])
def test_a_corrupt_file_is_named_and_spoils_no_batch(tmp_path, content, write):
    path = tmp_path / "corrupt.wav"
    path.write_bytes(content)
    good = AudioHandle(write("good.wav", tone(16_000), 16_000))
    for read in (lambda bad: bad.facts, lambda bad: bad.header, AudioHandle.decode):
        with pytest.raises(DataError, match=r"corrupt\.wav"):
            read(AudioHandle(path))
    # The loader leaves the file out of its batch (tests/loading/test_bad_files.py); without it, a call raises.
    with pytest.raises(DataError, match=r"corrupt\.wav"):
        meta_of([good, AudioHandle(path)], "audio")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_without_a_sample_is_named(tmp_path, suffix):
    path = tmp_path / f"empty.{suffix}"
    soundfile.write(path, np.zeros(0), 16_000)
    for read in (lambda sound: sound.facts, lambda sound: sound.decode()):
        with pytest.raises(DataError, match=rf"empty\.{suffix}"):
            read(AudioHandle(path))


def test_a_missing_file_and_a_span_beyond_the_end(tmp_path, write):
    with pytest.raises(DataError, match=r"gone\.wav'[\s\S]*none at '.*gone\.wav'"):
        AudioHandle(tmp_path / "gone.wav").decode()
    with pytest.raises(InputError, match="within the 20800 samples"):
        AudioHandle(write("a.wav", tone(16_000), 16_000)).decode(20_000, 2_000)


@pytest.mark.parametrize("rate_hz", [44_101, 44_099, 15_999, 8_001])
def test_rates_without_a_common_divisor_are_resampled(rate_hz):
    """A tone of 440 Hz keeps its frequency over four seconds, and a span is the same span of the whole."""
    sound = AudioHandle(torch.from_numpy(tone(rate_hz, seconds=4.0)[:, 0]), source_rate_hz=rate_hz)
    whole = sound.decode()
    assert whole.shape == (1, 64_000)
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(64_000, dtype=torch.float64) / 16_000)
    inside = slice(100, 63_900)
    torch.testing.assert_close(whole[0, inside].double(), expected[inside], atol=3e-4, rtol=0)
    assert torch.equal(sound.decode(20_001, 7_777), whole[:, 20_001:27_778])


@pytest.mark.parametrize("rates", [(44_100, 16_000), (8_000, 44_100), (16_000, 11_025)])
def test_the_filter_at_each_sample_is_the_kernel_of_torchaudio(rates, monkeypatch):
    from mmcon.media import resampling

    # torchaudio computes a part of its kernel in float32, hence the tolerance.
    noise = AudioHandle(torch.randn(9_000, generator=torch.Generator().manual_seed(0)), source_rate_hz=rates[0])
    noise.audio_format = AudioFormat(rate_hz=rates[1])
    by_kernel = noise.decode()
    monkeypatch.setattr(resampling, "_LARGEST_KERNEL", 1)
    torch.testing.assert_close(noise.decode(), by_kernel, atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.decode(999, 500), by_kernel[:, 999:1_499], atol=1e-4, rtol=0)


def test_decoders_are_tried_in_order(write, monkeypatch):
    path = write("a.wav", tone(16_000), 16_000)
    assert AudioHandle(path).header.decoder == ("torchcodec" if audio_files.torchcodec_works() else "soundfile")
    by_soundfile = AudioHandle(path).decode()
    monkeypatch.setattr(audio_files, "torchcodec_works", lambda: False)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert AudioHandle(path).header.decoder == "av"
    torch.testing.assert_close(AudioHandle(path).decode(), by_soundfile, atol=1e-4, rtol=0)


class StandInDecoder:
    """TorchCodec's AudioDecoder as its documentation has it, over soundfile; it needs an FFmpeg that is not here."""

    states_duration = True

    def __init__(self, source):
        self.samples, self.rate = soundfile.read(source, dtype="float32", always_2d=True)
        seconds = len(self.samples) / self.rate if self.states_duration else None
        self.metadata = SimpleNamespace(sample_rate=self.rate, duration_seconds_from_header=seconds, num_channels=1)

    def get_samples_played_in_range(self, start, stop):
        if self.samples.max() > 0.9:
            raise RuntimeError("Invalid data found when processing input")
        data = torch.from_numpy(self.samples.T)[:, round(start * self.rate) : round(stop * self.rate)]
        return SimpleNamespace(data=data)


@pytest.fixture
def torchcodec(monkeypatch):
    decoders = SimpleNamespace(AudioDecoder=type("AudioDecoder", (StandInDecoder,), {}))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(audio_files, "torchcodec_works", lambda: True)
    return decoders.AudioDecoder


def test_torchcodec_comes_first_where_it_works(write, torchcodec):
    sound = AudioHandle(write("a.wav", tone(8_000), 8_000))
    assert sound.header.decoder == "torchcodec"
    assert sound.facts == {"length": 20_800, "rate_hz": 16_000}
    assert sound.decode(20_800, 0).shape == (1, 0)
    by_torchcodec = sound.decode(1_000, 5_000)
    torchcodec.states_duration = False  # then the next decoder is asked
    other = AudioHandle(sound.source)
    assert other.header.decoder == "soundfile"
    torch.testing.assert_close(by_torchcodec, other.decode(1_000, 5_000), atol=1e-6, rtol=0)


def test_what_torchcodec_cannot_decode_is_named(write, torchcodec):
    with pytest.raises(DataError, match=r"loud\.wav[\s\S]*Invalid data"):
        AudioHandle(write("loud.wav", tone(16_000) * 1.9, 16_000)).decode()


def test_a_missing_decoder_is_told_in_a_line_that_names_the_package(write, tmp_path, monkeypatch):
    path = write("a.wav", tone(16_000), 16_000)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    monkeypatch.setattr(audio_files, "torchcodec_works", lambda: False)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"film\.mp4[\s\S]*pip install av"):
        AudioHandle(tmp_path / "film.mp4").decode()
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependencyError, match=r"none installed\.\s+Fix: pip install soundfile av"):
        AudioHandle(path).decode()
