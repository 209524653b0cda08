"""The bundled emoji as sources that are joined by sample: two vendors' drawings, names in six languages, spoken names.

    seen = create_source("samples/emoji", split="train")                     # Noto's drawings
    unseen = create_source("samples/emoji", split="test", vendor="twemoji")  # an unseen drawing style
    pairs = create_source("samples/emoji-pairs", split="train")              # drawings with English names and keywords
    three = JoinedSource(seen, create_source("samples/emoji-names"), create_source("samples/emoji-spoken"))

No concept is in both splits: "farmer" and "woman farmer" are one concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmcon.media import AudioFormat, AudioHandle
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import DatasetSource, TensorSource
from mmcon.sources.joined import GroupedSource, JoinedSource
from mmcon.sources.labels import number_texts
from mmcon.sources.text import TextSource

LANGUAGES = ("en", "de", "fr", "es", "ja", "ar")
Level = Literal["group", "subgroup"]


@register_source("samples/emoji", modality="image")
def emoji_drawings(
    split: str = "train", vendor: Literal["noto", "twemoji"] = "noto", labels: Level = "group"
) -> TensorSource:
    """Bundled drawings of emoji: color on white, `3 32 32`, labeled by group (9) or subgroup (96)."""
    split = bundled.match("emoji", split)
    rows = bundled.rows("emoji", split, ["id", vendor, labels])
    return TensorSource(
        bundled.decode([row[vendor] for row in rows], channels=3),
        ids=stable_ids(f"emoji/{row['id']}" for row in rows),
        name=f"samples/emoji ({split}, {vendor})",
        **_labels(rows, labels),
    )


@register_source("samples/emoji-names", modality="text")
def emoji_names(split: str = "train", languages: Sequence[str] = LANGUAGES, labels: Level = "group") -> TextSource:
    """Bundled names of emoji: parallel in six languages, labeled by group (9) or subgroup (96)."""
    split = bundled.match("emoji", split)
    rows = bundled.rows("emoji", split, ["id", labels, *(f"name_{language}" for language in languages)])
    return TextSource(
        {language: [row[f"name_{language}"] for row in rows] for language in languages},
        ids=[f"emoji/{row['id']}" for row in rows],
        name=f"samples/emoji-names ({split})",
        **_labels(rows, labels),
    )


@register_source("samples/emoji-texts", modality="text")
def emoji_texts(split: str = "train") -> TextSource:
    """The English name of each emoji, and its keywords as a second version; labeled by subgroup (96)."""
    split = bundled.match("emoji", split)
    rows = bundled.rows("emoji", split, ["id", "name_en", "keywords_en", "subgroup"])
    texts = {
        "name": [row["name_en"] for row in rows],
        "keywords": [", ".join(row["keywords_en"]) or row["name_en"] for row in rows],
    }
    ids = [f"emoji/{row['id']}" for row in rows]
    return TextSource(texts, ids=ids, name=f"samples/emoji, English ({split})", **_labels(rows, "subgroup"))


@register_source("samples/emoji-pairs", modality="image+text")
def emoji_pairs(split: str = "train", vendor: Literal["noto", "twemoji"] = "noto") -> JoinedSource:
    """Drawings of emoji with their English names and keywords, labeled by subgroup (96).

    Retrieval on training pairs measures memorization. Retrieval on drawings by `twemoji`, which are not trained on, and
    on the test split measures generalization.
    """
    return JoinedSource(emoji_drawings(split, vendor, "subgroup"), emoji_texts(split))


@register_source("samples/emoji-spoken", modality="audio")
def emoji_spoken(split: str = "train", rate_hz: int = 16_000) -> GroupedSource:
    """Synthesized speech of the names of emoji in up to four languages and voices: several instances of a sample.

    About a third of the emoji have no recording. Results on synthetic speech do not transfer to human speech.
    """
    split = bundled.match("spoken", split)
    rows = bundled.rows("spoken", split, ["id", "emoji", "audio", "language"])
    names, audio_format = [f"spoken/{row['id']}" for row in rows], AudioFormat(rate_hz=rate_hz)
    spoken = DatasetSource(
        [AudioHandle(row["audio"], audio_format=audio_format, id=n) for row, n in zip(rows, names, strict=True)],
        names=names,
        modality="audio",
        categories={"language": [row["language"] for row in rows]},
        name=f"samples/emoji-spoken ({split})",
    )
    return GroupedSource(spoken, stable_ids(f"emoji/{row['emoji']}" for row in rows))


def _labels(rows: Sequence[dict[str, Any]], level: str) -> dict[str, Any]:
    """Labels of a level, numbered over the names of both splits, so that both splits have equal labels."""
    every = [row[level] for split in bundled.splits_of("emoji") for row in bundled.rows("emoji", split, [level])]
    labels, classes = number_texts("samples/emoji", [row[level] for row in rows], sorted(set(every)))
    return {"labels": labels, "classes": classes}
