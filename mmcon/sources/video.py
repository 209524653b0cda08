"""Clips as a source: folders of videos and manifests (bundled ones are in `mmcon.sources.bundled.scenes`).

Headers are read once, when the source is made: files without a readable picture are left out there, counted and named,
and a span can be drawn later without touching a file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.frame_sequence import frame_files, natural_key
from mmcon.media.video import Decoder, VideoHandle, VideoSpan
from mmcon.media.video_files import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, CachedVideo, FrameCache, open_video
from mmcon.random import keys, stable_ids
from mmcon.registry import register_source
from mmcon.sources.base import HELD_OUT, held_out
from mmcon.sources.bundled import scenes  # noqa: F401  (the bundled clips register themselves)
from mmcon.sources.files import read_quarantine, report_failures
from mmcon.sources.video_source import GIGABYTE, ClipSource


@register_source("folder/videos", modality="video")
def video_folder(
    path: str | Path,
    split: str = "train",
    test_share: float = 0.25,
    fold: tuple[int, int] | None = None,
    frames_per_second: int | float | None = None,
    max_failures: float = 0.1,
    quarantine: str | Path | None = None,
    decoder: Decoder = "pyav",
    cache_gigabytes: int | float = 0,
) -> ClipSource:
    """Videos in a folder, its sub-folders being classes if there are any; or under train/ and test/ with such.

    A folder of images is one clip, so are animated GIF and WebP. A folder without train/ is split by whole videos.

    Args:
        path: the folder.
        split: "train", "test", "all", or any other sub-folder's name.
        test_share: share of videos held out, each by its own name.
        fold: (k, of): instead hold out every `of`-th video from the k-th in a keyed order, for cross-validation of few.
        frames_per_second: the rate of folders of frames.
        max_failures: the share of unreadable files beyond which the source is refused.
        quarantine: a file to which unreadable ones are written, one JSON line each; those that it lists are left out.
        decoder: `pyav`, `torchcodec` or `auto`.
        cache_gigabytes: keep decoded frames, up to so much in each process.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError("folder/videos", expected="a folder of videos", got=f"{str(path)!r}, which is not a folder")
    alternatives = [s for s in (split, *(HELD_OUT if split in HELD_OUT else ())) if (root / s).is_dir()]
    made = (root / "train").is_dir() and bool(alternatives)
    folder = root / alternatives[0] if made else root
    found = _videos(folder)
    tops = [file.relative_to(folder).parts for file in found]
    classes = sorted({parts[0] for parts in tops if len(parts) > 1})
    names = [file.relative_to(root).as_posix() for file in found]
    rows = [_Row(n, f, parts[0] if len(parts) > 1 else "") for n, f, parts in zip(names, found, tops, strict=True)]
    if classes and any(row.label == "" for row in rows):
        loose = sum(row.label == "" for row in rows)
        raise DataError(
            "folder/videos",
            expected="videos all in sub-folders (classes), or all without",
            got=f"{loose} of {len(rows)} loose",
            fix="move them into sub-folders, or out of them",
        )
    return _build(
        "folder/videos",
        rows,
        name=f"{root.name} ({split})",
        chosen=None if made else _by_clip(names, split, test_share, fold),
        frames_per_second=frames_per_second,
        max_failures=max_failures,
        quarantine=quarantine,
        decoder=decoder,
        cache_gigabytes=cache_gigabytes,
    )


@register_source("manifest/videos", modality="video")
def video_manifest(
    path: str | Path,
    split: str = "train",
    root: str | Path | None = None,
    test_share: float = 0.25,
    fold: tuple[int, int] | None = None,
    max_failures: float = 0.1,
    quarantine: str | Path | None = None,
    decoder: Decoder = "pyav",
    cache_gigabytes: int | float = 0,
) -> ClipSource:
    """A table of videos (csv, tsv or jsonl): `path`, and if wanted `label`, `split`, `start_seconds`, `end_seconds`,
    `frames_per_second`. Further columns of numbers, such as an annotator's scores, become columns of the index table.

    Args:
        path: the table.
        split: a value of the column `split`; without such a column, videos are split by their names.
        root: what paths are relative to; by default the table's folder.
        test_share: share of videos held out, where there is no column `split`.
        fold: (k, of) instead; see `folder/videos`.
        max_failures: the share of unreadable rows beyond which the source is refused.
        quarantine: a file to which unreadable ones are written, one JSON line each; those that it lists are left out.
        decoder: `pyav`, `torchcodec` or `auto`.
        cache_gigabytes: keep decoded frames, up to so much in each process.
    """
    table = Path(path).expanduser()
    base = Path(root).expanduser() if root is not None else table.parent
    rows = [_row_of(record, base, table, line) for line, record in enumerate(_records(table), start=2)]
    if any("split" in row.more for row in rows):
        wanted = {split, *(HELD_OUT if split in HELD_OUT else ())}
        chosen = torch.tensor([split == "all" or row.more.pop("split", "") in wanted for row in rows])
    else:
        chosen = _by_clip([row.name for row in rows], split, test_share, fold)
    return _build(
        "manifest/videos",
        rows,
        name=f"{table.name} ({split})",
        chosen=chosen,
        max_failures=max_failures,
        quarantine=quarantine,
        decoder=decoder,
        cache_gigabytes=cache_gigabytes,
    )


# --- from rows to clips ----------------------------------------------------------------------------------------------


