"""Tables of pairs: images with texts, recordings with texts, as one source of several modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources.base import Source
from mmcon.sources.factory import MODALITIES
from mmcon.sources.joined import GroupedSource, JoinedSource
from mmcon.sources.listing import Listing
from mmcon.sources.tables import NONE, choose_columns, list_table


@register_source("table/joined", modality="any")
def joined_table(
    path: str | Path,
    *,
    split: str = "train",
    modality: Sequence[str] = ("image", "text"),
    media_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    split_column: str = "split",
    classes: Sequence[str] | None = None,
    test_share: float | None = None,
    root: str | Path | None = None,
) -> JoinedSource:
    """A table whose rows are pairs; rows that name one file of the first modality are instances of one sample.

    So several captions of an image are instances, of which a view draws one. Samples are split by the split column if
    there is one, else by the name of the first modality's file, so that all captions of an image are in one split.

    Args:
        path: the table: .csv, .tsv, .jsonl, .json or .parquet.
        split: "train", "test" (also found as val, validation, ...), or another value of the split column.
        modality: the modalities. The first one names the samples.
        media_column: paths or bytes of the first modality that is not text; others are guessed by their usual names.
        text_columns: one column of texts, or several that say the same.
        label_column: classes of the samples; "none": no labels.
        id_column: names of the samples; by default the files of the first modality.
        split_column: the split of each pair.
        classes: the names of the classes in order.
        test_share: what is held out where there is no split column.
        root: the folder that paths are relative to; by default that of the table.
    """
    first, *others = modality
    pairs = list_table(
        path,
        split=split,
        modality=first,
        media_column=None if first == "text" else media_column,
        text_columns=text_columns if first == "text" else None,
        label_column=label_column,
        id_column=id_column,
        split_column=split_column,
        classes=classes,
        test_share=test_share,
        root=root,
    )
    first_row = {name: i for i, name in reversed(list(enumerate(pairs.names)))}
    sources: list[Source] = [MODALITIES[first](pairs.select([*reversed(first_row.values())]))]
    for other in others:
        named = {"text": text_columns} if other == "text" else {"media": media_column if first == "text" else None}
        sources.append(_instances(pairs, other, **named))
    return JoinedSource(*sources)


def _instances(
    pairs: Listing, modality: str, *, media: str | None = None, text: Sequence[str] | None = None
) -> GroupedSource:
    """Another modality of the pairs, with all instances of each sample; a pair without a file is left out."""
    columns = choose_columns(pairs.where, list(pairs.columns), modality, media=media, text=text, label=NONE, id=NONE)
    cells: list[Any] = list(pairs.columns[columns.media])
    if columns.texts:
        cells = list(zip(*(pairs.columns[name] for name in columns.texts), strict=True))
    keep = [i for i, cell in enumerate(cells) if cell is not None]
    names = [f"{name}#{i}" for i, name in enumerate(pairs.names)]
    title = f"{pairs.title}, {columns.media}"
    instances = replace(pairs, modality=modality, title=title, names=names, cells=cells, versions=columns.texts)
    source = MODALITIES[modality](instances.select(keep))
    return GroupedSource(source, stable_ids(pairs.names[i] for i in keep))
