"""Video sources: clips whose headers are read when the source is made; long clips can be cut into windows.

Files without a readable frame are left out and reported. Frame times are later drawn from the headers, without reading
a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media.video import Decoder, VideoHandle, VideoSpan
from mmcon.media.video_files import FrameCache
from mmcon.random import stable_ids
from mmcon.sources.base import DatasetSource, Positions, Source
from mmcon.sources.fingerprint import file_sizes
from mmcon.sources.labels import is_missing
from mmcon.sources.listing import Listing, file_of, handle_opener, name_of_file
from mmcon.sources.quarantine import keep_readable, without_quarantined

GIGABYTE = 1 << 30
_FACTS = {
    "start_seconds": torch.float64,
    "duration_seconds": torch.float64,
    "frames_per_second": torch.float64,
    "frames": torch.int64,
    "height": torch.int64,
    "width": torch.int64,
    "group": torch.int64,
}
_SPAN_COLUMNS = ("start_seconds", "end_seconds", "frames_per_second")


@final
class ClipSource(Source):
    """Clips with known headers.

    Args:
        clips: the handles.
        options: as for Source; ids are hashes of the clips' names, and of their spans if a video has several clips.
    """

    def __init__(self, clips: Sequence[VideoHandle], **options: Any) -> None:
        self.clips = list(clips)
        names = [f"{c.name}@{c.span[0]:.3f}" if isinstance(c, VideoSpan) else c.name for c in self.clips]
        headers = [clip.facts for clip in self.clips]
        facts = {name: torch.tensor([of[name] for of in headers], dtype=kind) for name, kind in _FACTS.items()}
        super().__init__(ids=stable_ids(names), modality="video", facts=facts, **options)

    def open(self, rows: Positions) -> list[VideoHandle]:
        """The handles, by index."""
        positions: list[int] = torch.as_tensor(rows).tolist()
        return [self.clips[row] for row in positions]

    def name_of(self, row: int) -> str:
        """The path of a clip's file, else the name of the clip."""
        return name_of_file(self.clips[row], self.clips[row].name, Path())

    def file(self, row: int) -> Path | None:
        """The file of a clip's video, or its folder of frames."""
        return file_of(self.clips[row])

    def content_marks(self, rows: Int[Tensor, " m"]) -> list[int] | None:
        """The sizes of the videos' files; -1 for a folder of frames."""
        return file_sizes([self.clips[row] for row in rows.tolist()], Path())

    def windows(self, seconds: int | float, *, step: int | float | None = None) -> ClipSource:
        """Cut every clip into windows, one sample each; a clip shorter than a window is one sample.

        Times are on the clock of the whole video, and the column `group` identifies the video. So time affinities are
        defined between windows, and all windows of a video stay in one split.

        Args:
            seconds: the length of a window.
            step: seconds from one start to the next; by default the length.
        """
        step = step or seconds
        if seconds <= 0 or step <= 0:
            raise InputError("windows", expected="seconds and step above 0", got=f"{seconds} and {step}")
        spans, origin = [], []
        for row, clip in enumerate(self.clips):
            begin, end = clip.span
            count = max(1, int((end - begin - seconds) / step + 1e-6) + 1)
            for i in range(count):
                start = begin + i * step
                spans.append(VideoSpan(clip, start, min(start + seconds, end)))
                origin.append(row)
        rows = torch.tensor(origin)
        return ClipSource(
            spans,
            classes=self.classes,
            columns={name: column[rows] for name, column in self.columns.items()},
            name=f"{self.name}, windows of {seconds} s",
            notes=self.notes,
            max_failures=self.max_failures,
        )


def video_source(
    listing: Listing,
    *,
    frames_per_second: int | float | None = None,
    decoder: Decoder = "pyav",
    cache_gigabytes: int | float = 0,
    max_failures: float = 0.1,
    quarantine: str | Path | None = None,
) -> ClipSource | DatasetSource:
    """Open a listing as videos, or as spans of videos if a table has `start_seconds` and `end_seconds`.

    Further numeric columns of a table, such as annotation scores, become columns of the index. A table may have a
    column `frames_per_second`. Videos in archives and on hubs are opened when they are needed, and have no windows.

    Args:
        listing: the samples.
        frames_per_second: the frame rate of folders of frames.
        decoder: `pyav`, `torchcodec` or `auto`.
        cache_gigabytes: the size of a cache of decoded frames in each process.
        max_failures: the highest accepted share of unreadable files, in the check and again during a run.
        quarantine: a file to which unreadable files are written, one JSON line each; files that it already lists are
            left out without reading.
    """
    cache = FrameCache(int(cache_gigabytes * GIGABYTE)) if cache_gigabytes else None
    spans = {name: _seconds(listing, name) for name in _SPAN_COLUMNS if name in listing.columns and not listing.is_lazy}

    def open_clip(position: int) -> VideoHandle:
        begin, end, own_rate = (spans[name][position] if name in spans else None for name in _SPAN_COLUMNS)
        options = {"frames_per_second": own_rate or frames_per_second, "decoder": decoder, "cache": cache}
        clip = handle_opener("video", root=listing.root, **options)(listing.cells[position], listing.names[position])
        if begin is None and end is None:
            return clip
        return VideoSpan(clip, begin or 0.0, clip.header.duration_seconds if end is None else end)

    if listing.is_lazy:
        listing = without_quarantined(listing, quarantine)
        opener = handle_opener("video", frames_per_second=frames_per_second, decoder=decoder, cache=cache)
        options = {**listing.options, "max_failures": max_failures}
        return DatasetSource(listing.cells, handle=opener, names=listing.names, modality="video", **options)
    every = range(len(listing.names))
    kept, opened = keep_readable(listing, open_clip, every, max_failures=max_failures, quarantine=quarantine)
    clips = [opened[position] for position in sorted(opened)]
    columns, notes = _numbers(kept)
    options = kept.options | {"notes": (*kept.notes, *notes)}
    return ClipSource(clips, columns=columns, max_failures=max_failures, **options)


def _seconds(listing: Listing, name: str) -> list[float | None]:
    """The numbers of a column of spans; None for an empty cell."""
    cells = listing.columns[name]
    numbers = [_as_number(cell) for cell in cells]
    odd = [i for i, number in enumerate(numbers) if number is None and not is_missing(cells[i])]
    if odd:
        got = f"{cells[odd[0]]!r} for {listing.names[odd[0]]!r} ({len(odd):,} such cells)"
        fix = "write seconds as 12.5, or leave the cell empty"
        raise DataError(f"{listing.where}, column {name!r}", expected="a number", got=got, fix=fix)
    return numbers


def _numbers(kept: Listing) -> tuple[dict[str, Float64[Tensor, " n"]], list[str]]:
    """The numeric columns, except those of the labels, the spans and the frame rate; and notes on those left out."""
    numbers, notes = {}, []
    for name, cells in kept.columns.items():
        if name == kept.label_column or name in _SPAN_COLUMNS:
            continue
        values = [_as_number(cell) for cell in cells]
        odd = [cell for cell, value in zip(cells, values, strict=True) if value is None]
        if not odd:
            numbers[name] = torch.tensor(values, dtype=torch.float64)
        elif len(odd) < len(values):
            notes.append(f"column {name!r} left out: {len(odd):,} of its cells are no numbers, such as {odd[0]!r}")
    return numbers, notes


def _as_number(cell: Any) -> float | None:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None
