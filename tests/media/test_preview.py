"""Previews: what a page plays and shows is the medium itself, small, and readable by common decoders."""

import base64
import io
import math

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmcon.media import AudioFormat, AudioHandle, ImageHandle, Instances, TextHandle
from mmcon.media.preview import PLAYED_SECONDS, SHOWN_LETTERS, image_uri, preview_of, preview_of_view


def content(uri):
    head, _, text = uri.partition(";base64,")
    return head.removeprefix("data:"), io.BytesIO(base64.b64decode(text))


def test_an_image_is_scaled_down_and_never_up():
    large, small = torch.full((3, 120, 240), 200, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    mime, file = content(preview_of(ImageHandle(large), "image", side=60).picture)
    with Image.open(file) as image:
        assert (mime, image.format, image.size) == ("image/webp", "WEBP", (60, 30))
        assert abs(int(np.asarray(image.convert("L")).mean()) - 200) <= 2
    with Image.open(content(preview_of(small, "image").picture)[1]) as image:
        assert image.size == (8, 8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (torch.full((3, 8, 8), 0.5), 128),
        (torch.full((3, 8, 8), 100, dtype=torch.uint8), 100),
        (torch.full((2, 8, 8), 60, dtype=torch.uint8), 60),  # two channels are no color: their mean
        (torch.full((3, 8, 8), -1.0), 0),  # scaled from [-1, 1]
    ],
)
def test_pixels_of_views(pixels, expected):
    with Image.open(content(image_uri(pixels, side=8))[1]) as image:
        assert abs(float(np.asarray(image.convert("L")).mean()) - expected) <= 2


@pytest.mark.parametrize("rate_hz", [8_000, 10_000])  # MP3 does not have the second one
def test_a_sound_is_heard_at_its_pitch(rate_hz):
    """A tone of 440 Hz, of which the first seconds are kept: the strongest frequency is 440 Hz again."""
    time = torch.arange(6 * rate_hz) / rate_hz
    tone = (2 * math.pi * 440 * time).sin()[None] / 2
    shown = preview_of(AudioHandle(tone, source_rate_hz=rate_hz, audio_format=AudioFormat(rate_hz)), "audio")
    mime, file = content(shown.sound)
    heard, at_hz = soundfile.read(file)
    assert mime == "audio/mpeg"
    assert len(heard) / at_hz == pytest.approx(PLAYED_SECONDS, abs=0.2)
    spectrum = np.abs(np.fft.rfft(heard[: 2 * at_hz]))
    assert spectrum.argmax() / 2 == pytest.approx(440, abs=2)
    assert shown.picture.startswith("data:image/webp")


def test_a_clip_plays_its_frames():
    frames = torch.stack([torch.full((3, 20, 30), 40 * i, dtype=torch.uint8) for i in range(6)])
    shown = preview_of_view(frames, "video", side=20)
    mime, file = content(shown.clip)
    with av.open(file) as container:
        decoded = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
        size = container.streams.video[0].width, container.streams.video[0].height
    assert mime == "video/mp4"
    assert size == (20, 14)
    assert decoded == pytest.approx([0, 40, 80, 120, 160, 200], abs=8)


def test_texts_and_other_things():
    long = TextHandle(("word " * 200, "other"), ("text", "title"))
    text = preview_of(long, "text").text
    assert len(text) == SHOWN_LETTERS
    assert text.endswith("…")
    assert preview_of(Instances([TextHandle(("one",))], max_instances=2), "text").to_json() == {"text": "one"}
    assert preview_of_view({"input_ids": torch.zeros(4)}, "text").text == "input_ids (4,)"
    assert preview_of_view(torch.zeros(5), "series").text == "float32 (5,)"
    log_mel = {"log_mel": torch.rand(1, 16, 40), "length": torch.tensor(20)}
    assert preview_of_view(log_mel, "audio").to_json().keys() == {"picture"}
