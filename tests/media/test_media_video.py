"""Clips by time: whatever way the frames of a moment are reached, they are the same, and bad files say so."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from made_videos import EVEN, frame_of, write
from PIL import Image

from mmcon.errors import DataError, InputError, MissingDependencyError
from mmcon.media.video import FrameStack, VideoSpan, scaled_size
from mmcon.media.video_files import FrameCache, open_video


def levels(frames: torch.Tensor) -> list[int]:
    """Which frames they are, read from their grey."""
    return (frames.float().mean((1, 2, 3)) / 4).round().int().tolist()


UNEVEN = [0, 10, 15, 60, 61, 62, 130, 135, 200, 300, 310, 390]


@pytest.fixture
def even(tmp_path: Path) -> Path:
    return write(tmp_path / "even.mp4", stamps=EVEN)


def test_the_header_is_read(even: Path):
    header = open_video(even).header
    assert (header.height, header.width, header.frames) == (48, 64, 40)
    assert header.duration_seconds == pytest.approx(4.0, abs=0.1)
    assert header.frames_per_second == pytest.approx(10, rel=0.03)


def test_a_moment_shows_the_last_frame_that_is_not_after_it(even: Path):
    times = [0.0, 0.05, 0.1, 1.99, 2.0, 3.9]
    assert levels(open_video(even).decode(times)) == [0, 0, 1, 19, 20, 39]


def test_variable_rate_is_read_by_time(tmp_path: Path):
    clip = open_video(write(tmp_path / "uneven.mkv", stamps=UNEVEN))
    # 0.5 s lies in frame 2, which stands from .15 to .6; 2.9 s in frame 8, which stands from 2.0 to 3.0.
    assert levels(clip.decode([0.12, 0.5, 0.605, 1.0, 2.9, 3.05])) == [1, 2, 3, 5, 8, 9]


def test_order_and_repeats_are_those_that_were_asked_for(even: Path):
    assert levels(open_video(even).decode([3.0, 1.0, 1.0, 2.0])) == [30, 10, 10, 20]


def test_a_span_equals_the_whole_bit_by_bit(tmp_path: Path):
    for name, stamps in (("even.mp4", EVEN), ("uneven.mkv", UNEVEN)):
        clip = open_video(write(tmp_path / name, stamps=stamps))
        times = [0.1 * i + 0.03 for i in range(38)]
        whole = clip.decode_all(None).decode(times)
        for start in range(0, 38, 5):
            assert torch.equal(clip.decode(times[start : start + 5]), whole[start : start + 5])


def test_seeking_decodes_no_more_than_from_a_keyframe(even: Path, monkeypatch: pytest.MonkeyPatch):
    from mmcon.media import video_container

    clip, seen = open_video(even), []
    frames_of = video_container._OpenContainer.frames

    def counted(self, **options):
        for frame in frames_of(self, **options):
            seen.append(frame.time)
            yield frame

    monkeypatch.setattr(video_container._OpenContainer, "frames", counted)
    clip.decode([3.55])
    assert min(seen) >= 3.0 - 1e-6  # a keyframe stands each second
    assert len(seen) <= 7


def test_rotation_makes_the_picture_upright(tmp_path: Path):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(90)
        picture = np.zeros((48, 64, 3), dtype=np.uint8)
        picture[:24] = 200  # stored: the upper half is light
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        stated = next(container.decode(video=0)).rotation
    clip = open_video(path)
    assert (clip.header.height, clip.header.width) == (64, 48)
    frame = clip.decode([0.0])[0].float().mean(0)
    assert frame.shape == (64, 48)
    expected = np.rot90(picture[..., 0], round(stated / 90) % 4)
    assert (frame.numpy() - expected).__abs__().mean() < 6


def test_odd_sizes_and_scaling(tmp_path: Path):
    path = tmp_path / "odd.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 33, 51, "yuvj444p"
        for i in range(6):
            frame = frame_of(i * 8, (33, 51)).reformat(format="yuvj444p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = open_video(path)
    assert clip.decode([0.0]).shape == (1, 3, 33, 51)
    assert clip.decode([0.0], shorter_side=16).shape == (1, 3, *scaled_size(33, 51, 16)) == (1, 3, 16, 25)
    assert clip.decode([0.0], shorter_side=100).shape == (1, 3, 33, 51)  # never scaled up


def test_one_frame_is_a_clip(tmp_path: Path):
    clip = open_video(write(tmp_path / "one.mp4", stamps=[0]))
    assert clip.header.duration_seconds > 0
    assert levels(clip.decode([0.0, 0.05])) == [0, 0]


def test_a_file_whose_rate_is_zero_takes_the_one_that_is_given(tmp_path: Path):
    """One frame, and zeros in place of Matroska's DefaultDuration (23 E3 83): no average rate is left to state."""
    path = write(tmp_path / "one.mkv", stamps=[0])
    data = bytearray(path.read_bytes())
    at = data.index(bytes([0x23, 0xE3, 0x83]))
    data[at + 4 : at + 4 + (data[at + 3] & 0x7F)] = bytes(data[at + 3] & 0x7F)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert not container.streams.video[0].average_rate
    for given, rate in ((25, 25), (None, 10)):  # the container still says that it lasts a tenth of a second
        clip = open_video(path, frames_per_second=given)
        assert clip.rate == pytest.approx(rate)
        assert (clip.header.frames, clip.header.duration_seconds) == (1, pytest.approx(0.1))
    assert levels(clip.decode([0.0, 0.05])) == [0, 0]


