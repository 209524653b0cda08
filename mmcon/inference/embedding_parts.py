"""Embed a source into a file, by parts that survive an interruption, and by several processes.

The rows of a source are divided into parts of a fixed size. Each part is a table of its own in the folder
`OUTPUT.parts` until all are done; then they become one file. A part has the hash of the model, the data and the
settings in its name, so that only parts of the same work are used again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcon.errors import DataError, InputError
from mmcon.evaluation.features import Features
from mmcon.files import create_folder
from mmcon.inference.embedding_files import check_suffix, write_tables
from mmcon.inference.embedding_table import EmbeddingOrigin, EmbeddingTable
from mmcon.inference.loaded_model import LoadedModel, UnreadableWarning, check_speed
from mmcon.sources.base import Source, Subset
from mmcon.sources.listing import printable
from mmcon.training.progress import Progress

_log = logging.getLogger(__name__)
#: Rows of a part: at most so many are embedded again after an interruption.
PART_ROWS = 2048


@dataclass(frozen=True)
class Embedded:
    """What `embed_source` wrote.

    Attributes:
        output: the file.
        rows: the number of embeddings.
        width: their number of columns.
        left_out: the names of samples that cannot be read.
        resumed: rows of an earlier, interrupted call.
        origin: the model and the data.
    """

    output: Path
    rows: int
    width: int
    left_out: tuple[str, ...]
    resumed: int
    origin: EmbeddingOrigin

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        about = {"output": str(self.output), "rows": self.rows, "width": self.width, "left_out": list(self.left_out)}
        return {**about, "resumed": self.resumed, **self.origin.to_json()}


def embed_source(
    model: LoadedModel,
    source: Source,
    output: str | Path,
    *,
    space: str | None = None,
    truncate_dim: int | None = None,
    normalize: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
    data: str = "",
    rank: int = 0,
    world_size: int = 1,
    log: Callable[[str], Any] = print,
) -> Embedded | None:
    """Embed all samples of a source, and write them as a table; a call after an interruption goes on where it was.

    Args:
        model: the trained model.
        source: the samples; `mmcon.inference.any_data` opens any data.
        output: the file: .parquet, .npy or .safetensors.
        space: the shared space; None: the features before the projection heads.
        truncate_dim: keep this many leading dimensions, for models that were trained for it (Matryoshka).
        normalize: rows of length one.
        batch_size: samples that are embedded at once.
        num_workers: processes that read and decode.
        data: the name of the data in the file; by default that of the source.
        rank: the number of this process. Rank 0 waits for the others and writes the file.
        world_size: the number of processes; each embeds every `world_size`-th part.
        log: receives messages.

    Returns:
        What was written; None on ranks other than 0.

    Raises:
        InputError: the suffix is not that of a format, or the model lacks the space or the dimensions.
        DataError: no sample can be read.
    """
    check_speed("embed_source", batch_size, num_workers)
    output = check_suffix(output)
    origin = _origin_of(model, source.modality, space, normalize, data or source.name)
    parts = _parts_of(source, output, origin, width := model.embedding_dim(source.modality, space, truncate_dim))
    create_folder(_folder_of(output))
    own = [part for part in parts[rank::world_size] if not _is_whole(part.file)]
    if (resumed := _finished_rows(parts)) and rank == 0:
        log(f"{resumed:,} of {len(source):,} samples were embedded before")
    _checked_file(parts, rank).touch()
    checked = [_checked_file(parts, other) for other in range(world_size)]
    options = {"space": space, "truncate_dim": truncate_dim, "normalize": normalize}
    encode = partial(_encode, model, **options, batch_size=batch_size, num_workers=num_workers)
    with Progress("embeddings", len(source), resumed, enabled=rank == 0) as progress:
        for part in own:
            _embed(encode, source, part.rows, width, origin, log).write(part.file)
            progress.advance(_finished_rows(parts))
        # The launcher ends all processes if one fails. A rank that has not checked its parts may not find them.
        while rank == 0 and not (all(map(Path.exists, checked)) and _finished_rows(parts) == len(source)):
            time.sleep(0.5)
            progress.advance(_finished_rows(parts))
    return None if rank else _join(source, parts, output, resumed)


@dataclass(frozen=True)
class _Part:
    """Rows of a source and the file of their embeddings."""

    rows: range
    file: Path


@dataclass(frozen=True)
class _Tables:
    """The tables of parts, each opened for its turn only: there may be more than a process may open."""

    parts: list[_Part]

    def __iter__(self) -> Iterator[EmbeddingTable]:
        return (EmbeddingTable.read(part.file) for part in self.parts)


def _origin_of(model: LoadedModel, modality: str, space: str | None, normalize: bool, data: str) -> EmbeddingOrigin:
    """The origin of rows; a folder is absolute, so that the model is found from elsewhere too."""
    return EmbeddingOrigin(
        model=str(Path(model.name).absolute()) if Path(model.name).is_dir() else model.name,
        fingerprint=model.fingerprint,
        modality=modality,
        space=space,
        normalized=normalize,
        preprocessing=model.preprocessing[modality].to_json(),
        data=data,
    )


def _parts_of(source: Source, output: Path, origin: EmbeddingOrigin, width: int) -> list[_Part]:
    work = json.dumps([origin.to_json(), source.fingerprint(), PART_ROWS, width], sort_keys=True)
    digest = hashlib.blake2b(work.encode(), digest_size=8).hexdigest()
    folder = _folder_of(output)
    starts = range(0, len(source), PART_ROWS)
    return [
        _Part(range(start, min(start + PART_ROWS, len(source))), folder / f"{digest}-{number:06}.parquet")
        for number, start in enumerate(starts)
    ]


def _folder_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _checked_file(parts: list[_Part], rank: int) -> Path:
    """The file that says that a rank of this launch has checked its parts of an earlier call."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if launch and os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        launch += str(os.getppid())  # all ranks have one launcher
    digest = hashlib.blake2b(launch.encode(), digest_size=8).hexdigest()
    return parts[0].file.with_name(f"{parts[0].file.stem}-{digest}-{rank}.checked")