class _Row:
    """A video of a folder or a table, not yet opened."""

    def __init__(self, name: str, file: Path, label: str = "", more: dict[str, str] | None = None) -> None:
        self.name, self.file, self.label, self.more = name, file, label, more or {}


def _build(
    where: str,
    rows: list[_Row],
    *,
    name: str,
    chosen: Tensor | None,
    max_failures: float,
    quarantine: str | Path | None,
    decoder: Decoder,
    cache_gigabytes: int | float,
    frames_per_second: int | float | None = None,
) -> ClipSource:
    rows = rows if chosen is None else [row for row, take in zip(rows, chosen.tolist(), strict=True) if take]
    if not rows:
        raise DataError(where, expected="videos", got=f"none in {name}", fix=f"use {', '.join(VIDEO_SUFFIXES[:6])}, …")
    cache = FrameCache(int(cache_gigabytes * GIGABYTE)) if cache_gigabytes else None
    opened = _open_all(rows, read_quarantine(quarantine), _opener(frames_per_second, decoder, cache))
    failures = {str(row.file): clip for row, clip in zip(rows, opened, strict=True) if isinstance(clip, str)}
    report_failures(where, failures, len(rows), max_failures, quarantine)
    kept = [(row, clip) for row, clip in zip(rows, opened, strict=True) if isinstance(clip, VideoHandle)]
    classes = sorted({row.label for row in rows} - {""}, key=natural_key)
    labels = torch.tensor([classes.index(row.label) for row, _ in kept]) if classes else None
    notes = [f"{len(failures):,} unreadable videos left out: {next(iter(failures))} …"] if failures else []
    return ClipSource(
        [clip for _, clip in kept],
        labels=labels,
        classes=classes,
        columns=_numbers([row.more for row, _ in kept]),
        name=name,
        notes=notes,
    )


def _open_all(
    rows: list[_Row], listed: Sequence[str], opener: Callable[[_Row], VideoHandle]
) -> list[VideoHandle | str]:
    """Clips, or why there is none."""
    known = set(listed)

    def attempt(row: _Row) -> VideoHandle | str:
        if str(row.file) in known:
            return "listed in the quarantine file"
        try:
            return opener(row)
        except DataError as error:
            return str(error).partition("\n")[0]

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(attempt, rows))


def _opener(rate: int | float | None, decoder: Decoder, cache: FrameCache | None) -> Callable[[_Row], VideoHandle]:
    def opener(row: _Row) -> VideoHandle:
        own_rate = row.more.get("frames_per_second")
        clip = open_video(
            row.file, name=row.name, frames_per_second=float(own_rate) if own_rate else rate, decoder=decoder
        )
        kept = clip if cache is None else CachedVideo(clip, cache)
        begin, end = row.more.get("start_seconds"), row.more.get("end_seconds")
        if not begin and not end:
            return kept
        return VideoSpan(kept, float(begin or 0), float(end or clip.header.duration_seconds))

    return opener


def _videos(folder: Path) -> list[Path]:
    """Video files, animations, and folders that hold nothing but frames."""
    suffixes = {*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES}
    files = [
        f for f in folder.rglob("*") if f.is_file() and f.suffix.lower() in suffixes and not f.name.startswith(".")
    ]
    of_frames = [
        d
        for d in folder.rglob("*")
        if d.is_dir() and not any(child.is_dir() for child in d.iterdir()) and len(frame_files(d)) > 1
    ]
    inside = set(of_frames)
    return sorted([*of_frames, *(f for f in files if f.parent not in inside)], key=lambda f: natural_key(f.as_posix()))


def _by_clip(names: Sequence[str], split: str, share: float, fold: tuple[int, int] | None) -> Tensor | None:
    if split == "all":
        return None
    if split not in ("train", *HELD_OUT):
        raise DataError("videos", expected="split 'train', 'test' or 'all'", got=repr(split))
    ids = stable_ids(names)
    if fold is None:
        out = held_out(ids, share)
    else:
        rank = keys(sample=ids).child("split").bits("fold").argsort().argsort()
        out = rank % fold[1] == fold[0] % fold[1]
    return out if split in HELD_OUT else ~out


def _records(table: Path) -> list[Mapping[str, str]]:
    if not table.is_file():
        raise DataError("manifest/videos", expected="a .csv, .tsv or .jsonl file", got=f"{str(table)!r}")
    text = table.read_text(encoding="utf-8")
    if table.suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [{k: str(v) for k, v in record.items() if v is not None} for record in records]
    return list(csv.DictReader(text.splitlines(), delimiter="\t" if table.suffix == ".tsv" else ","))


def _row_of(record: Mapping[str, str], base: Path, table: Path, line: int) -> _Row:
    if not record.get("path"):
        raise DataError(
            "manifest/videos", expected="a column `path`", got=f"{sorted(record)} in line {line} of {table.name}"
        )
    more = {k: v for k, v in record.items() if k not in ("path", "label") and v not in (None, "")}
    return _Row(record["path"], base / record["path"], record.get("label") or "", more)


def _numbers(records: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    """The columns that hold a number in every row, other than those that say where and how fast."""
    own = {"split", "start_seconds", "end_seconds", "frames_per_second"}
    columns = {}
    for name in [n for n in (records[0] if records else ()) if n not in own]:
        try:
            columns[name] = torch.tensor([float(record[name]) for record in records], dtype=torch.float64)
        except (KeyError, ValueError):
            continue
    return columns
