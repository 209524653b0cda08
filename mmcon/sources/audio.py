"""Audio as a source: handles that give one rate and one number of channels, whatever the files have.

A file that turns out unreadable is quarantined by the loader when it is opened: its sample is left out, counted and
named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcon.media import AudioFormat
from mmcon.sources.base import DatasetSource
from mmcon.sources.listing import Listing, handle_opener


def audio_source(
    listing: Listing,
    *,
    rate_hz: int = 16_000,
    channels: int = 1,
    columns: Sequence[str] = ("prompt", "language", "speaker"),
    on_non_finite: Literal["error", "zero"] = "error",
    on_short: Literal["error", "zero"] = "error",
) -> DatasetSource:
    """Audio, brought to one rate and number of channels.

    Args:
        listing: the samples.
        rate_hz: what every file is resampled to.
        channels: 1 mixes down.
        columns: further columns of texts to keep as categories, where a table has them.
        on_non_finite: NaN or infinite samples are an "error" (the file is quarantined), or "zero".
        on_short: so is a file that ends before its header says.
    """
    audio_format = AudioFormat(rate_hz, channels, on_non_finite, on_short)
    opener = handle_opener("audio", root=listing.root, audio_format=audio_format)
    items = listing.cells
    if not listing.is_lazy:  # handles are made once, so that each header is read once
        items, opener = [opener(cell, name) for cell, name in zip(items, listing.names, strict=True)], None
    return DatasetSource(
        items,
        handle=opener,
        names=listing.names,
        modality="audio",
        categories={name: list(map(str, listing.columns[name])) for name in columns if name in listing.columns},
        **listing.options,
    )