def _is_whole(file: Path) -> bool:
    """Whether a part was written before; a damaged one is removed."""
    if not file.exists():
        return False
    try:
        EmbeddingTable.read(file).numpy()
    except DataError as error:
        _log.warning("%s is embedded again: %s", file, error)
        file.unlink(missing_ok=True)
        return False
    return True


def _finished_rows(parts: list[_Part]) -> int:
    return sum(len(part.rows) for part in parts if part.file.exists())


def _encode(model: LoadedModel, source: Source, **options: Any) -> Features:
    """Features of a source; the loader has logged each sample that cannot be read, and the result counts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableWarning)
        return model.encode_source(source, show_progress=False, **options)


def _embed(
    encode: Callable[..., Features],
    source: Source,
    rows: range,
    width: int,
    origin: EmbeddingOrigin,
    log: Callable[[str], Any],
) -> EmbeddingTable:
    """The embeddings of rows; those that cannot be read are left out."""
    found = _encode_readable(encode, source, rows, log)
    row_of = {sample: row for row, sample in zip(rows, source.ids[rows.start : rows.stop].tolist(), strict=True)}
    ids = [sample for features in found for sample in features.index["sample"].tolist()]
    kept = [row_of[sample] for sample in ids]
    values = torch.cat([torch.zeros(0, width), *(features.values for features in found)])
    labels = None if source.labels is None else [source.classes[label] for label in source.labels[kept].tolist()]
    paths = [_path_of(source, row) for row in kept]
    return EmbeddingTable(values.numpy(), ids=ids, paths=paths, labels=labels, origin=origin)


def _encode_readable(
    encode: Callable[..., Features], source: Source, rows: range, log: Callable[[str], Any]
) -> list[Features]:
    """The features of rows in order; rows that cannot be encoded at once are divided until the bad ones are found."""
    try:
        return [encode(Subset(source, rows))]
    except (DataError, InputError) as error:
        if len(rows) == 1:
            log(f"left out: {source.name_of(rows[0])}: " + str(error).partition("\n")[0])
            return []
    middle = len(rows) // 2
    return [f for half in (rows[:middle], rows[middle:]) for f in _encode_readable(encode, source, half, log)]


def _path_of(source: Source, row: int) -> str:
    """The absolute path of a sample's file; of a text, the text; else its name."""
    file = source.file(row)
    if file is not None:
        return printable(str(file.absolute()))
    if source.modality == "text":
        return source.open([row])[0].value
    return source.name_of(row)


def _join(source: Source, parts: list[_Part], output: Path, resumed: int) -> Embedded:
    """Write the parts as one file, and remove them."""
    tables = _Tables(parts)
    found = [table.index["id"].to_numpy() for table in tables]
    missing = ~np.isin(source.ids.numpy(), np.concatenate(found))
    left_out = tuple(source.name_of(row) for row in missing.nonzero()[0].tolist())
    if len(left_out) == len(source):
        got = f"{len(left_out):,} that cannot be read, such as {left_out[0]}"
        raise DataError(source.name, expected=f"readable {source.modality} samples", got=got, fix="check the files")
    write_tables(tables, output)
    first = next(iter(tables))
    shutil.rmtree(parts[0].file.parent)
    return Embedded(output, sum(map(len, found)), first.width, left_out, resumed, first.origin)
