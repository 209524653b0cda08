"""Tables of pairs (images with texts, recordings with texts), opened as one source of several modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcon.random import stable_ids
from mmcon.sources.audio import audio_source
from mmcon.sources.base import Source
from mmcon.sources.image import image_source
from mmcon.sources.joined import GroupedSource, JoinedSource
from mmcon.sources.listing import Listing, TableOptions
from mmcon.sources.tables import NONE, choose_columns, list_table
from mmcon.sources.text import text_source
from mmcon.sources.video import video_source

MODALITIES = {"image": image_source, "audio": audio_source, "video": video_source, "text": text_source}


def joined_table(
    path: str | Path,
    *,
    split: str = "train",
    modality: Sequence[str] = ("image", "text"),
    options: TableOptions,
) -> JoinedSource:
    """Open a table of pairs; rows with the same file of the first modality are instances of one sample.

    So the captions of an image are instances of one sample, and a view draws one of them. Samples are split by the
    split column, or without one by a hash of the first modality's file name, so that all captions of an image are in
    one split.

    Args:
        path: the table: .csv, .tsv, .jsonl, .json or .parquet.
        split: "train", "test" (also matches val, validation, ...), or another value of the split column.
        modality: the modalities. The first one defines the sample ids.
        options: the meaning of the columns; `media_column` is that of the first modality that is not text.
    """
    first, *others = modality
    own = {"media_column": None} if first == "text" else {"text_columns": None}
    pairs = list_table(path, split=split, modality=first, options=replace(options, **own))
    first_row = {name: i for i, name in reversed(list(enumerate(pairs.names)))}
    sources: list[Source] = [MODALITIES[first](pairs.select([*reversed(first_row.values())]))]
    for other in others:
        named: dict[str, Any] = {"text_columns": options.text_columns} if other == "text" else {}
        if first == "text":
            named = {"media_column": options.media_column}
        sources.append(_instances(pairs, other, TableOptions(label_column=NONE, id_column=NONE, **named)))
    return JoinedSource(*sources)


def _instances(pairs: Listing, modality: str, options: TableOptions) -> GroupedSource:
    """A further modality of the pairs, with all instances of each sample; a pair without a file is left out."""
    # The labels are texts of a modality only if their column is named, such as that of class names.
    named = {options.media_column, *(options.text_columns or ())}
    available = [name for name in pairs.columns if name != pairs.label_column or name in named]
    columns = choose_columns(pairs.where, available, modality, options)
    cells: list[Any] = list(pairs.columns[columns.media])
    if columns.texts:
        cells = list(zip(*(pairs.columns[name] for name in columns.texts), strict=True))
    keep = [i for i, cell in enumerate(cells) if cell is not None]
    names = [f"{name}#{i}" for i, name in enumerate(pairs.names)]
    title = f"{pairs.title}, {columns.media}"
    instances = replace(pairs, modality=modality, title=title, names=names, cells=cells, versions=columns.texts)
    source = MODALITIES[modality](instances.select(keep))
    return GroupedSource(source, stable_ids(pairs.names[i] for i in keep))
