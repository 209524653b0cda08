"""Pictures with texts: the bundled emoji, and tables of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mmcon.errors import DataError
from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import JoinedSource, held_out
from mmcon.sources.bundled.emoji_rows import emoji_drawings
from mmcon.sources.columns import choose_columns, encode_labels, opener
from mmcon.sources.files import FileSource
from mmcon.sources.grouped import GroupedSource
from mmcon.sources.manifests import read_table, row_names
from mmcon.sources.text import TextSource

NONE = "none"


@dataclass(frozen=True)
class Pairs:
    """Pictures and texts that meet by sample.

    Attributes:
        train: what is trained on.
        tests: by name, what is evaluated: pairs held out, and others that tell memory from skill.
        text: the version of a text by which samples are told in evaluation.
    """

    train: JoinedSource
    tests: Mapping[str, JoinedSource]
    text: str


@register_source("samples/emoji-texts", modality="text")
def emoji_texts(split: Literal["train", "test"] = "train") -> TextSource:
    """The English name of each emoji, and its keywords as a second version; labelled by subgroup (96)."""
    rows = bundled.rows("emoji", split, ["id", "name_en", "keywords_en"])
    pictures = emoji_drawings(split, labels="subgroup")
    texts = {
        "name": [row["name_en"] for row in rows],
        "keywords": [", ".join(row["keywords_en"]) or row["name_en"] for row in rows],
    }
    return TextSource(
        texts,
        ids=[f"emoji/{row['id']}" for row in rows],
        labels=pictures.labels,
        classes=pictures.classes,
        name=f"samples/emoji, English ({split})",
    )


def bundled_pairs() -> Pairs:
    """Drawings of emoji with names and keywords; no concept is in both splits, and Twemoji's style is never trained on.

    Retrieval on training pairs tells what was remembered; the rest tells what was learned.
    """

    def pairs(split: Literal["train", "test"], vendor: Literal["noto", "twemoji"]) -> JoinedSource:
        return JoinedSource(emoji_drawings(split, vendor, "subgroup"), emoji_texts(split))

    tests = {
        "training pairs": pairs("train", "noto"),
        "another vendor": pairs("train", "twemoji"),
        "held out": pairs("test", "noto"),
        "held out, another vendor": pairs("test", "twemoji"),
    }
    return Pairs(pairs("train", "noto"), tests, "name")


def read_pairs(
    path: str | Path,
    *,
    image_column: str | None = None,
    text_column: str = "text",
    label_column: str | None = None,
    split_column: str = "split",
    test_share: float = 0.1,
    root: str | Path | None = None,
) -> Pairs:
    """A table (csv, tsv, jsonl, parquet) of pictures and texts; rows that name one picture are captions of it.

    Split by the column `split` if there is one, else by the picture's name, so that all its captions are on one side.

    Args:
        path: the table.
        image_column: paths relative to `root`, or bytes; by default guessed by its name.
        text_column: the texts.
        label_column: classes of the pictures, by which positives may be chosen; None: none.
        split_column: says to which split a row belongs.
        test_share: what is held out where there is no split column.
        root: the folder that paths are relative to; by default that of the table.

    Raises:
        DataError: the table or a column is missing, a text is empty, or a split has no row.
    """
    file, where = Path(path).expanduser(), f"pairs {str(path)!r}"
    rows = read_table(file)
    columns = choose_columns(where, list(rows), "image", media=image_column, label=label_column or NONE, id=None)
    if text_column not in rows:
        raise DataError(where, expected=f"a column {text_column!r}", got=f"columns {list(rows)}", fix="--text-column")
    names = row_names(rows[columns.media], rows[columns.id] if columns.id else None)
    out = held_out(stable_ids(names), test_share)
    if split_column in rows:
        out = torch.tensor([str(value) != "train" for value in rows[split_column]])
    labels, classes = encode_labels(where, rows[label_column], None) if label_column else (None, ())
    base = Path(root).expanduser() if root is not None else file.parent

    def part(chosen: list[int], split: str) -> JoinedSource:
        if not chosen:
            raise DataError(where, expected=f"rows of split {split!r}", got="none", fix=f"a column {split_column!r}")
        first = list({names[i]: i for i in reversed(chosen)}.values())[::-1]
        pictures = FileSource(
            [rows[columns.media][i] for i in first],
            handle=opener("image", base),
            names=[names[i] for i in first],
            labels=None if labels is None else labels[first],
            classes=classes,
            name=f"{file.name} ({split})",
        )
        texts = TextSource(
            [rows[text_column][i] for i in chosen],
            ids=[f"{names[i]}#{i}" for i in chosen],
            name=f"{file.name}, {text_column} ({split})",
            **_labels_of(labels, classes, chosen),
        )
        return JoinedSource(pictures, GroupedSource(texts, stable_ids(names[i] for i in chosen)))

    train, test = ([i for i in range(len(names)) if bool(out[i]) == held] for held in (False, True))
    sources = part(train, "train"), part(test, "test")
    return Pairs(sources[0], {"training pairs": sources[0], "held out": sources[1]}, "text")


def _labels_of(labels: torch.Tensor | None, classes: Sequence[str], rows: list[int]) -> dict[str, Any]:
    return {} if labels is None else {"labels": labels[rows], "classes": classes}
