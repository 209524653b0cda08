"""When the packets of a stream begin and end, read without decoding: FFmpeg's headers often do not know or mislead.

A packet is a frame of video or a block of audio. The clocks of many files do not begin at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# FFmpeg marks formats without an index of their own, such as raw MP3 and AAC: their stated duration is an estimate.
_GENERIC_INDEX = 0x100
_MICROSECOND = 1_000_000


def stream_start(stream: Any) -> float:
    """The time of the first packet, in seconds on the clock of the file."""
    return float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0


def states_no_length(container: Any, stream: Any) -> bool:
    """Whether the duration of a stream is unknown, or an estimate by the size of the file."""
    return stream.duration is None or bool(container.format.flags & _GENERIC_INDEX)


def end_of_packets(open_container: Callable[[], Any], kind: str, *, whole: bool) -> float | None:
    """The end of the last packet of the first stream of a kind, in seconds on the clock of the file.

    Args:
        open_container: opens the file; a raw stream cannot seek back, so that the file is opened anew.
        kind: "audio" or "video".
        whole: read all packets; else those after the last seek point, which a complete file has.

    Returns:
        None if no packet has a time.
    """
    with open_container() as container:
        stream = getattr(container.streams, kind)[0]
        if not whole and container.duration:
            container.seek((container.start_time or 0) + container.duration, backward=True)
        packets = (p for p in container.demux(stream) if p.pts is not None and p.size and not p.is_discard)
        ends = [(packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets]
    if not ends and not whole:
        return end_of_packets(open_container, kind, whole=True)
    return float(max(ends)) if ends else None
