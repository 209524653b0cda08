"""Clips whose headers are read, as rows of a source; and long ones cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media.video import VideoHandle, VideoSpan
from mmcon.random import stable_ids
from mmcon.sources.base import Source

GIGABYTE = 1 << 30


@final
class ClipSource(Source):
    """Clips whose headers are read, as rows.

    Args:
        clips: the handles.
        options: as for Source; ids come from the clips' names, and from their spans where several rows are of one clip.
    """

    def __init__(self, clips: Sequence[VideoHandle], **options: Any) -> None:
        self.clips = list(clips)
        rows = [f"{c.name}@{c.span[0]:.3f}" if isinstance(c, VideoSpan) else c.name for c in self.clips]
        facts: dict[str, Tensor] = {}
        if self.clips:
            facts = {name: torch.tensor([c.facts[name] for c in self.clips], dtype=_kind(name)) for name in _FACTS}
        super().__init__(ids=stable_ids(rows), modality="video", facts=facts, **options)

    def open(self, rows: Tensor | Sequence[int]) -> list[VideoHandle]:
        """The handles of the rows."""
        positions: list[int] = torch.as_tensor(rows).tolist()
        return [self.clips[row] for row in positions]

    def windows(self, seconds: int | float, *, step: int | float | None = None) -> ClipSource:
        """Cut every clip into windows, each a row; a clip shorter than one stays whole.

        Times stay those of the whole clip and `group` says which clip a row is from, so affinities of time reach across
        windows, and a split by clip stays one.

        Args:
            seconds: the length of a window.
            step: from one start to the next; by default the length.
        """
        step = step or seconds
        if seconds <= 0 or step <= 0:
            raise InputError("windows", expected="seconds and step above 0", got=f"{seconds} and {step}")
        parts, origin = [], []
        for row, clip in enumerate(self.clips):
            begin, end = clip.span
            count = max(1, int((end - begin - seconds) / step + 1e-6) + 1)
            for i in range(count):
                start = begin + i * step
                parts.append(VideoSpan(clip, start, min(start + seconds, end)))
                origin.append(row)
        rows = torch.tensor(origin)
        return ClipSource(
            parts,
            classes=self.classes,
            columns={name: column[rows] for name, column in self.columns.items()},
            name=f"{self.name}, windows of {seconds} s",
            notes=self.notes,
        )


_FACTS = ("start_seconds", "duration_seconds", "frames_per_second", "frames", "height", "width", "group")


def _kind(fact: str) -> torch.dtype:
    return torch.int64 if fact in ("frames", "height", "width", "group") else torch.float64
