"""Other modalities of the bundled videos, by the same ids: texts and stills of the clips, and the sound of the film.

>>> texts = create_source("samples/motion-texts", split="train")
>>> pairs = JoinedSource(create_source("samples/motion", split="train"), texts)
"""

from __future__ import annotations

import torch

from mmcon.media import AudioFormat, AudioHandle, VideoSpan
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import DatasetSource, TensorSource
from mmcon.sources.bundled.motion_clips import film
from mmcon.sources.text import TextSource
from mmcon.sources.video import ClipSource

# The windows of the film that are held out: its last third.
FILM_TEST_SHARE = 1 / 3
# Speeds from slow to fast, at most; 1 is the middle one.
PACES = {"slowly": 0.9, "steadily": 1.1, "quickly": 2.0}
WAYS = {
    "right": "moving right", "left": "moving left", "up": "rising", "down": "falling", "clockwise": "turning clockwise",
    "counterclockwise": "turning counterclockwise", "grow": "growing", "shrink": "shrinking",
}  # fmt: skip


@register_source("samples/motion-texts", modality="text")
def motion_texts(split: str = "train") -> TextSource:
    """A sentence for each clip of `samples/motion`, from what it was made of: "a sneaker moving right, slowly"."""
    split = bundled.match("motion", split)
    rows = bundled.rows("motion", split, ["id", "class_name", "motion", "speed", "label"])
    return TextSource(
        [f"a {row['class_name'].lower()} {WAYS[row['motion']]}, {_pace(row['speed'])}" for row in rows],
        ids=[f"motion/{row['id']}" for row in rows],
        labels=torch.tensor([row["label"] for row in rows]),
        classes=bundled.card("motion")["classes"],
        name=f"samples/motion-texts ({split})",
        notes=["synthetic: made of the class, the motion and the speed of each clip"],
    )


@register_source("samples/motion-images", modality="image")
def motion_images(split: str = "train") -> TensorSource:
    """The still image that moves in each clip of `samples/motion`, `1 28 28`."""
    split = bundled.match("motion", split)
    rows = bundled.rows("motion", split, ["id", "image", "label"])
    every = [row for of in bundled.splits_of("fashion") for row in bundled.rows("fashion", of, ["id", "image"])]
    stills = {row["id"]: row["image"] for row in every}
    return TensorSource(
        bundled.decode([stills[row["image"]] for row in rows], channels=1),
        ids=stable_ids(f"motion/{row['id']}" for row in rows),
        labels=torch.tensor([row["label"] for row in rows]),
        classes=bundled.card("motion")["classes"],
        name=f"samples/motion-images ({split})",
    )


@register_source("samples/film", modality="video")
def film_windows(split: str = "train", window_seconds: int | float = 0.4) -> ClipSource:
    """Windows of the bundled film, joined with `samples/film-sound`; the last third is the test split.

    Five seconds teach nothing: they show that a recipe takes videos with sound.
    """
    spans = _windows(split, window_seconds)
    return ClipSource([VideoSpan(film(), *span) for span in spans], name=f"samples/film ({split})")


@register_source("samples/film-sound", modality="audio")
def film_sound(split: str = "train", window_seconds: int | float = 0.4, rate_hz: int = 16_000) -> DatasetSource:
    """The sound of each window of `samples/film`."""
    (file,) = sorted(bundled.path("clip").glob("*.mp4"))
    sound = AudioHandle(file, audio_format=AudioFormat(rate_hz=rate_hz)).decode()
    spans = _windows(split, window_seconds)
    names = [f"{file.name}@{begin:.3f}" for begin, _ in spans]  # as ClipSource names them
    windows = [
        AudioHandle(
            sound[..., round(begin * rate_hz) : round(end * rate_hz)],
            source_rate_hz=rate_hz,
            audio_format=AudioFormat(rate_hz=rate_hz),
            id=name,
        )
        for name, (begin, end) in zip(names, spans, strict=True)
    ]
    return DatasetSource(windows, names=names, modality="audio", name=f"samples/film-sound ({split})")


def _windows(split: str, seconds: int | float) -> list[tuple[float, float]]:
    """The beginning and end of each window of a split of the film, without a window that the end cuts off."""
    count = int(film().header.duration_seconds / seconds)
    first = round(count * (1 - FILM_TEST_SHARE))
    numbers = {"train": range(first), "all": range(count)}.get(split, range(first, count))
    return [(number * seconds, (number + 1) * seconds) for number in numbers]


def _pace(speed: float) -> str:
    return next(pace for pace, most in PACES.items() if speed <= most)
