"""Check files when a source is opened: leave out unreadable ones and list them in a quarantine file.

A handle in `mmcon.media` raises the DataError of a file. Samples that fail during training are left out in
`mmcon.loading.unreadable_samples`; `mmcon.training.logging` lists those of a run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    attempt: Callable[[int], T],
    positions: Sequence[int],
    *,
    max_failures: float,
    quarantine: str | Path | None,
) -> tuple[Listing, dict[int, T]]:
    """Return the readable samples, and the opened values by the index in the whole listing; report and drop the rest.

    Args:
        listing: the samples.
        attempt: opens the sample at an index; DataError or OSError means that it is unreadable.
        positions: the indices of the samples to open; the others count as readable.
        max_failures: the highest accepted share of unreadable files.
        quarantine: a file to which unreadable files are written, one JSON line each; files that it already lists are
            left out without reading.
    """

    def read(position: int) -> tuple[int, Any, str | None]:
        try:
            return position, attempt(position), None
        except (DataError, OSError) as error:
            return position, None, str(error).partition("\n")[0]

    unreadable = dict.fromkeys(listing.positions_of(read_quarantine(quarantine)), "listed in the quarantine file")
    todo = [position for position in positions if position not in unreadable] if unreadable else positions
    values = {}
    for position, value, why in _read_all(read, todo, f"{len(todo):,} {listing.modality} files"):
        if why is None:
            values[position] = value
        else:
            unreadable[position] = why
    n, failures = len(listing.names), {listing.file(i): unreadable[i] for i in sorted(unreadable)}
    report_failures(listing.where, failures, n, max_failures, quarantine)
    if not failures:
        return listing, values
    listed = f", listed in {quarantine}" if quarantine else f", such as {next(iter(failures))}"
    note = f"{len(failures):,} unreadable {listing.modality} files left out{listed}"
    return listing.select([i for i in range(n) if i not in unreadable], note), values


def _read_all(read: Callable[[int], T], positions: Sequence[int], what: str) -> Iterator[T]:
    """What a function returns for each position, with a bar of the progress."""
    # In chunks, since a task for each file takes as long as a header that is in memory.
    chunks = [positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK)]
    if chunks:
        with pillow_is_quiet(), ThreadPoolExecutor(max_workers=8) as pool:
            done = pool.map(lambda chunk: [read(position) for position in chunk], chunks)
            yield from chain.from_iterable(_with_progress(done, len(chunks), what))


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
    listed = {*listing.positions_of(read_quarantine(quarantine))}
    if not listed:
        return listing
    keep = [i for i in range(len(listing.names)) if i not in listed]
    return listing.select(keep, f"{len(listed):,} {listing.modality} files left out, which {quarantine} lists")


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
