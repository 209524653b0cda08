"""What the header of an audio file promises beyond its length, read from a few bytes before any decoder sees them.

Decoders take the part of a truncated file for the whole, and estimate the length of an MP3 without a count of its
frames. Both are visible in the container: the size that it states, the last page of an Ogg file, the Xing header.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import NamedTuple

# Programs that write to a pipe cannot know the size, and state one of these, or more.
_UNKNOWN_SIZES = (range(0x7FFF0000, 0x80000101), range(0xFFFF0000, 0x100000000))
_LONGEST_OGG_PAGE = 65_307
_SIZE_TOLERANCE = 0.01
_MOST_CHUNKS = 1_000


class Promise(NamedTuple):
    """What a file states about its size.

    Attributes:
        missing: what is not there, for a message; empty if nothing is known to be missing.
        counted: whether the header counts the frames: True for all formats but MP3, whose header is optional.
    """

    missing: str = ""
    counted: bool = True


def read_promise(source: str | Path | bytes) -> Promise:
    """Compare what the container states with the size of the file."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(32)
        if head.startswith(b"OggS"):
            return Promise("" if _has_last_page(file, size) else "the last page, which marks the end")
        if head.startswith(b"ID3") or _is_frame_of_mp3(head):
            return _promise_of_mp3(file, size)
        stated = _stated_size(head, file, size)
    # Some programs state the size of the file where the format wants it without the first 8 bytes.
    return Promise(f"{stated - size:,} of the {stated:,} bytes that its header states" if stated > size + 8 else "")


def _stated_size(head: bytes, file: io.BufferedIOBase, size: int) -> int:
    """The size of the whole file by its outermost chunk, or 0 if it states none (32 bytes of every format suffice)."""
    if len(head) < 32:
        return 0
    if head.startswith(b"caff"):
        return _end_of_chunks(file, size, 8, ">4sq")
    if head[:16] == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00":  # Sony Wave64
        return struct.unpack_from("<Q", head, 16)[0]
    if head.startswith(b"RF64") and head[12:16] == b"ds64":
        return 8 + struct.unpack_from("<Q", head, 20)[0]
    if head.startswith((b"RIFF", b"FORM")):
        order = "<" if head.startswith(b"RIFF") else ">"
        whole = _known(8, struct.unpack_from(f"{order}I", head, 4)[0])
        # Both: some programs state a wrong size of the file, or drop the chunks after the samples.
        return min(whole, _end_of_chunks(file, size, 12, f"{order}4sI"))
    if head.startswith(b".snd"):
        return _known(*struct.unpack_from(">II", head, 4))
    return 0


def _known(header: int, stated: int) -> int:
    return 0 if any(stated in sizes for sizes in _UNKNOWN_SIZES) else header + stated


def _end_of_chunks(file: io.BufferedIOBase, size: int, first: int, layout: str) -> int:
    """The end of the last chunk; a chunk of unknown size reaches to the end of the file."""
    at, header = first, struct.calcsize(layout)
    for _ in range(_MOST_CHUNKS):
        if at + header > size:
            return at
        file.seek(at)
        (_, stated) = struct.unpack(layout, file.read(header))
        if stated < 0:
            return size
        at += header + stated + (stated % 2 if header == 8 else 0)
    return size


def _has_last_page(file: io.BufferedIOBase, size: int) -> bool:
    """Whether the last page of an Ogg file is complete and marked as the end of its stream."""
    file.seek(max(0, size - _LONGEST_OGG_PAGE))
    tail = file.read(_LONGEST_OGG_PAGE)
    at = tail.rfind(b"OggS")
    page = tail[at:]
    if at < 0 or len(page) < 27:
        return False
    body = 27 + page[26]
    return bool(page[5] & 4) and len(page) >= body + sum(page[27:body])


def _is_frame_of_mp3(head: bytes) -> bool:
    """Whether bytes begin with the header of a frame of MPEG audio, layer III."""
    return len(head) > 3 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] & 0xF0 != 0xF0


def _promise_of_mp3(file: io.BufferedIOBase, size: int) -> Promise:
    """The size and the count of the Xing header, which is in the first frame, after an ID3 tag of any length."""
    file.seek(0)
    tag = file.read(10)
    begin = 0
    if tag.startswith(b"ID3") and len(tag) == 10:
        begin = 10 + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(tag[6:])))
    file.seek(begin)
    frame = file.read(4 + 2 + 32 + 16)  # the header, a check sum, side information of up to 32 bytes, the Xing header
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags, _, stated = struct.unpack_from(">III", frame, at + 4) if 0 <= at <= len(frame) - 16 else (0, 0, 0)
    if flags & 3 != 3:
        return Promise(counted=False)
    there = size - begin
    if stated > there * (1 + _SIZE_TOLERANCE):
        return Promise(f"{stated - there:,} of the {stated:,} bytes that its Xing header states", counted=False)
    return Promise(counted=there <= stated * (1 + _SIZE_TOLERANCE))