def test_a_file_of_which_no_rate_is_known_is_refused(even: Path, monkeypatch: pytest.MonkeyPatch):
    from mmcon.media import video_container

    for name in ("rate", "guess"):
        monkeypatch.setattr(video_container._OpenContainer, name, lambda self: 0.0)
    monkeypatch.setattr(video_container, "_rate_of", lambda stamps: 0.0)
    monkeypatch.setattr(video_container._OpenContainer, "duration", lambda self, start, rate: 0.0)
    with pytest.raises(DataError, match=r"frames_per_second=25"):
        open_video(even)


def test_a_file_without_timestamps_is_counted_at_its_rate(tmp_path: Path):
    write(tmp_path / "timed.mp4", stamps=EVEN)
    raw = tmp_path / "raw.h264"
    with av.open(str(tmp_path / "timed.mp4")) as source, av.open(str(raw), "w", format="h264") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    clip = open_video(raw)
    rate = clip.header.frames_per_second
    assert levels(clip.decode([0.0, 5.5 / rate, 20.5 / rate])) == [0, 5, 20]


@pytest.mark.parametrize("name", ["cut.avi", "cut.mkv", "cut.flv", "cut.mp4"])
@pytest.mark.parametrize("kept", [10, 25])
def test_a_truncated_file_is_told(tmp_path: Path, name: str, kept: int):
    """Where the header states what is gone, its frames are an error; the frames that are there are right."""
    path = tmp_path / name
    if name == "cut.mp4":
        write(path, stamps=EVEN, options={"movflags": "faststart"})
    else:
        write(path, stamps=EVEN, codec="mpeg4" if name == "cut.avi" else "libx264")
    with av.open(str(path)) as container:
        end = [packet.pos for packet in container.demux(video=0) if packet.size][kept]
    path.write_bytes(path.read_bytes()[:end])
    clip = open_video(path)
    if name == "cut.avi":
        assert clip.header.duration_seconds < 3.5
    else:
        assert clip.header.duration_seconds == pytest.approx(4.0, abs=0.11)
        with pytest.raises(DataError, match=rf"{name}[\s\S]*truncated"):
            clip.decode([3.8])
        with pytest.raises(DataError, match=name):
            clip.decode_all(None)
    assert levels(clip.decode([0.25, 0.75])) == [2, 7]


def test_a_file_without_its_index_is_told(even: Path):
    even.write_bytes(even.read_bytes()[:600])
    with pytest.raises(DataError, match=r"even\.mp4"):
        open_video(even)


