"""Odd audio files and arrays: what a container promises is checked, and what a library decodes is decoded."""

import io
import os
import struct

import av
import numpy as np
import pytest
import soundfile
import torch

from mmcon.errors import DataError, InputError
from mmcon.media import AudioFormat, AudioHandle, open_audio
from mmcon.media.audio_headers import read_promise

TONE = (np.sin(np.arange(40_000) * 0.1) * 0.5).astype(np.float32)


def encoded(samples=TONE, rate_hz=16_000, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, **options)
    return file.getvalue()


def muxed(path, samples, *, codec, rate_hz=16_000, layout="mono", start=0.0):
    """Samples `c t` by PyAV; their clock begins at a number of seconds."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate_hz, layout=layout)
        form = stream.codec_context.format.name
        for at in range(0, samples.shape[1], 1024):
            block = samples[:, at : at + 1024]
            block = (block * 32767).astype(np.int16) if form.startswith("s16") else block.astype(np.float32)
            block = np.ascontiguousarray(block if form.endswith("p") else block.T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, form, layout)
            frame.rate, frame.pts = rate_hz, round(start * rate_hz) + at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


# --- samples in memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "full", "silence"),
    [
        ("int8", 127, 0),
        ("uint8", 127, 128),
        ("int16", 32767, 0),
        (">i2", 32767, 0),
        ("uint16", 32767, 32768),
        ("int32", 2**31 - 256, 0),
        ("float16", 1, 0),
        ("float64", 1, 0),
    ],
)
def test_whole_numbers_have_full_scale_one(dtype, full, silence):
    samples = (TONE.astype(np.float64) * full + silence).astype(dtype)
    decoded = AudioHandle(samples, source_rate_hz=16_000).decode()
    tolerance = max(1e-6, 1.5 / full) if full > 1 else 1e-3
    torch.testing.assert_close(decoded[0], torch.from_numpy(TONE), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", ["int64", "uint32", "complex64", "bool", "object"])
def test_numbers_of_unknown_scale_are_refused(dtype):
    with pytest.raises(InputError, match=rf"8, 16 or 32 bits; got (torch\.)?{dtype}\.[\s\S]*2\*\*15"):
        AudioHandle(np.zeros(10, dtype), source_rate_hz=16_000)


def test_the_longer_axis_is_the_time():
    stereo = np.stack([TONE, -0.5 * TONE])
    pairs = AudioFormat(channels=2)
    for samples in (stereo, stereo.T, torch.from_numpy(stereo), stereo[:, ::-1][:, ::-1]):
        decoded = AudioHandle(samples, source_rate_hz=16_000, audio_format=pairs).decode(100, 3_000)
        assert torch.equal(decoded, torch.from_numpy(stereo[:, 100:3_100]))
    with pytest.raises(InputError, match=r"`t`, `c t` or `t c`; got shape \(1, 1, 40000\)"):
        AudioHandle(TONE[None, None], source_rate_hz=16_000)
    with pytest.raises(InputError, match=r"above 0 with samples in memory; got 0"):
        AudioHandle(TONE, source_rate_hz=0)


# --- codecs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [
        ("WAV", "GSM610", 0.2),
        ("WAV", "G721_32", 0.1),
        ("AU", "G723_24", 0.2),
        ("AU", "G723_40", 0.1),
        ("WAV", "NMS_ADPCM_16", 0.4),
        ("WAV", "NMS_ADPCM_32", 0.1),
        ("WAV", "ULAW", 0.02),
        ("WAV", "ALAW", 0.02),
        ("WAV", "IMA_ADPCM", 0.02),
        ("WAV", "MS_ADPCM", 0.02),
        ("AIFF", "GSM610", 0.2),
        ("CAF", "ALAC_16", 1e-4),
    ],
)
def test_telephone_codecs_are_decoded(form, subtype, tolerance):
    data = encoded(format=form, subtype=subtype)
    truth = torch.from_numpy(soundfile.read(io.BytesIO(data), frames=50_000, dtype="float32")[0])[None]
    sound = AudioHandle(data)
    whole = sound.decode()
    assert torch.equal(whole, truth)
    assert torch.equal(sound.decode(20_000, 5_000), truth[:, 20_000:25_000])
    assert torch.equal(AudioHandle(data, audio_format=AudioFormat(on_short="zero")).decode(), truth)
    lag = min(
        range(600),
        key=lambda n: float((whole[0, 5_000 + n : 35_000 + n] - torch.from_numpy(TONE[5_000:35_000])).abs().mean()),
    )
    error = whole[0, 5_000 + lag : 35_000 + lag] - torch.from_numpy(TONE[5_000:35_000])
    assert float(error.abs().mean()) < tolerance


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
def test_containers_of_any_number_of_channels(tmp_path, layout):
    """PyAV reads beyond its pointers where eight or more planes are taken one by one."""
    channels = av.AudioLayout(layout).nb_channels
    samples = np.stack([TONE * (c + 1) / channels for c in range(channels)])
    path = muxed(tmp_path / "a.mkv", samples, codec="pcm_s16le", layout=layout)
    sound = AudioHandle(path, audio_format=AudioFormat(channels=channels))
    assert sound.header.decoder == "av"
    torch.testing.assert_close(sound.decode(), torch.from_numpy(samples), atol=1e-4, rtol=0)


def test_a_float_wav_that_states_57_channels_ends_no_process(tmp_path):
    data = bytearray(encoded(format="WAV", subtype="FLOAT"))
    at = data.index(b"fmt ") + 10
    data[at : at + 2] = struct.pack("<H", 57)
    path = tmp_path / "many.wav"
    path.write_bytes(data)
    for source, length in ((path, None), (bytes(data), 10)):
        sound = AudioHandle(source)
        assert sound.header.channels == 57  # 700 samples of each: what the header says is what the bytes may be
        assert sound.decode(0, length).abs().max() <= 0.5


def test_the_clock_of_a_recording_begins_at_its_first_sample(tmp_path):
    for name, codec in (("late.mkv", "pcm_s16le"), ("late.ts", "mp2"), ("late.mp4", "aac")):
        for start in (0.0, 20.0):
            sound = AudioHandle(muxed(tmp_path / name, TONE[None], codec=codec, start=start))
            assert abs(sound.facts["length"] - 40_000) < 2_400, (name, start)
            whole = sound.decode()
            assert whole[0, 3_000:36_000].abs().max() > 0.45
            torch.testing.assert_close(sound.decode(20_000, 8_000), whole[:, 20_000:28_000], atol=2e-3, rtol=0)


# --- what a header promises ------------------------------------------------------------------------------------------

CONTAINERS = [
    *[(form, "PCM_16") for form in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")],
    *[("WAV", "GSM610"), ("AU", "G721_32"), ("CAF", "ALAC_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")],
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("form", "subtype"), CONTAINERS, ids=lambda value: value)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error_with_its_name(tmp_path, form, subtype, share, capfd):
    data = encoded(format=form, subtype=subtype)
    assert read_promise(data) == ("", True)
    assert AudioHandle(data).decode().shape[1] >= 39_000
    path = tmp_path / "cut.audio"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cut\.audio"):
        AudioHandle(path).decode()
    if form != "FLAC":  # its header states the samples, not the bytes
        with pytest.raises(DataError, match=r"cut\.audio"):
            open_audio([path])
    assert "Xing" not in capfd.readouterr().err


@pytest.mark.parametrize("form", ["WAV", "W64", "AIFF", "AU", "CAF", "MP3"])
def test_what_is_there_can_be_asked_for(form):
    data = encoded(format=form)
    there = AudioHandle(data[: len(data) // 2], audio_format=AudioFormat(on_short="zero")).decode()
    assert 15_000 < there.shape[1] < 25_000
    assert 0.45 < there.abs().max() < 0.6


def test_a_file_without_the_chunks_after_its_samples_is_whole():
    data = bytearray(encoded(format="WAV"))
    data[4:8] = struct.pack("<I", len(data) + 5_000)
    assert AudioHandle(bytes(data)).decode().shape[1] == 40_000
    assert read_promise(b"caff" + bytes(1_000_000)) == ("", True)  # a thousand chunks at most are looked at


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0, 24])
def test_a_file_that_was_written_to_a_pipe_has_the_length_of_its_data(size):
    data = bytearray(encoded(format="WAV"))
    data[4:8], data[40:44] = struct.pack("<I", size), struct.pack("<I", size)
    assert AudioHandle(bytes(data)).decode().shape[1] == 40_000 if size > 24 else True
    au = bytearray(encoded(format="AU"))
    au[8:12] = struct.pack(">I", 0xFFFFFFFF)
    assert AudioHandle(bytes(au)).decode().shape[1] == 40_000


def test_an_mp3_without_a_count_of_frames_is_read_whole(tmp_path):
    noise = np.random.default_rng(0).standard_normal(160_000) * 0.3
    still = np.zeros(160_000)
    for name, samples in (("quiet, loud", [still, noise]), ("loud, quiet", [noise, still])):
        whole = encoded(np.concatenate(samples), format="MP3")
        data = whole[whole.index(b"\xff\xf3", 100) :]
        sound = AudioHandle(b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + data)
        assert sound.facts["length"] == 321_408, name  # 558 frames of 576 samples, and the delay of the encoder
        decoded = sound.decode()
        loud = decoded[0].unfold(0, 8_000, 8_000).square().mean(1).sqrt() > 0.05
        expected = torch.arange(40) >= 20 if name == "quiet, loud" else torch.arange(40) < 20
        assert (loud == expected).sum() >= 39
        torch.testing.assert_close(sound.decode(200_000, 16_000), decoded[:, 200_000:216_000], atol=1e-4, rtol=0)


def test_a_stream_of_aac_without_a_length_is_read_whole(tmp_path):
    loud = np.random.default_rng(0).standard_normal(40_000).clip(-3, 3) * 0.3
    path = muxed(tmp_path / "radio.aac", np.concatenate([np.zeros(80_000), loud])[None], codec="aac")
    sound = AudioHandle(path)
    assert 120_000 <= sound.facts["length"] <= 123_000  # whole frames of 1,024 samples, and the delay of the encoder
    whole = sound.decode()
    assert whole[0, 84_000:118_000].square().mean().sqrt() > 0.2
    assert whole[0, :78_000].abs().max() < 0.01


def test_an_mp3_in_two_parts_is_read_whole_without_noise(capfd):
    data = encoded(format="MP3")
    sound = AudioHandle(data + data)
    assert 79_000 < sound.facts["length"] < 83_000
    assert sound.decode()[0, 45_000:75_000].abs().max() > 0.45
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "m4a", "mkv"])
@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"<!doctype html><title>404</title>" * 9])
def test_a_file_that_is_no_recording_is_named_at_both_stages(tmp_path, suffix, content):
    path = tmp_path / f"odd.{suffix}"
    path.write_bytes(content)
    sound = AudioHandle(path)
    with pytest.raises(DataError, match=rf"odd\.{suffix}"):
        sound.header  # noqa: B018
    with pytest.raises(DataError, match=rf"odd\.{suffix}"):
        sound.facts  # noqa: B018
    with pytest.raises(DataError, match=rf"odd\.{suffix}"):
        sound.decode()


@pytest.mark.parametrize("form", ["WAV", "OGG", "FLAC", "AIFF"])
def test_a_recording_of_no_samples_is_named(tmp_path, form):
    path = tmp_path / "none.audio"
    path.write_bytes(encoded(np.zeros(0, np.float32), format=form))
    with pytest.raises(DataError, match=r"none\.audio"):
        open_audio([path])


@pytest.mark.parametrize(("field", "value"), [(24, 0), (24, 7), (24, 2**31 - 1), (22, 0), (22, 2_000)])
def test_absurd_rates_and_channels_are_refused(tmp_path, field, value):
    data = bytearray(encoded(format="WAV"))
    data[field : field + (4 if field == 24 else 2)] = struct.pack("<I" if field == 24 else "<H", value)
    path = tmp_path / "absurd.wav"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"absurd\.wav"):
        AudioHandle(path).header  # noqa: B018


def test_a_file_that_vanishes_between_header_and_decoding_is_named(tmp_path):
    path = tmp_path / "gone.wav"
    path.write_bytes(encoded(format="WAV"))
    sound = AudioHandle(path)
    assert sound.facts["length"] == 40_000
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"gone\.wav"):
        sound.decode()
    path.unlink()
    with pytest.raises(DataError, match=r"gone\.wav"):
        sound.decode()


def test_libraries_write_nothing_to_the_standard_error(tmp_path, capfd):
    """For spans that begin inside an MP3, and for a page that is named .mp3."""
    noise = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    soundfile.write(tmp_path / "noise.mp3", noise, 16_000, format="MP3")
    (tmp_path / "page.mp3").write_text("<html>404 not found</html>" * 50)
    handle = AudioHandle(tmp_path / "noise.mp3")
    for start in range(5_000, 30_000, 2_500):
        handle.decode(start, 5_000)
    with pytest.raises(DataError, match=r"got soundfile: no audio; av: Invalid data found when processing input\."):
        _ = AudioHandle(tmp_path / "page.mp3").facts
    assert capfd.readouterr().err == ""
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"
