"""Small videos that tests write by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

#: Frame times in hundredths of a second, at an even rate.
EVEN = [10 * i for i in range(40)]


def frame_of(i: int, size: tuple[int, int]) -> av.VideoFrame:
    """Frame i is grey level 4 i."""
    return av.VideoFrame.from_ndarray(np.full((*size, 3), 4 * i, dtype=np.uint8), format="rgb24")


def write(
    path: Path,
    *,
    stamps: list[int],
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    turn: int = 0,
    options: dict[str, str] | None = None,
):
    """A video whose frame i is shown from stamps[i] hundredths of a second; options are those of the container."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10, options={"g": "10", "crf": "4"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        if turn:
            stream.set_display_rotation(turn)
        for i, stamp in enumerate(stamps):
            frame = frame_of(i, size)
            frame.pts, frame.time_base = stamp, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
