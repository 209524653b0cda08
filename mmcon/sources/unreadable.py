"""Check files when a source is opened: leave out unreadable ones and list them in a quarantine file.

A handle in `mmcon.media` raises the DataError of a file. Files that fail during training are left out in
`mmcon.loading.pipeline`; `mmcon.training.logging` lists those of a run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from mmcon.errors import DataError
from mmcon.files import append_line, create_folder, read_lines
from mmcon.media.decoding import pillow_is_quiet
from mmcon.sources.listing import Listing

_log = logging.getLogger(__name__)
CHUNK = 64
T = TypeVar("T")


def keep_readable(
    listing: Listing,
    attempt: Callable[[int], Any],
    *,
    max_failures: float,
    quarantine: str | Path | None,
) -> tuple[Listing, list[Any]]:
    """Return the readable samples with their opened values; leave out and report the rest.

    Args:
        listing: the samples.
        attempt: opens the sample at an index; DataError or OSError means that it is unreadable.
        max_failures: the highest accepted share of unreadable files.
        quarantine: a file to which unreadable files are written, one JSON line each; files that it already lists are
            left out without reading.
    """
    known = set(read_quarantine(quarantine))

    def read(position: int) -> tuple[Any, str | None]:
        if known and listing.file(position) in known:
            return None, "listed in the quarantine file"
        try:
            return attempt(position), None
        except (DataError, OSError) as error:
            return None, str(error).partition("\n")[0]

    n = len(listing.names)
    # In chunks, since a task for each file takes as long as a header that is in memory.
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    with pillow_is_quiet(), ThreadPoolExecutor(max_workers=8) as pool:
        done = pool.map(lambda chunk: [read(position) for position in chunk], chunks)
        found = list(chain.from_iterable(_with_progress(done, len(chunks), f"{n:,} {listing.modality} files")))
    failures = {listing.file(i): why for i, (_, why) in enumerate(found) if why is not None}
    report_failures(listing.where, failures, len(found), max_failures, quarantine)
    if not failures:
        return listing, [value for value, _ in found]
    listed = f", listed in {quarantine}" if quarantine else f", such as {next(iter(failures))}"
    keep = [i for i, (_, why) in enumerate(found) if why is None]
    note = f"{len(failures):,} unreadable {listing.modality} files left out{listed}"
    return listing.select(keep, note), [found[i][0] for i in keep]


def _with_progress(done: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar on the terminal of the first rank if there is more than a moment's work."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = total < 16 or not console.is_terminal or os.environ.get("RANK", "0") != "0"
    yield from track(done, f"checking {what}", total, transient=True, console=console, disable=hidden)


def read_quarantine(file: str | Path | None) -> list[str]:
    """The files that a quarantine file lists; a line that was cut off is skipped and logged."""
    lines, damaged = ([], []) if file is None else read_lines(file)
    if damaged:
        _log.warning("%s: %d damaged lines are skipped, the first: %.80r", file, len(damaged), damaged[0])
    return [str(line["file"]) for line in lines if "file" in line]


def without_quarantined(listing: Listing, quarantine: str | Path | None) -> Listing:
    """The samples whose files a quarantine file does not list; no file is read."""
    known = set(read_quarantine(quarantine))
    keep = [i for i in range(len(listing.names)) if listing.file(i) not in known] if known else []
    left_out = len(listing.names) - len(keep)
    if not known or not left_out:
        return listing
    return listing.select(keep, f"{left_out:,} {listing.modality} files left out, which {quarantine} lists")


def report_failures(
    where: str, failures: Mapping[str, str], total: int, max_failures: float, quarantine: str | Path | None
) -> None:
    """Write unreadable files to the quarantine file; raise DataError if their share exceeds `max_failures`."""
    if not failures:
        return
    if quarantine is not None:
        listed = set(read_quarantine(quarantine))
        create_folder(Path(quarantine).parent)
        for name, why in failures.items():
            if name not in listed:
                append_line(quarantine, {"file": name, "reason": why})
    if len(failures) > max_failures * total:
        name, why = next(iter(failures.items()))
        listed_in = f" (listed in {quarantine})" if quarantine else ""
        raise DataError(
            where,
            expected=f"at most {max_failures:.1%} unreadable files",
            got=f"{len(failures):,} of {total:,}, such as {name}: {why}",
            fix=f"repair or remove them{listed_in}, or raise max_failures",
        )
