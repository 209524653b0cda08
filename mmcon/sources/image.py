"""Image sources: handles on the samples of a listing, with an optional check of all files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mmcon.errors import DataError
from mmcon.media.image import MAX_PIXELS
from mmcon.sources.base import DatasetSource
from mmcon.sources.checked_files import checked_files
from mmcon.sources.listing import Listing, handle_opener
from mmcon.sources.quarantine import keep_readable
from mmcon.sources.splits import is_train

# Folders of at most this many files are checked by default: reading all headers takes about half a minute.
CHECKED = 100_000


def image_source(
    listing: Listing,
    *,
    check: Literal["auto", "headers", "pixels", "none"] = "auto",
    max_failures: float = 0.1,
    quarantine: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> DatasetSource:
    """Open a listing as images; an image is opened when it is needed.

    Args:
        listing: the samples.
        check: read the header of every file ("headers"), decode every file ("pixels", which also finds truncated
            files), or read no file ("none"); by default "headers" for a folder of up to 100,000 files. Files of a large
            folder that passed it are not read again until they change (`mmcon.sources.checked_files`).
        max_failures: the highest accepted share of unreadable files, in the check and again during a run.
        quarantine: a file to which unreadable files are written, one JSON line each; files that it already lists are
            left out without reading.
        max_pixels: the largest accepted image, by default 105 million pixels; see `mmcon.media.ImageHandle`.
    """
    opener = handle_opener("image", root=listing.root, max_pixels=max_pixels)
    level = check
    if check == "auto":
        level = "headers" if listing.folder and len(listing.names) <= CHECKED else "none"
    notes = []
    if check == "auto" and listing.folder and level == "none":
        notes.append(f"more than {CHECKED:,} files, which were not checked; `mmcon doctor --data PATH` does")

    record = None
    if level != "none" and listing.folder:
        folder = str(listing.root.resolve())
        record = checked_files(f"{level} {max_pixels} {listing.split} {folder}", folder, listing.cells)

    def attempt(position: int) -> None:
        handle = opener(listing.cells[position], listing.names[position])
        _ = handle.facts if level == "headers" else handle.decode()
        if record is not None:
            record.passed.append(position)

    unread: Sequence[int] = range(len(listing.names)) if level != "none" else ()
    if record is not None:
        unread = np.flatnonzero(~record.known).tolist()
    kept, _ = keep_readable(listing, attempt, unread, max_failures=max_failures, quarantine=quarantine)
    if record is not None:
        record.save()
    if listing.folder and kept.labels is not None and is_train(listing.split):
        _check_every_class_is_left(kept)
    options = {**kept.options, "notes": (*kept.notes, *notes), "max_failures": max_failures}
    return DatasetSource(kept.cells, handle=opener, names=kept.names, modality="image", **options)


def _check_every_class_is_left(listing: Listing) -> None:
    assert listing.labels is not None
    counts = torch.bincount(listing.labels, minlength=len(listing.classes)).tolist()
    empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            listing.where,
            expected="a readable image of every class",
            got=f"none of {empty[:5]}",
            fix="add images of them, take the classes out, or lower test_share",
        )
