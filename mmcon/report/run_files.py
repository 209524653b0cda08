"""The files of a run folder that the run page shows; a missing one is left out, a damaged one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcon.errors import DataError, InputError
from mmcon.files import read_lines, read_yaml
from mmcon.media.image import ImageHandle
from mmcon.media.preview import preview_of
from mmcon.report.charts import is_number

#: The longest side of the picture of an evaluation.
_PICTURE_SIDE = 1000

#: The file of each part of `RunFiles` that any program may have written.
PART_FILES = {
    "metrics": "metrics.jsonl",
    "config": "config.yaml",
    "about": "run.json",
    "results": "results.json",
    "unreadable": "quarantine.jsonl",
    "views": "report/views.json",
    "samples": "report/samples.json",
}


@dataclass(frozen=True)
class EvaluationTable:
    """A result of `mmcon evaluate` in the run folder: its name, its table as text, and its picture as a data URI."""

    name: str
    table: str
    picture: str = ""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, as read; an absent part is empty.

    Attributes:
        folder: the run folder.
        metrics: the lines of metrics.jsonl with a step.
        config: config.yaml.
        about: run.json: the program, the data, the views, the versions.
        results: results.json; empty before the end of the run.
        unreadable: the lines of quarantine.jsonl.
        views: report/views.json.
        samples: report/samples.json.
        stopped: whether a signal stopped the run.
        evaluations: tables of `mmcon evaluate` in the folder.
        problems: the files that could not be read, one sentence each.
    """

    folder: Path
    metrics: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    views: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False
    evaluations: list[EvaluationTable] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder.

    Raises:
        InputError: the folder is none of a run: it has neither metrics.jsonl nor config.yaml nor results.json.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("metrics.jsonl", "config.yaml", "results.json")):
        got = f"{folder}, without them" if folder.is_dir() else f"{folder}, which is no folder"
        fix = "name the folder that a recipe printed, such as runs/imagenet_supcon"
        raise InputError("run page", expected="a run folder, with metrics.jsonl or config.yaml", got=got, fix=fix)
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        path = folder / name
        if not path.is_file():
            return {}
        try:
            value = parse(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, DataError, RecursionError) as error:
            value = error
        if isinstance(value, dict):
            return value
        problems.append(f"{name} cannot be read: {str(value).partition(chr(10))[0]}")
        return {}

    def read_log(name: str) -> list[dict[str, Any]]:
        lines, damaged = read_lines(folder / name)
        if damaged:
            problems.append(f"{name} has {len(damaged)} damaged line(s), which are left out")
        return lines

    evaluations = []
    for path in sorted(folder.glob("evaluation/*.txt")):
        try:
            shown = path.with_suffix(".png")
            picture = preview_of(ImageHandle(shown), "image", side=_PICTURE_SIDE).picture if shown.exists() else ""
            evaluations.append(EvaluationTable(path.stem, path.read_text(errors="replace"), picture))
        except (OSError, DataError) as error:
            problems.append(f"the evaluation {path.stem} cannot be read: {str(error).partition(chr(10))[0]}")
    return RunFiles(
        folder,
        metrics=[line for line in read_log("metrics.jsonl") if is_number(line.get("step"))],
        config=read("config.yaml", lambda text: read_yaml(text, where="config.yaml") or {}),
        about=read("run.json", json.loads),
        results=read("results.json", json.loads),
        unreadable=read_log("quarantine.jsonl"),
        views=read("report/views.json", json.loads),
        samples=read("report/samples.json", json.loads),
        stopped=(folder / "stopped").exists(),
        evaluations=evaluations,
        problems=problems,
    )
