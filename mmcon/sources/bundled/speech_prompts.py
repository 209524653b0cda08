"""The bundled telephone prompts, spoken in three languages."""

from __future__ import annotations

from mmcon.media import AudioFormat, AudioHandle
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import DatasetSource
from mmcon.sources.labels import number_texts


@register_source("samples/speech", modality="audio")
def speech(split: str = "train", *, rate_hz: int = 8_000) -> DatasetSource:
    """The bundled prompts in English, Spanish and French; classes are prompts, and no prompt is in both splits.

    Each language has one voice and one recording chain, so a classifier of the languages may use either.
    """
    split = bundled.match("speech", split)
    rows = bundled.rows("speech", split, ["id", "audio", "prompt", "language"])
    name, audio_format = f"samples/speech ({split})", AudioFormat(rate_hz=rate_hz)
    names = [f"speech/{row['id']}" for row in rows]
    labels, classes = number_texts(name, [row["prompt"] for row in rows])
    return DatasetSource(
        [AudioHandle(row["audio"], audio_format=audio_format, id=n) for row, n in zip(rows, names, strict=True)],
        names=names,
        modality="audio",
        labels=labels,
        classes=classes,
        categories={column: [row[column] for row in rows] for column in ("prompt", "language")},
        name=name,
    )
