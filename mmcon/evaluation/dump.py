"""The feature dump: the features of a source in one file, extracted in parts, so that a killed extraction goes on.

    features = write_dump("evaluation/train", source, model, [view], about={"model": fingerprint})

A folder holds `features.safetensors`, which is mapped into memory and read where it is needed, and `index.parquet`: a
line for each row of features, with the sample's id and name, its label and the name of its class. While it is written,
each part has a file of its own; ranks that share the folder write different parts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet
from safetensors import SafetensorError, safe_open

from mmcon.batch import ViewBatch
from mmcon.errors import DataError
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.second_stage import Encode
from mmcon.files import create_folder, replace_file
from mmcon.loading.loader import one_pass
from mmcon.sources.base import Source, Subset
from mmcon.training.progress import Progress
from mmcon.views import ViewGenerator

FEATURES, INDEX, ABOUT = "features.safetensors", "index.parquet", "about.json"
#: Samples of a part: what a kill loses at most.
PART_SAMPLES = 2048
_log = logging.getLogger(__name__)


def write_dump(
    folder: str | Path,
    source: Source,
    encode: Encode,
    views: Sequence[ViewGenerator],
    *,
    about: Mapping[str, str],
    combine: Callable[[Features], Features] | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    title: str = "features",
) -> Features:
    """Extract the features of a source into a folder, or read those that are there.

    Args:
        folder: of this dump alone. Features of another model or of other data in it are replaced.
        source: samples of one modality.
        encode: an encoder of view batches (see `extract_features`).
        views: of each sample, without random draws.
        about: what the features depend on, such as the fingerprints of the model and of the data.
        combine: from the rows of all views to one row a sample; needed with several views.
        batch_size: samples that are encoded at once, rounded down to a divisor of `PART_SAMPLES`.
        workers: processes that prepare batches.
        device: the device of the batches.
        rank: the number of this process among those that share the folder and the work.
        world_size: the number of such processes.
        title: the name of the phase, for the progress.

    Returns:
        Features whose values are mapped from the file. The other ranks wait for the main one.
    """
    folder = Path(folder)
    known = {"samples": str(len(source)), **about}
    _claim(folder, known, rank)
    if not is_whole(folder / FEATURES):
        size = PART_SAMPLES  # whatever the batch size is, with which a later call may go on
        batch_size = max(divisor for divisor in range(1, min(batch_size, size) + 1) if size % divisor == 0)
        parts = [folder / f"part-{number:06d}.safetensors" for number in range(-(-len(source) // size))]
        own = range(rank, len(parts), world_size)
        missing, written = [number for number in own if not _is_done(parts[number])], set[int]()
        rows = [row for number in missing for row in range(number * size, min((number + 1) * size, len(source)))]
        if rows:
            shown: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device}
            batches = one_pass(Subset(source, rows), {source.modality: list(views)}, **shown)
            with Progress(title, len(rows), enabled=rank == 0) as progress:
                by_part = groupby(counted(batches, progress), key=lambda batch: batch.step * batch_size // size)
                for number, of_part in by_part:
                    features = extract_features(encode, of_part, modality=source.modality, device=device)
                    (features if combine is None else combine(features)).save(parts[missing[number]])
                    written.add(missing[number])
        for number in set(missing) - written:  # a part without a readable sample
            _empty(parts[number]).touch()
        if rank == 0:
            _wait(lambda: all(map(_is_done, parts)))
            _finish(folder, source, [part for part in parts if not _empty(part).exists()], known)
    _wait(lambda: is_whole(folder / FEATURES))
    return read_dump(folder)


def read_dump(folder: str | Path) -> Features:
    """The features of a folder that `write_dump` wrote; their values are mapped from the file.

    Raises:
        DataError: the folder has no complete dump, or it is damaged.
    """
    return Features.load(Path(folder) / FEATURES)


def _claim(folder: Path, about: Mapping[str, str], rank: int) -> None:
    """Create the folder, or remove features in it that are of another model or of other data."""
    file, text = folder / ABOUT, json.dumps(dict(sorted(about.items())), indent=2) + "\n"
    if rank:
        _wait(lambda: file.exists() and file.read_text() == text)
        return
    create_folder(folder)
    if not file.exists() or file.read_text() != text:
        for old in (
            *folder.glob("part-*.safetensors"),
            *folder.glob("part-*.empty"),
            folder / FEATURES,
            folder / INDEX,
        ):
            old.unlink(missing_ok=True)
        replace_file(file, text)
    for old in (*folder.glob("part-*.safetensors"), folder / FEATURES):
        if old.exists() and not is_whole(old):
            _log.warning("%s is cut off; its features are extracted again", old)


def _is_done(part: Path) -> bool:
    return is_whole(part) or _empty(part).exists()


def _empty(part: Path) -> Path:
    """The file that stands for a part without a readable sample."""
    return part.with_suffix(".empty")


def is_whole(file: Path) -> bool:
    """Whether a file of safetensors is there, and as long as its header says; other errors of the disk are raised."""
    try:
        with file.open("rb"):  # since safetensors calls a file that it cannot open "not found", whatever the reason
            pass
        with safe_open(file, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def counted(batches: Iterator[ViewBatch], progress: Progress) -> Iterator[ViewBatch]:
    """The batches, whose samples are counted as done when the next batch is asked for."""
    for batch in batches:
        yield batch
        (table,) = batch.index.values()
        progress.advance(progress.done + len(table["sample"].unique()))


def _finish(folder: Path, source: Source, parts: list[Path], about: Mapping[str, str]) -> None:
    """Write the parts as one file, with the index, and remove them."""
    if not parts:
        raise DataError(source.name, expected="a readable sample", got=f"none of {len(source):,}")
    features = Features.cat([Features.load(part) for part in parts])
    features = Features(features.values, features.index, dict(about))
    table = _index_table(features, source)
    replace_file(folder / INDEX, lambda file: parquet.write_table(table, file))
    features.save(folder / FEATURES)
    # With what a kill left of writing, by this version or an earlier one.
    left = [path for name in ("*.safetensors", INDEX, ABOUT) for path in folder.glob(f".{name}.*")]
    for path in (*folder.glob("part-*"), *left, folder / f"{FEATURES}.unfinished"):
        path.unlink(missing_ok=True)


def _index_table(features: Features, source: Source) -> pa.Table:
    """The numbers of each row, the name of its sample, and that of its class."""
    columns: dict[str, Any] = {
        name: column.numpy() for name, column in features.index.items() if column.dim() == 1 and name != "view"
    }
    row_of = {sample: row for row, sample in enumerate(source.ids.tolist())}
    columns["name"] = [source.name_of(row_of[sample]) for sample in features.index["sample"].tolist()]
    if "label" in features.index and source.classes:
        columns["class"] = [source.classes[label] for label in features.labels.tolist()]
    return pa.table(columns)


def _wait(condition: Callable[[], bool], *, seconds: float = 0.2) -> None:
    """Wait for another rank; a launcher ends all ranks when one fails."""
    while not condition():
        time.sleep(seconds)
