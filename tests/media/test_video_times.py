"""Time in video files: containers × codecs × B-frames × first times × edit lists × rotation × variable rates.

Each file is made of frames whose gray level is their number, so that the truth is what was written. Frames and
durations are also compared with PyAV's own packets and frames, read here in the plainest way.
"""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch

from mmcon.errors import DataError
from mmcon.media.video_files import open_video

STEP = 10
EVEN = [i / 10 for i in range(24)]
UNEVEN = [0, 0.1, 0.15, 0.6, 0.61, 0.62, 1.3, 1.35, 2.0, 3.0, 3.1, 3.9]
SLIDES = [0, 1.0, 1.5, 4.0]


class Case(NamedTuple):
    """How a file is made. `shown`: the part in seconds that an edit list shows."""

    suffix: str
    codec: str = "libx264"
    b_frames: int = 0
    start: float = 0.0
    stamps: list[float] = EVEN
    turn: int = 0
    shown: tuple[float, float] | None = None
    sound: bool = False

    @property
    def name(self) -> str:
        kind = {id(EVEN): "even", id(UNEVEN): "uneven", id(SLIDES): "slides"}[id(self.stamps)]
        marks = [self.suffix, self.codec, f"b{self.b_frames}", f"from{self.start:g}", kind]
        marks += [f"turn{self.turn}"] * bool(self.turn) + ["edited"] * bool(self.shown) + ["sound"] * self.sound
        return "-".join(marks)


CASES = [
    *[Case(s, b_frames=b, start=t) for s in ("mp4", "mov", "mkv", "ts", "flv") for b in (0, 2) for t in (0.0, 20.0)],
    *[Case(s, b_frames=b, stamps=UNEVEN) for s in ("mp4", "mov", "mkv", "ts", "flv") for b in (0, 2)],
    *[Case("webm", codec=c, start=t) for c in ("libvpx", "libvpx-vp9") for t in (0.0, 20.0)],
    Case("webm", codec="libvpx", stamps=UNEVEN),
    *[Case("avi", codec=c) for c in ("mpeg4", "mjpeg", "libx264")],
    *[Case("wmv", codec="wmv2", start=t) for t in (0.0, 20.0)],
    *[Case(s, b_frames=b, shown=(0.5, 1.7)) for s in ("mp4", "mov") for b in (0, 2)],
    *[Case(s, turn=90, b_frames=b) for s in ("mp4", "mov") for b in (0, 2)],
    *[Case(s, stamps=SLIDES) for s in ("mp4", "mkv")],
    *[Case(s, sound=True, b_frames=2, start=t) for s in ("mp4", "mkv", "ts") for t in (0.0, 20.0)],
]