def test_a_file_with_sound_alone_is_told(tmp_path: Path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for _ in range(4):
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="streams of audio only"):
        open_video(path)


def test_what_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="nothing there"):
        open_video(tmp_path / "missing.mp4")


def test_bad_times_are_refused(even: Path):
    for times in ([], [float("nan")]):
        with pytest.raises(InputError, match="finite times"):
            open_video(even).decode(times)


def test_folders_of_frames(tmp_path: Path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 10), (4 * i,) * 3).save(folder / f"{i}.png")
    with pytest.raises(DataError, match="frames_per_second=25"):
        open_video(folder)
    clip = open_video(folder, frames_per_second=4)
    assert clip.header.duration_seconds == 3.0
    assert levels(clip.decode([0.0, 0.3, 2.6])) == [0, 1, 10]  # 10.png is the eleventh, not the second
    assert torch.equal(clip.decode_all(None).decode([2.6]), clip.decode([2.6]))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animated_images(tmp_path: Path, suffix: str):
    frames = [Image.new("RGB", (24, 16), (40 * i,) * 3) for i in range(5)]
    path = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 300, 100, 200, 100], **options)
    clip = open_video(path)
    assert clip.header.duration_seconds == pytest.approx(0.8)
    # Frame 1 stands from .1 to .4 s, frame 3 from .5 to .7 s.
    assert [level // 10 for level in levels(clip.decode([0.05, 0.35, 0.45, 0.69, 0.75]))] == [0, 1, 2, 3, 4]


def test_a_program_in_place_of_a_frame_is_never_run(tmp_path: Path):
    """Pillow hands PostScript to Ghostscript, whatever the suffix of the file."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png", "EPS")
    Image.new("RGB", (8, 8)).save(tmp_path / "clip.gif", "EPS")
    with pytest.raises(DataError, match=r"1\.png.*cannot identify image file"):
        open_video(tmp_path, frames_per_second=1)
    with pytest.raises(DataError, match=r"clip\.gif.*cannot identify image file"):
        open_video(tmp_path / "clip.gif")


def test_a_part_keeps_the_clock_of_the_whole(even: Path):
    part = VideoSpan(open_video(even), 1.0, 2.0)
    assert part.facts["start_seconds"] == 1.0
    assert part.facts["duration_seconds"] == 1.0
    assert part.facts["group"] == open_video(even).facts["group"]
    assert levels(part.decode()) == list(range(10, 20))
    with pytest.raises(DataError, match="begin < end"):
        VideoSpan(open_video(even), 2.0, 1.0)


def test_the_cache_gives_the_same_frames_and_keeps_its_bound(tmp_path: Path):
    paths = [write(tmp_path / f"{i}.mp4", stamps=EVEN[:10]) for i in range(3)]
    one = 10 * 3 * 24 * 32
    cache = FrameCache(max_bytes=2 * one)
    clips = [open_video(path, cache=cache) for path in paths]
    for clip, path in zip(clips, paths, strict=True):
        assert torch.equal(
            clip.decode([0.2, 0.9], shorter_side=24), open_video(path).decode([0.2, 0.9], shorter_side=24)
        )
    assert cache.bytes == 2 * one
    assert len(cache) == 2
    assert len(pickle.loads(pickle.dumps(cache))) == 0


def test_bytes_are_a_file(even: Path):
    assert torch.equal(open_video(even.read_bytes(), name="bytes").decode([1.0]), open_video(even).decode([1.0]))


def test_frames_in_memory():
    frames = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2) * 4
    assert levels(FrameStack(frames, frames_per_second=2).decode([0.0, 1.4, 99.0])) == [0, 2, 5]
    with pytest.raises(DataError, match="rate above 0"):
        FrameStack(frames, frames_per_second=0)


def test_a_missing_decoder_says_so(even: Path):
    pytest.importorskip("av")
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception:
        with pytest.raises(MissingDependencyError, match="TorchCodec"):
            open_video(even, decoder="torchcodec").decode([0.0])
    assert levels(open_video(even, decoder="auto").decode([1.0])) == [10]
