"""Audio sources: handles that decode to one sample rate and one number of channels, for files of any format.

Files are not checked when the source is made. A sample whose file is unreadable is left out and reported by the loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmcon.media import AudioFormat
from mmcon.sources.base import DatasetSource
from mmcon.sources.listing import Listing, handle_opener
from mmcon.sources.quarantine import without_quarantined


def audio_source(
    listing: Listing,
    *,
    rate_hz: int = 16_000,
    channels: int = 1,
    columns: Sequence[str] = ("prompt", "language", "speaker"),
    on_non_finite: Literal["error", "zero"] = "error",
    on_short: Literal["error", "zero"] = "error",
    max_failures: float = 0.1,
    quarantine: str | Path | None = None,
) -> DatasetSource:
    """Open a listing as audio with one sample rate and one number of channels.

    Args:
        listing: the samples.
        rate_hz: the sample rate to which every file is resampled.
        channels: the number of channels; 1 mixes all channels down.
        columns: text columns of a table to keep as categories, if present.
        on_non_finite: NaN or infinite samples: "error" leaves the file out, "zero" replaces them by 0.
        on_short: a file shorter than its header states: "error" leaves it out, "zero" pads it.
        max_failures: the highest accepted share of unreadable files during a run.
        quarantine: a file that lists files to leave out without reading, one JSON line each.
    """
    listing = without_quarantined(listing, quarantine)
    audio_format = AudioFormat(rate_hz, channels, on_non_finite, on_short)
    opener = handle_opener("audio", root=listing.root, audio_format=audio_format)
    items = listing.cells
    if not listing.is_lazy:  # one handle per file for the whole run, so that each header is read once
        items, opener = [opener(cell, name) for cell, name in zip(items, listing.names, strict=True)], None
    return DatasetSource(
        items,
        handle=opener,
        names=listing.names,
        modality="audio",
        categories={
            name: list(map(str, listing.columns[name]))
            for name in columns
            if name in listing.columns and name != listing.label_column
        },
        max_failures=max_failures,
        **listing.options,
    )