def make(path: Path, case: Case) -> None:
    with av.open(str(path), "w") as out:
        options = {"g": "10", "bf": str(case.b_frames), "crf": "4"} if case.codec == "libx264" else {"g": "10"}
        stream = out.add_stream(case.codec, rate=10, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if case.codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        base = Fraction(1, 10) if case.stamps is EVEN and not case.start else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = base
        if case.turn:
            stream.set_display_rotation(case.turn)
        sound = out.add_stream("aac", rate=16_000, layout="mono") if case.sound else None
        for i, stamp in enumerate(case.stamps):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round((stamp + case.start) / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound is not None:
            for i in range(60):  # 3.84 s, longer than the pictures
                block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                block.rate, block.pts = 16_000, round(case.start * 16_000) + 1024 * i
                out.mux(sound.encode(block))
            out.mux(sound.encode(None))
    if case.shown:
        edit(path, *case.shown)


def edit(path: Path, begin: float, end: float) -> None:
    """Let the edit list of an mp4 or mov file show a part alone."""
    data = bytearray(path.read_bytes())
    (movie_scale,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    (media_scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    at = data.index(b"elst") + 12
    (first,) = struct.unpack_from(">i", data, at + 4)  # the delay of B-frames
    struct.pack_into(">Ii", data, at, round((end - begin) * movie_scale), first + round(begin * media_scale))
    path.write_bytes(data)


def truth(path: Path, case: Case) -> tuple[list[int], list[float], float]:
    """The numbers of the shown frames, their times from the first, and the end of the last."""
    with av.open(str(path)) as container:
        frames = sorted(container.decode(video=0), key=lambda frame: frame.pts)
        numbers = [round(float(frame.to_ndarray(format="gray").mean()) * 219 / 255 / STEP) for frame in frames]
        times = [frame.time - frames[0].time for frame in frames]
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size and not p.is_discard and p.pts is not None]
        assert len(packets) == len(frames)
        last = max(packets, key=lambda packet: packet.pts)
        lasts = float((last.duration or 0) * last.time_base) or times[-1] / (len(times) - 1)
    return numbers, times, times[-1] + lasts


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_header_and_frames_are_those_of_the_file(tmp_path: Path, case: Case):
    path = tmp_path / f"made.{case.suffix}"
    make(path, case)
    begin, stop = case.shown or (0.0, 1e9)
    written = [(i, stamp - begin) for i, stamp in enumerate(case.stamps) if begin - 1e-6 <= stamp < stop - 1e-6]
    _, times, end = truth(path, case)
    np.testing.assert_allclose(times, [stamp for _, stamp in written], atol=2e-3)

    video = open_video(path)
    assert video.header.frames == len(written)
    assert video.header.duration_seconds == pytest.approx(end, abs=2e-3)
    assert video.header.frames_per_second == pytest.approx(len(written) / end, rel=0.011)
    assert (video.header.height, video.header.width) == ((64, 48) if case.turn else (48, 64))
    whole = video.decode_all(None)
    np.testing.assert_allclose(whole.times, np.asarray(times) + whole.times[0], atol=1e-6)

    # The middle of each frame, jointly and one by one; the last up to shortly before its end.
    edges = [*times, end]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)] + [end - 0.01]
    numbers = [i for i, _ in written] + [written[-1][0]]
    jointly = video.decode(middles)
    assert (jointly.float().mean((1, 2, 3)) / STEP).round().int().tolist() == numbers
    for at in (0, 1, len(written) // 2, len(written) - 1, len(written)):
        assert torch.equal(video.decode([middles[at]])[0], jointly[at])
    with pytest.raises(DataError, match=path.name):
        video.decode([end + 1.0 + 3 / video.rate])


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_last_frame_stands_as_long_as_its_packet_says(tmp_path: Path, suffix: str):
    made, slides = tmp_path / "made.mkv", tmp_path / f"slides.{suffix}"
    make(made, Case("mkv"))
    with av.open(str(made)) as source, av.open(str(slides), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets:
            packet.duration = int((8 if packet is packets[-1] else 0.1) / packet.time_base)
            packet.stream = stream
            out.mux(packet)
    video = open_video(slides)
    assert video.header.duration_seconds == pytest.approx(2.3 + 8)
    shown = video.decode([1.0, 5.0, 10.2]).float().mean((1, 2, 3)) / STEP
    assert shown.round().int().tolist() == [10, 23, 23]
    assert len(video.decode_all(None).times) == 24
    with pytest.raises(DataError, match="truncated"):
        video.decode([20.0])


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_long_files_are_measured_from_their_end(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    """Beyond some size, not all packets are read; transport streams are decoded from an earlier keyframe."""
    from mmcon.media import packet_times

    monkeypatch.setattr(packet_times, "_READ_WHOLE_BYTES", 0)
    case = Case(suffix, b_frames=2, start=20.0)
    make(tmp_path / f"made.{suffix}", case)
    video = open_video(tmp_path / f"made.{suffix}")
    assert video.header.duration_seconds == pytest.approx(2.4, abs=2e-3)
    assert video.header.frames_per_second == pytest.approx(10, rel=0.011)
    assert (video.decode([1.75, 2.35]).float().mean((1, 2, 3)) / STEP).round().int().tolist() == [17, 23]


def test_times_before_the_first_frame_show_it(tmp_path: Path):
    make(tmp_path / "made.ts", Case("ts", b_frames=2))
    frames = open_video(tmp_path / "made.ts").decode([-1.0, 0.05])
    assert (frames.float().mean((1, 2, 3)) / STEP).round().int().tolist() == [0, 0]


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"<!doctype html><title>404</title>" * 9])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "gif", "h264"])
def test_a_file_that_is_no_video_is_named(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"odd.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"odd\.{suffix}"):
        open_video(path)
