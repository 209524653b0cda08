"""Passes over the test images with a change of the pixels in each: the images are decoded and resized once for all.

    found = image_passes(given, {"fog 3": ("fog", fog)}, lambda features: {"norm": features.values.norm(dim=1)})

The images are taken in parts of bounded memory. What is found in a part is kept in a file until all evaluations are
done, so that an interrupted call goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from safetensors.torch import load_file, save
from torch import Tensor

from mmcon.errors import DataError
from mmcon.evaluation.dump import counted, is_whole
from mmcon.evaluation.evaluation_list import EvaluationInput
from mmcon.evaluation.features import Features, extract_features
from mmcon.files import create_folder, replace_file
from mmcon.loading.loader import one_pass
from mmcon.sources.base import Subset, TensorSource
from mmcon.training.progress import Progress
from mmcon.views import Chain, ViewGenerator

#: Of the images of a part after the preprocessing: 3,566 of 224 pixels in bytes. A batch may be more.
PART_BYTES = 1 << 29
_log = logging.getLogger(__name__)

#: Tensors by name, a row for each image.
Found = Mapping[str, Shaped[Tensor, "_n ..."]]


def image_passes(
    given: EvaluationInput,
    changes: Mapping[str, tuple[str, ViewGenerator]],
    find: Callable[[Features], Found],
    *,
    title: str,
) -> dict[str, dict[str, Shaped[Tensor, "_n ..."]]]:
    """What a function finds in the features of the test images under each change of their pixels.

    Args:
        given: the test images whose features were extracted are taken.
        changes: by the name of a pass, a generator after the preprocessing, and its name in the chain, which enters its
            draws.
        find: from features to tensors with a row for each image.
        title: the name of the evaluation, for the progress and the files.

    Returns:
        By pass, the tensors of all images, in order.

    Raises:
        DataError: an image whose features were extracted cannot be read any more.
    """
    rows = torch.isin(given.test_source.ids, given.test.index["sample"]).nonzero()[:, 0]
    size = max(given.batch_size, PART_BYTES // _bytes_of_an_image(given, rows[:1]))
    parts = {f"{title}-{_digest(given.test_source.ids[part])}": part for part in rows.split(size)}
    found: dict[str, list[Found]] = {name: [] for name in changes}
    computed = [(stem, name) for stem in parts for name in changes if not _is_kept(given, f"{stem} {name}")]
    missing = sum(len(parts[stem]) for stem, _ in computed)
    with Progress(f"{title}, {len(changes)} passes", missing) as progress:
        for stem, part in parts.items():
            pixels = cache(partial(_preprocessed, given, part))
            for name, change in changes.items():
                compute = partial(_pass, given, pixels, change, find, progress)
                found[name].append(kept(given, f"{stem} {name}", compute))
    return {name: {key: torch.cat([of[key] for of in each]) for key in each[0]} for name, each in found.items()}


def kept(given: EvaluationInput, name: str, compute: Callable[[], Found]) -> Found:
    """What a function returns, or returned in an interrupted call: it is written to a file as soon as it is known.

    Args:
        given: has the folder; without one, nothing is written.
        name: of the file.
        compute: the function.
    """
    if given.unfinished is None:
        return compute()
    file = _file(given.unfinished, name)
    if not is_whole(file):
        if file.exists():
            _log.warning("%s is cut off; it is computed again", file)
        create_folder(file.parent)
        replace_file(file, save({key: values.cpu().contiguous() for key, values in compute().items()}))
    return load_file(file)


def _is_kept(given: EvaluationInput, name: str) -> bool:
    return given.unfinished is not None and is_whole(_file(given.unfinished, name))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _digest(ids: Int[Tensor, " n"]) -> str:
    """A hash of the images of a part: which of them can be read may change between two calls."""
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


def _bytes_of_an_image(given: EvaluationInput, row: Int[Tensor, " 1"]) -> int:
    """The memory of an image after the preprocessing.

    Images that are tensors count as floats: of those that are resampled as floats, some, such as a black one, are the
    same as bytes.
    """
    view, opened = given.first_view(), given.test_source.open(row)
    return view.nbytes if isinstance(opened[0], Tensor) else _as_bytes(view).nbytes


def _pass(
    given: EvaluationInput,
    pixels: Callable[[], TensorSource],
    change: tuple[str, ViewGenerator],
    find: Callable[[Features], Found],
    progress: Progress,
) -> Found:
    """What is found in the images of a part under a change."""
    settings: dict[str, Any] = {"batch_size": given.batch_size, "workers": given.workers, "device": given.device}
    batches = one_pass(pixels(), {given.modality: [Chain(change)]}, **settings)
    batches, about = counted(batches, progress), {"modality": given.modality, "device": given.device}
    return find(extract_features(given.encode, batches, **about))


def _preprocessed(given: EvaluationInput, rows: Int[Tensor, " n"]) -> TensorSource:
    """The images of some rows after the preprocessing."""
    source, views, samples = given.test_source, [], []
    settings: dict[str, Any] = {"batch_size": given.batch_size, "workers": given.workers}
    for batch in one_pass(Subset(source, rows), {given.modality: [given.view]}, **settings):
        views.append(_as_bytes(batch.views[given.modality][0]))
        samples.append(batch.index[given.modality]["sample"])
    read = torch.cat(samples) if samples else rows[:0]
    if not torch.equal(read, source.ids[rows]):
        lost = rows[~torch.isin(source.ids[rows], read)]
        raise DataError(
            source.name,
            expected=f"the {len(given.test):,} images whose features were extracted",
            got=f"{len(lost):,} that cannot be read any more, such as {source.name_of(int(lost[0]))}",
            fix="the same command goes on when they can be read; for the others alone, choose another --output",
        )
    whole = all(of.dtype == torch.uint8 for of in views)
    values = torch.cat(views if whole else [_as_floats(of) for of in views])
    options: dict[str, Any] = {"modality": given.modality, "name": source.name}
    if source.labels is not None:
        options |= {"labels": source.labels[rows], "classes": source.classes}
    return TensorSource(values, ids=source.ids[rows], **options)


def _as_bytes(views: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
    """Images in [0, 1] as bytes, if that changes no bit of them as floats; else a copy.

    Neither keeps the memory of the views, which worker processes share.
    """
    whole = (views * 255).round().to(torch.uint8)
    return whole if torch.equal(_as_floats(whole), views) else views.clone()


def _as_floats(views: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    return views.to(torch.float32).div_(255) if views.dtype == torch.uint8 else views
