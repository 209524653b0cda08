"""When the packets of a stream begin and end, read without decoding: FFmpeg's headers often do not know, or mislead.

A packet is a frame of video or a block of audio. The clocks of many files do not begin at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

SAME_RATE = 0.01
"""Two statements of a rate that differ by less, as a share, are one rate."""

# Up to this size, all packets of a video that does not state its number of frames are read when it is opened.
_READ_WHOLE_BYTES = 64 << 20
# A header that states more than the packets by more than this, in seconds and in frames, belongs to a truncated file.
_MISSING_SECONDS, _MISSING_FRAMES = 0.5, 2.5
# In microseconds: a seek in a transport stream lands between packets that are out of order.
_BEFORE_THE_END = 2_000_000
# FFmpeg marks formats without an index of their own, such as raw MP3 and AAC: their stated duration is an estimate.
_GENERIC_INDEX = 0x100


class PacketTimes(NamedTuple):
    """The times of the packets of a stream, in seconds on the clock of the file; None where no packet has a time.

    Attributes:
        count: the number of packets that are shown or heard.
        begin: the time of the first.
        last: the time of the last.
        end: the end of the last; its time, if it states no duration.
        end_of_all: the end of the last packet of any stream.
    """

    count: int
    begin: float | None
    last: float | None
    end: float | None
    end_of_all: float | None


def stream_start(stream: Any) -> float:
    """The time of the first packet, in seconds on the clock of the file."""
    return float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0


def states_no_length(container: Any, stream: Any) -> bool:
    """Whether the duration of a stream is unknown, or an estimate by the size of the file."""
    return stream.duration is None or bool(container.format.flags & _GENERIC_INDEX)


def read_packet_times(open_container: Callable[[], Any], kind: str, *, whole: bool) -> PacketTimes:
    """Read the packets of the first stream of a kind, all or those after the last seek point.

    Args:
        open_container: opens the file; a raw stream cannot seek back, so that the file is opened anew.
        kind: "audio" or "video".
        whole: read all packets; else the last ones, and `count` and `begin` are theirs.
    """
    with open_container() as container:
        stream = getattr(container.streams, kind)[0]
        if not whole and container.duration:
            end = (container.start_time or 0) + container.duration
            container.seek(max(container.start_time or 0, end - _BEFORE_THE_END), backward=True)
        count, own, ends_of_all = 0, [], []
        for packet in container.demux():
            if not packet.size or packet.is_discard:
                continue
            count += packet.stream_index == stream.index
            if packet.pts is None:
                continue
            time = float(packet.pts * packet.time_base)
            end = time + float((packet.duration or 0) * packet.time_base)
            ends_of_all.append(end)
            if packet.stream_index == stream.index:
                own.append((time, end))
    if not own and not whole:
        return read_packet_times(open_container, kind, whole=True)
    if not own:
        return PacketTimes(count, None, None, None, max(ends_of_all, default=None))
    last, end = max(own)
    return PacketTimes(count, min(own)[0], last, end, max(ends_of_all))


def promised_seconds(container: Any, stream: Any, start: float) -> float:
    """The duration that the header states, or 0; some formats without a number of frames count it from 0."""
    stated = float((stream.duration or 0) * (stream.time_base or 0))
    # Of several streams the container has the length of the longest.
    stated = stated or (container.duration or 0) / 1e6
    return stated - start if stated > start > 0 and not stream.frames else stated


def measure_frames(
    open_container: Callable[[], Any], container: Any, stream: Any, *, start: float, size: int
) -> tuple[int, float]:
    """The number of frames of a video, or 0, and its duration by its packets, or 0 where the header is trusted.

    Headers mislead: edit lists shorten the duration and not the number of frames, the duration of a variable rate with
    B-frames is that of another order, Matroska and ASF count from 0 whatever the first frame's time, and the durations
    of transport streams, program streams and files without an index are guesses.

    Args:
        open_container: opens the file anew.
        container: the open file.
        stream: its video stream.
        start: the time of the first frame, on the clock of the file.
        size: the bytes of the file.
    """
    promised, frames, indexed = promised_seconds(container, stream, start), stream.frames, len(stream.index_entries)
    mean, base = float(stream.average_rate or 0), float(stream.base_rate or 0)
    is_steady = mean > 0 and abs(base / mean - 1) < SAME_RATE and abs(promised * mean - frames) < 1.5
    if frames and is_steady and (not indexed or abs(indexed - frames) < 2):
        return frames, 0.0
    by_index = frames > 0 and "mov" in container.format.name  # the only complete one
    whole = not container.duration or (not by_index and size <= _READ_WHOLE_BYTES)
    packets = read_packet_times(open_container, "video", whole=whole)
    count = sum(not entry.is_discard for entry in stream.index_entries) if by_index else packets.count * whole
    if packets.last is None or packets.end is None or packets.end_of_all is None or count == 1:
        return count, 0.0
    one = (packets.last - start) / (count - 1) if whole else mean and 1 / mean
    seconds = (packets.end if packets.end > packets.last else packets.last + one) - start
    if promised - (packets.end_of_all - start) > max(_MISSING_SECONDS, _MISSING_FRAMES * one):
        return 0, promised  # truncated: an error is raised where a frame is missing
    return count, seconds
