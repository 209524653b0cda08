"""Bundled clips: moving Fashion-MNIST images, and five seconds of a film."""

from __future__ import annotations

from typing import Literal

import torch

from mmcon.media.video import VideoHandle
from mmcon.media.video_files import FrameCache, open_video
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.video import GIGABYTE, ClipSource


@register_source("samples/motion", modality="video")
def motion(
    split: str = "train",
    label: Literal["class", "motion"] = "class",
    cache_gigabytes: int | float = 1,
) -> ClipSource:
    """Bundled synthetic clips: Fashion-MNIST images with eight kinds of motion, 64×64, two seconds each.

    Args:
        split: "train" or "test"; no image is in both.
        label: the label, "class" (of clothing) or "motion"; the other is a further column.
        cache_gigabytes: the size of a cache of decoded frames in each process.
    """
    split = bundled.match("motion", split)
    rows = bundled.rows("motion", split)
    card = bundled.card("motion")
    cache = FrameCache(int(cache_gigabytes * GIGABYTE)) if cache_gigabytes else None
    kinds = {"class": "label", "motion": "motion_label"}
    other = "motion" if label == "class" else "class"
    return ClipSource(
        [open_video(row["video"], name=f"motion/{row['id']}", cache=cache) for row in rows],
        labels=torch.tensor([row[kinds[label]] for row in rows]),
        classes=card["classes" if label == "class" else "motions"],
        columns={other: torch.tensor([row[kinds[other]] for row in rows])},
        name=f"samples/motion ({split})",
        notes=["synthetic: photographs of clothing moved by a computer"],
    )


@register_source("samples/clip", modality="video")
def real_clip(split: str = "train", window_seconds: int | float = 0) -> ClipSource:
    """The bundled film clip, the same in every split: five seconds of Big Buck Bunny.

    Args:
        split: any name.
        window_seconds: cut the clip into windows of this length; 0: one sample.
    """
    whole = ClipSource([film()], name="samples/clip")
    return whole.windows(window_seconds) if window_seconds else whole


def film() -> VideoHandle:
    """The bundled film."""
    (file,) = sorted(bundled.path("clip").glob("*.mp4"))
    return open_video(file, name=file.name, cache=FrameCache(GIGABYTE))
