"""The numbers of results.json as tables of encoders, whatever recipe wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The column of the trained encoder.
TRAINED = "trained"
#: Mappings of so many figures are tables of their own.
LARGE_PART = 6
#: The figures that say most about an encoder, in this order.
HEADLINES = ("linear probe", "recall at 1", "lag correlation", "probe", "recall", "top-1", "k-NN")
# Lists and mappings that have a place of their own on the page, or are too long for one.
_ELSEWHERE = ("warnings", "by_clip", "clip_ids", "per_class", "by_class")


@dataclass(frozen=True)
class Cell:
    """A figure, with its 95 % interval where there is one."""

    value: int | float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if isinstance(self.value, int) or abs(self.value) >= 1e3:
            return f"{self.value:,.0f}"
        return f"{self.value:.3f}"

    @property
    def ends(self) -> str:
        """The interval as text, or ""."""
        return "" if self.interval is None else f"{self.interval[0]:.3f} to {self.interval[1]:.3f}"


@dataclass(frozen=True)
class ResultTable:
    """Metrics in rows, encoders in columns.

    Attributes:
        title: of the table; "" for the main one.
        encoders: the names of the columns.
        rows: the name of a metric, and its cell for each encoder or None.
    """

    title: str
    encoders: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def result_tables(results: Mapping[str, Any]) -> list[ResultTable]:
    """The tables of results.json: the trained encoder beside its baselines.

    A mapping at the top whose figures have the names of those beside it is a baseline; one whose values are mappings
    of the same figures, as by kind of views, is a table of its own, and so is one of many figures, as of a test set.
    """
    if 0 < len(class_shares(results)) <= 5:  # of five classes, the right one is always among the first five
        results = _without_top5(results)
    nested = {name: value for name, value in results.items() if isinstance(value, Mapping) and not _is_elsewhere(name)}
    kinds = {name: of for name, of in nested.items() if _is_table(of)}
    cells = {name: _cells(of) for name, of in nested.items() if name not in kinds}
    baselines = [name for name in cells if _is_baseline(name, cells, results)]
    columns = {TRAINED: {name: of for name, of in results.items() if name not in {*kinds, *baselines}}}
    columns |= {name: nested[name] for name in baselines}
    parts = [name for name in cells if name not in baselines and len(cells[name]) >= LARGE_PART]
    rest = {
        column: {name: of for name, of in values.items() if name not in parts} for column, values in columns.items()
    }
    tables = [_table("", {column: _cells(values) for column, values in rest.items()})]
    for name in sorted(parts, key=lambda part: "held_out" not in part):
        of_part = {column: _cells(values[name]) for column, values in columns.items() if _is_part(values, name)}
        tables.append(_table(_words(name), of_part))
    tables += [_table(_words(name), {column: _cells(of) for column, of in kinds[name].items()}) for name in kinds]
    return [table for table in tables if table.rows]


def interval_rows(tables: Sequence[ResultTable]) -> list[dict[str, Any]]:
    """The figures that have an interval, of the first table with any: rows of `charts.figures`."""
    for table in tables:
        rows = [
            {"metric": metric, "encoder": encoder, "value": cell.value}
            | ({} if cell.interval is None else {"low": cell.interval[0], "high": cell.interval[1]})
            for metric, cells in table.rows
            if any(cell is not None and cell.interval is not None and cell.interval[1] <= 1 for cell in cells)
            for encoder, cell in zip(table.encoders, cells, strict=True)
            if cell is not None
        ]
        if rows:
            return rows
    return []


def class_shares(results: Mapping[str, Any]) -> dict[str, float]:
    """The accuracy by class of the first metric that has it."""
    found = (value for name, value in results.items() if name.endswith("_by_class") and isinstance(value, Mapping))
    return {str(name): float(share) for name, share in next(found, {}).items() if isinstance(share, int | float)}


def headline(tables: Sequence[ResultTable]) -> tuple[str, Cell, str] | None:
    """The figure that says most: the metric, the trained encoder's cell, and the first baseline as text."""
    rows = [(table, *row) for table in tables if table.encoders[0] == TRAINED for row in table.rows]
    for wanted in HEADLINES:
        for table, metric, cells in rows:
            if wanted in metric and cells[0] is not None:
                others = zip(table.encoders[1:], cells[1:], strict=True)
                compared = next((f"{name} {cell}" for name, cell in others if cell is not None), "")
                return f"{table.title} {metric}".strip(), cells[0], compared
    return None


def _table(title: str, by_encoder: Mapping[str, Mapping[str, Cell]]) -> ResultTable:
    metrics = list(dict.fromkeys(name for cells in by_encoder.values() for name in cells))
    rows = [(_words(name), [cells.get(name) for cells in by_encoder.values()]) for name in metrics]
    return ResultTable(title, [_words(name) for name in by_encoder], rows)


def _cells(values: Mapping[str, Any], path: str = "") -> dict[str, Cell]:
    """The figures of nested mappings by path; `linear_probe_top1` and `linear_probe: top1` have the same one."""
    cells: dict[str, Cell] = {}
    for name, value in values.items():
        where = f"{path}_{name}" if path else name
        if _is_elsewhere(name) or name.endswith("_interval"):
            continue
        if isinstance(value, Mapping):
            cells |= _cells(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            cells[where] = Cell(value)
    for name, value in values.items():
        of = f"{path}_{name}".lstrip("_").removesuffix("_interval")
        ends = isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
        if name.endswith("_interval") and of in cells and ends:
            cells[of] = Cell(cells[of].value, (value[0], value[1]))
    return cells


def _without_top5(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if not name.endswith("top5")}
    return {name: _without_top5(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _is_part(values: Mapping[str, Any], name: str) -> bool:
    return isinstance(values.get(name), Mapping)


def _is_elsewhere(name: str) -> bool:
    return name in _ELSEWHERE or name.endswith("_by_class")


def _is_table(value: Mapping[str, Any]) -> bool:
    """Whether all values are mappings, of three figures or more, that share most of their figures."""
    columns = [set(_cells(of)) for of in value.values() if isinstance(of, Mapping)]
    if len(columns) < 2 or len(columns) < len(value):
        return False
    shared = set.intersection(*columns)
    return len(shared) >= 3 and 2 * len(shared) >= max(map(len, columns))


def _is_baseline(name: str, cells: Mapping[str, Mapping[str, Cell]], results: Mapping[str, Any]) -> bool:
    """Whether the figures of a mapping mostly have the names of those outside of it."""
    outside = set(_cells({other: value for other, value in results.items() if other != name}))
    return bool(cells[name]) and 2 * len(outside & set(cells[name])) >= len(cells[name])


def _words(name: str) -> str:
    words = {"top1": "top-1", "top5": "top-5", "knn": "k-NN", "nmi": "NMI", "ndcg": "nDCG"}
    return " ".join(words.get(word, word) for word in name.replace("_", " ").split(" "))
