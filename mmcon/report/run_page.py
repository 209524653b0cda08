"""The page of a run: one HTML file that stands alone, with everything that the run folder holds.

    write_report("runs/imagenet_supcon")          # runs/imagenet_supcon/report.html

Charts are Vega-Lite's; their script, the style and all media are inside the file, and the file forbids itself any
request. Values of the run are escaped by Jinja, and `<` in data by a JSON escape.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcon.errors import MissingDependencyError, StorageError
from mmcon.report.charts import Chart, classes_chart, confusion_chart, curves, figures, is_number, map_chart
from mmcon.report.result_tables import class_shares, headline, interval_rows, result_tables
from mmcon.report.run_files import PART_FILES, RunFiles, read_run
from mmcon.report.vega import script_is_ready, vega_script

PAGE_FILE = "report.html"
#: The shortest time between two pages of a run at work, and the share of the time that writing them takes at most.
PAUSE_SECONDS, TIME_SHARE = 10.0, 0.01
#: Unreadable files that the page lists.
LISTED_FILES = 200

_log = logging.getLogger(__name__)


def write_report(run_folder: str | Path, *, running: bool = False) -> Path:
    """Write `report.html` into a run folder, from what the folder holds so far.

    Args:
        run_folder: the folder of a run of any recipe.
        running: whether the run is at work; the page then offers to reload itself.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder is none of a run.
        StorageError: the page cannot be written.
    """
    files = read_run(run_folder)
    try:
        script = vega_script()
    except MissingDependencyError as error:
        _log.warning("the run page has no charts: %s", error)
        script = ""
    page = _render(files, running=running, script=script)
    path = files.folder / PAGE_FILE
    # Not flushed to the disk as checkpoints are: a page that a crash loses is written again.
    temporary = path.with_name(f".{PAGE_FILE}.{os.getpid()}")
    try:
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError("run page", expected=f"to write {path}", got=str(error), fix="make space for it") from error
    return path


def _render(files: RunFiles, *, running: bool, script: str) -> str:
    """The page. A file with values of another form than a run writes is left out, and named on it."""

    def page(shown: RunFiles, script: str = "") -> str:
        return _template().render(context(shown, running=running), script=script)

    try:
        return page(files, script)
    except Exception:
        shown = replace(files, **{part: type(getattr(files, part))() for part in PART_FILES})
    for part, name in PART_FILES.items():
        try:
            page(more := replace(shown, **{part: getattr(files, part)}))
        except Exception as error:
            problem = f"{name} has values of another form than a run writes ({type(error).__name__}: {error})"
            _log.warning("the run page leaves out a file: %s", problem)
            more = replace(shown, problems=[*shown.problems, problem])
        shown = more
    return page(shown, script)


class LivePage:
    """Keeps the page of a run at work up to date, for at most 1 % of the time; no failure of it ends the run.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = time.monotonic() + PAUSE_SECONDS
        self._failed = False

    def refresh(self) -> None:
        """Write the page, if enough time has passed since the last one."""
        if not self._failed and time.monotonic() >= self._next:
            self._write(running=True)

    def close(self) -> None:
        """Write the page for the last time."""
        if not self._failed:
            self._write(running=False)

    def _write(self, *, running: bool) -> None:
        began = time.monotonic()
        try:
            if not running or script_is_ready():
                write_report(self.folder, running=running)
        except Exception as error:
            self._failed = True
            _log.warning("%s is not written: %s", PAGE_FILE, error)
        now = time.monotonic()
        self._next = now + max(PAUSE_SECONDS, (now - began) / TIME_SHARE)


def context(files: RunFiles, *, running: bool = False) -> dict[str, Any]:
    """What the template takes."""
    tables, charts = result_tables(files.results), curves(files.metrics)
    rows, shares = interval_rows(tables), class_shares(files.results)
    extra = {
        "figures": figures(rows) if rows else None,
        "classes": classes_chart(shares) if len(shares) > 1 else None,
        "confusion": _confusion(files.samples),
        "map": _map(files.samples),
    }
    charted = {f"curve-{i}": chart for i, chart in enumerate(charts)} | {k: c for k, c in extra.items() if c}
    return {
        "name": files.folder.resolve().name,
        "files": files,
        "state": _state(files, running=running),
        "running": running,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "facts": _facts(files, headline(tables)),
        "warnings": [*(files.results.get("warnings") or ()), *files.problems],
        "tables": tables,
        "shares": sorted(shares.items(), key=lambda item: item[1]),
        "curves": {f"curve-{i}": chart for i, chart in enumerate(charts)},
        "charts": extra,
        "specs": {name: chart.spec for name, chart in charted.items()},
        "samples": files.samples,
        "listed_files": files.unreadable[:LISTED_FILES],
        "commands": _commands(files),
        "short": _short_name,
        "parameters": _parameters,
    }


