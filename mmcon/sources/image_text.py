"""Pairs of images and texts with the sets on which they are evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mmcon.errors import InputError
from mmcon.sources.factory import create_source
from mmcon.sources.joined import JoinedSource

# Name, split and vendor of the evaluated sets of bundled emoji. The drawings of one vendor are trained on, so the other
# vendor's separate a new style of a known concept from a new concept.
_EMOJI_SETS = (
    ("training pairs", "train", "noto"),
    ("another vendor", "train", "twemoji"),
    ("held out", "test", "noto"),
    ("held out, another vendor", "test", "twemoji"),
)


@dataclass(frozen=True)
class ImageTextPairs:
    """Images and texts joined by sample; either may be missing.

    Attributes:
        train: the training pairs.
        tests: the evaluated pairs by name: training pairs, whose retrieval measures memorization, and held-out ones.
        text: the text column that is evaluated.
    """

    train: JoinedSource
    tests: Mapping[str, JoinedSource]
    text: str


def open_image_text_pairs(
    data: str,
    image_column: str | None = None,
    text_column: str = "text",
    label_column: str | None = None,
    *,
    negatives: Sequence[str] = (),
) -> ImageTextPairs:
    """The bundled pairs, or those of a table.

    Args:
        data: "samples/emoji", or a table of images and texts: .csv, .tsv, .jsonl or .parquet.
        image_column: the column of the images in a table; None: guessed.
        text_column: the column of the texts in a table.
        label_column: the column of the classes in a table; None: no labels.
        negatives: columns of a table with further texts, which are hard negatives of the image.

    Raises:
        InputError: a column of negatives is that of the texts, or is named twice.
    """

    def opened(name: str, split: str, **options: Any) -> JoinedSource:
        return cast(JoinedSource, create_source(name, modality=("image", "text"), split=split, **options))

    if data == "samples/emoji":
        sets = {name: opened("samples/emoji-pairs", split, vendor=vendor) for name, split, vendor in _EMOJI_SETS}
        return ImageTextPairs(sets["training pairs"], sets, "name")
    if len({text_column, *negatives}) <= len(negatives):
        expected = f"other columns than that of the captions, {text_column!r}, each once"
        raise InputError("negatives", expected=expected, got=str(list(negatives)))
    columns: dict[str, Any] = {"media_column": image_column, "text_columns": (text_column, *negatives)}
    columns["label_column"] = label_column or "none"
    train, test = (opened(data, split, **columns) for split in ("train", "test"))
    return ImageTextPairs(train, {"training pairs": train, "held out": test}, text_column)
