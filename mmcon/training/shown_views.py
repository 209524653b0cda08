"""The views of a few samples of a batch, with their keys and parameters, saved for the run page."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcon.batch import ViewBatch, count_rows, tree_map
from mmcon.files import replace_file
from mmcon.loading.loader import ViewLoader
from mmcon.media.preview import Preview, preview_of, preview_of_view
from mmcon.training.view_files import rate_of, replayed_text
from mmcon.views import describe_sample, select_samples

#: The file in a run folder.
VIEWS_FILE = "report/views.json"
#: Samples of which views are saved, and views of each.
SHOWN_SAMPLES, VIEWS_OF_SAMPLE = 4, 6
#: The numbers of a parameter; random fields and matrices have more.
SHOWN_NUMBERS = 8
_SIDE = 144

_log = logging.getLogger(__name__)


def show_views(folder: Path, loader: ViewLoader, batch: ViewBatch) -> None:
    """Save the views of the first batch of a run, or of a resumed one without; an error is logged, and ends nothing."""
    if batch.step > 0 and (folder / VIEWS_FILE).exists():
        return
    try:
        save_views(folder, loader, batch)
    except Exception as error:
        _log.warning("the run page has no views: %s", error)


def save_views(folder: Path, loader: ViewLoader, batch: ViewBatch) -> Path:
    """Write the views of the first samples of a batch of this rank.

    Args:
        folder: the run folder.
        loader: made the batch; it has the generators, the seed and the source.
        batch: on any device.
    """
    found: list[dict[str, Any]] = []
    for modality in batch.modalities:
        table = batch.index[modality]
        for sample in list(dict.fromkeys(table["sample"].tolist()))[:SHOWN_SAMPLES]:
            name, original = _original(loader, modality, sample)
            views = _views_of(loader, batch, modality, sample)
            found.append({"modality": modality, "sample": sample, "name": name, "original": original, "views": views})
    path = folder / VIEWS_FILE
    path.parent.mkdir(exist_ok=True)
    return replace_file(path, json.dumps({"step": batch.step + 1, "seed": loader.seed, "samples": found}))


def _views_of(loader: ViewLoader, batch: ViewBatch, modality: str, sample: int) -> list[dict[str, Any]]:
    """The views of a sample: the rest of their keys, their parameters by path, and their previews."""
    views: list[dict[str, Any]] = []
    first, groups = 0, [group for group in loader.view_groups if group.modality == modality]
    for number, (group, values) in enumerate(zip(groups, batch.views[modality], strict=True)):
        table = batch.index[modality].take(slice(first, first + count_rows(values)))
        first += count_rows(values)
        for row in torch.nonzero(table["sample"] == sample).flatten().tolist():
            if len(views) == VIEWS_OF_SAMPLE:
                return views
            view = tree_map(lambda x, row=row: x[row].detach().cpu(), values)
            params = select_samples(tree_map(Tensor.cpu, batch.params[modality][number]), [row])
            if modality == "text" and (position := _row(loader, modality, sample)) >= 0:
                shown = Preview(text=replayed_text(loader, group, position, params))
            else:
                shown = preview_of_view(view, modality, side=_SIDE, rate_hz=rate_of(group.generator))
            key = {name: int(table[name][row]) for name in ("epoch", "occurrence", "view")}
            views.append({**key, "params": _flat(describe_sample(params, 0)), **shown.to_json()})
    return views


def _original(loader: ViewLoader, modality: str, sample: int) -> tuple[str, dict[str, str]]:
    """The name of a sample and its preview; without one if the source is a stream, which cannot be opened again."""
    row = _row(loader, modality, sample)
    if row < 0:
        return f"sample {sample}", {}
    source = loader.source.members[modality]
    return source.name_of(row), preview_of(source.open([row])[0], modality, side=_SIDE).to_json()


def _row(loader: ViewLoader, modality: str, sample: int) -> int:
    """The index of a sample in its source; -1 if it is a stream."""
    source = getattr(loader.source, "members", {}).get(modality)
    ids = getattr(source, "ids", torch.zeros(0))
    return next(iter(torch.nonzero(ids == sample).flatten().tolist()), -1)


def _flat(params: Mapping[str, Any], path: str = "") -> list[list[str]]:
    """Parameters as pairs of a path and a short text."""
    pairs: list[list[str]] = []
    for name, value in params.items():
        where = f"{path}.{name}" if path else name
        pairs += _flat(value, where) if isinstance(value, Mapping) else [[where, _text(value)]]
    return pairs


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    numbers = torch.tensor(value).flatten().tolist()
    more = f", … ({len(numbers):,})" if len(numbers) > SHOWN_NUMBERS else ""
    return ", ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in numbers[:SHOWN_NUMBERS]) + more