def _state(files: RunFiles, *, running: bool) -> str:
    if running:
        return "training"
    return "finished" if files.results else "stopped by a signal" if files.stopped else "not finished"


def _facts(files: RunFiles, best: Any) -> list[tuple[str, str, str]]:
    """The first line of the page: names, values and notes."""
    facts: list[tuple[str, str, str]] = []
    if best is not None:
        metric, cell, compared = best
        facts.append((metric, str(cell), cell.ends or compared))
    if files.metrics:
        last = files.metrics[-1]
        facts.append(
            (
                "step",
                f"{int(last['step']):,}",
                f"epoch {int(last['epoch']) + 1}" if is_number(last.get("epoch")) else "",
            )
        )
        losses = [line["loss"] for line in files.metrics if isinstance(line.get("loss"), int | float)]
        if losses:
            facts.append(("loss", f"{losses[-1]:.4f}", f"at first {losses[0]:.4f}"))
        rates = [line["views_per_second"] for line in files.metrics if is_number(line.get("views_per_second"))]
        if rates:
            facts.append(("samples a second", f"{sorted(rates)[len(rates) // 2]:,.0f}", "median"))
    if files.unreadable:
        facts.append(("unreadable files", f"{len(files.unreadable):,}", "left out"))
    return facts


def _confusion(samples: Mapping[str, Any]) -> Chart | None:
    counts, classes = samples.get("confusion") or (), samples.get("classes", ())
    # Where training has other classes, such as other prompts, a neighbor's label is none of these.
    known = all(max(label, guess) < len(classes) for label, guess, _ in counts)
    return confusion_chart(counts, classes) if counts and known and len(classes) > 1 else None


def _map(samples: Mapping[str, Any]) -> Chart | None:
    if not samples.get("maps"):
        return None
    if len(samples["modalities"]) > 1:
        return map_chart(samples["modalities"], "modality", samples=len(samples["samples"]))
    present = sorted({sample["label"] for sample in samples["samples"]} - {-1})
    names = [samples["classes"][label] for label in present]
    return map_chart(names, "class", samples=len(samples["samples"]))


def _commands(files: RunFiles) -> list[tuple[str, str]]:
    """What repeats the run, goes on with it, and replays a step of it."""
    program, folder = files.about.get("program"), shlex.quote(str(files.folder))
    if not isinstance(program, list):
        return []
    words = shlex.join(map(str, program[1:]))
    commands = [("repeat", f"python {words}"), ("go on", f"python {words} --resume")]
    shown = files.views.get("samples") or ()
    if shown:
        step, sample = files.views.get("step", 1), shown[0]["sample"]
        commands.append(("replay", f"mmcon replay {folder} --step {step} --sample {sample}"))
    return [*commands, ("this page", f"mmcon report {folder}")]


def _short_name(name: str, parts: int = 2) -> str:
    """The last parts of a path, which tell files of a data set apart, or a name without that of its source."""
    pieces = str(name).rpartition(": ")[2].replace("\\", "/").split("/")
    return "/".join(pieces[-parts:])


def _parameters(views: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The parameters of the views of a sample: a path, and its value in each view or ""."""
    by_view = [dict(view["params"]) for view in views]
    paths = dict.fromkeys(path for params in by_view for path in params)
    return [(path, [params.get(path, "") for params in by_view]) for path in paths]


@functools.cache
def _template() -> Any:
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data"] = _json
    style, behavior = ((folder / f"run_page.{kind}").read_text() for kind in ("css", "js"))
    environment.globals.update(style=style, behavior=behavior)
    return environment.get_template("run_page.html.jinja")


def _json(value: Any) -> Any:
    """A value as JSON inside of a script element: without `<`, so that no text ends the element."""
    import markupsafe

    text = json.dumps(_finite(value), separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {name: _finite(of) for name, of in value.items()}
    return [_finite(of) for of in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
