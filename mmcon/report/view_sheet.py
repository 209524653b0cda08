"""Views of one sample: a contact sheet, and a record that replays them."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

import mmcon
from mmcon.errors import InputError
from mmcon.loading.mixup_partners import apply_mixing, mixing_child
from mmcon.random import stable_id
from mmcon.registry import lookup
from mmcon.views import collate, describe_sample, in_scope, meta_of, params_from_json, params_to_json

# The sheets by modality: modules with `open_sample` and `write_sheet`.
SHEETS = {"image": "mmcon.report.image_sheet", "audio": "mmcon.report.audio_sheet", "video": "mmcon.report.video_sheet"}


@dataclass(frozen=True)
class Record:
    """Everything that determines views of a file.

    Attributes:
        view: the generator's name.
        options: its options.
        input: the file.
        seed: of the keys.
        views: the number of views.
        partner: the second file, for generators that mix two samples.
        params: the parameters, empty before the draw; those of the partner's views follow those of the file.
    """

    view: str
    options: dict[str, Any]
    input: str
    seed: int
    views: int
    partner: str | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Record:
        """Read a record from a file.

        Raises:
            InputError: the file is not a record.
        """
        try:
            known = {"partner": None} | json.loads(path.read_text())
            return Record(**{one.name: known[one.name] for one in fields(Record)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "mmcon show --replay",
                expected="a record that `mmcon show` wrote",
                got=f"{path}: {type(error).__name__} {error}",
            ) from error

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def show(record: Record, output: Path, *, file: Path | None = None) -> Record:
    """Write a sheet of the views of a record, drawing them first if it has none yet.

    Args:
        record: the views to show.
        output: the sheet; audio files are written into the same folder.
        file: another file to show the same draws on.

    Returns:
        The record with its parameters.

    Raises:
        InputError: the modality has no sheet, or a view that mixes has no partner.
    """
    view = mmcon.create_view(record.view, **record.options)
    modality = lookup("view", record.view).modality
    sheet, mixes = sheet_for(modality), mixing_child(view) is not None
    if mixes and record.partner is None:
        raise InputError(
            f"mmcon show {record.view}",
            expected="a second file, since it mixes two samples",
            got="none",
            fix="--partner FILE",
        )
    names = [record.input, record.partner] if mixes and record.partner else [record.input]
    samples = [sheet.open_sample(Path(path)) for path in [str(file or record.input), *names[1:]]]
    handles = [sample for sample in samples for _ in range(record.views)]
    if record.params:
        params = params_from_json(json.dumps(record.params))
    else:
        params = _draw(view, modality, handles, names, record)
        record = replace(record, params=json.loads(params_to_json(params)))
    batch = collate(view.apply_ragged(handles, params))
    partners = torch.arange(record.views) + record.views
    views = apply_mixing(view, batch, params, partners) if mixes else view.apply_batched(batch, params)
    captions = [_caption(describe_sample(params, row)) for row in range(record.views)]
    # The sheet of a video plots the spans; that of a recording writes the waveforms before a spectrogram.
    more = {"video": {"params": params}, "audio": {"params": params, "view": view}}.get(modality, {})
    sheet.write_sheet(output, samples[0], views, captions, f"{record.view} of {Path(record.input).name}", **more)
    return record


def sheet_for(modality: str) -> Any:
    """The module that writes sheets of a modality."""
    known = {name: importlib.import_module(path) for name, path in SHEETS.items() if importlib.util.find_spec(path)}
    able = {name: module for name, module in known.items() if hasattr(module, "write_sheet")}
    if modality not in able:
        raise InputError("mmcon show", expected=f"a view of {', '.join(sorted(able))}", got=f"a view of {modality}")
    return able[modality]


def _draw(view: mmcon.ViewGenerator, modality: str, handles: list[Any], names: list[str], record: Record) -> Any:
    """The parameters of all views, keyed by the names of their files."""
    samples = [stable_id(Path(name).name) for name in names for _ in range(record.views)]
    numbers = torch.arange(record.views).repeat(len(names))
    table = mmcon.keys(seed=record.seed, sample=samples, view=numbers, step=0)
    return view.draw(in_scope(table, view.scope), meta_of(handles, modality))


def _caption(drawn: dict[str, Any], path: str = "") -> str:
    """The parameters of one sample, one per line."""
    lines: list[str] = []
    for name, value in drawn.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            lines += [_caption(value, where)] if value else []
        elif isinstance(value, list):
            lines.append(f"{where}: {_short(value)}")
        else:
            lines.append(f"{where}: {value:.4g}" if isinstance(value, float) else f"{where}: {value}")
    return "\n".join(lines)


def _short(values: list[Any]) -> str:
    text = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values[:6])
    return text + (f", … ({len(values)})" if len(values) > 6 else "")
