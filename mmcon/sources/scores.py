"""Scores of annotators over time: a table with the columns `video`, `seconds` and `score`.

    scores = read_scores("scores.csv", [train, test])
    affinity = ScoreKernel(scores, width=2.0)     # weights fall with the difference of the scores of two views

The score of a view is that at its time: linear between two annotations, and constant before the first and after the
last one of a video. Several scores of one time, as of several annotators, are averaged.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from statistics import fmean, pstdev

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import DataError, nearest
from mmcon.sources.table_files import Table, read_table
from mmcon.sources.video import ClipSource

COLUMNS = ("video", "seconds", "score")
_log = logging.getLogger(__name__)


class Scores:
    """The score at a time of a video, as a function of the columns `group` and `time` of a table.

    Args:
        curves: by the number of a video (the column `group`), the score by its time in seconds.
    """

    def __init__(self, curves: Mapping[int, Mapping[float, float]]) -> None:
        ordered = [(group, sorted(curve.items())) for group, curve in sorted(curves.items())]
        self.groups: Int[Tensor, " g"] = torch.tensor([group for group, _ in ordered])
        times = torch.tensor([time for _, curve in ordered for time, _ in curve], dtype=torch.float64)
        self.values = torch.tensor([score for _, curve in ordered for _, score in curve], dtype=torch.float64)
        counts = torch.tensor([len(curve) for _, curve in ordered])
        ends = counts.cumsum(0)
        self.first, self.last = times[ends - counts], times[ends - 1]
        # All curves are one: the times of each are shifted beyond those of the one before it.
        self.shift = float(times.max() - times.min()) + 1
        self.times = times + torch.arange(len(counts)).repeat_interleave(counts) * self.shift

    @property
    def spread(self) -> float:
        """The standard deviation of the annotated scores."""
        return pstdev(self.values.tolist())

    def __call__(self, index: Index) -> Float64[Tensor, " n"]:
        """The score of each row of a table with the columns `group` and `time`."""
        group, time = index["group"], index["time"].double()
        groups, first, last, times, values = (
            tensor.to(time.device) for tensor in (self.groups, self.first, self.last, self.times, self.values)
        )
        curve = torch.searchsorted(groups, group)
        at = time.clamp(first[curve], last[curve]) + curve * self.shift
        right = torch.searchsorted(times, at).clamp(min=min(1, len(times) - 1))
        left = (right - 1).clamp(min=0)
        step = times[right] - times[left]
        share = torch.where(step > 0, (at - times[left]) / step, 0.0)
        return torch.lerp(values[left], values[right], share)


def read_scores(path: str | Path, sources: Sequence[ClipSource]) -> Scores:
    """Read the scores of the videos of some sources.

    Args:
        path: a table with the columns `video` (the name of a video in its source, or its file name), `seconds` (from
            the first frame) and `score`.
        sources: the videos, each of which has a score.

    Raises:
        DataError: a column is missing, a cell is no number, a video is not in the sources, or one has no scores.
    """
    table = read_table(path)
    lowered = {name.lower(): cells for name, cells in table.columns.items()}
    for name in COLUMNS:
        if name not in lowered:
            got, fix = f"columns {list(table.columns)}", nearest(name, list(table.columns))
            raise DataError(table.where, expected=f"a column {name!r}", got=got, fix=fix)
    names = {clip.name for source in sources for clip in source.clips}
    known = _groups(sources)
    found: defaultdict[int, defaultdict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    unknown: dict[str, int] = {}
    for row, video in enumerate(map(str, lowered["video"])):
        if video in known:
            seconds, score = (_number(table, name, lowered[name], row) for name in COLUMNS[1:])
            found[known[video]][seconds].append(score)
        else:
            unknown.setdefault(video, row)
    if found and unknown:
        others = f"such as {next(iter(unknown))!r}"
        _log.warning("%s: %d videos that the sources lack are left out, %s", table.where, len(unknown), others)
    if not found:
        got = f"{len(unknown)} others, the first in {table.place(0)}: {next(iter(unknown))!r}"
        raise DataError(table.where, expected=f"videos such as {min(names)!r}", got=got, fix="use these names")
    without = sorted(name for name in names if known[name] not in found)
    if without:
        got = f"{len(without)} of {len(names)} without, such as {without[0]!r}"
        fix = "add their scores, or leave the videos out"
        raise DataError(table.where, expected="a score for every video", got=got, fix=fix)
    return Scores({group: {time: fmean(scores) for time, scores in curve.items()} for group, curve in found.items()})


def _groups(sources: Sequence[ClipSource]) -> dict[str, int]:
    """The numbers of videos by name, and by file name with and without suffix where only one video has it."""
    groups = {clip.name: int(clip.facts["group"]) for source in sources for clip in source.clips}
    shorter: defaultdict[str, set[int]] = defaultdict(set)
    for name, group in groups.items():
        for short in (PurePath(name).name, PurePath(name).stem):
            shorter[short].add(group)
    return {name: min(found) for name, found in shorter.items() if len(found) == 1} | groups


def _number(table: Table, column: str, cells: Sequence[object], row: int) -> float:
    try:
        number = float(str(cells[row]))
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        at = f"{table.where}, {table.place(row)}, column {column!r}"
        raise DataError(at, expected="a number", got=repr(cells[row]), fix="correct the cell, or leave the row out")
    return number
