"""The charts of the run page as Vega-Lite specifications: curves of the log, figures, classes, and the embedding map.

Colors and fonts are those of the page, which sets them for its light and its dark scheme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The most points of a curve; more log lines are averaged in equal groups.
POINTS = 400
#: The most classes of a chart.
SHOWN_CLASSES = 40

# Titles of charts, and the names in metrics.jsonl that belong to each; units, and whether the parts are stacked.
_GROUPS = (
    ("Loss", r"loss(/.*)?", "", False),
    ("Learning rate", r"learning_rate", "", False),
    ("Temperature", r"(.*/)?(temperature|logit_scale).*", "", False),
    ("Positives of an anchor", r"(.*/)?(positives_per_anchor|effective_positives.*)", "", False),
    ("Anchors with a positive", r"valid_anchors(/.*)?", "%", False),
    ("Share of the gradient", r"(.*/)?gradient_on_.*", "%", False),
    ("Similarity of pairs", r"(.*/)?(positive|negative)_similarity", "cosine", False),
    ("Gradient norm", r"gradient_norm", "", False),
    ("Spread of embeddings", r"embedding_spread", "cosine distance", False),
    ("Dimensions that embeddings use", r"embedding_rank", "", False),
    ("Where the time goes", r"waiting_for_data|views|forward|backward|optimizer", "%", True),
    ("Samples per second", r"views_per_second", "", False),
)
_TIME = {"waiting_for_data": "waiting", "views": "views", "forward": "forward", "backward": "backward"}


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: the heading.
        about: the text for screen readers, which says what is to be seen.
        spec: in Vega-Lite.
    """

    title: str
    about: str
    spec: dict[str, Any]


def curves(lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Charts of everything that two lines of metrics.jsonl have; what stays 0, such as unreadable samples, has none."""
    names = {name: None for line in lines for name, value in line.items() if is_number(value)}
    names = [name for name in names if name not in ("step", "epoch")]
    names = [name for name in names if sum(is_number(line.get(name)) for line in lines) > 1]
    names = [name for name in names if any(is_number(line.get(name)) and line[name] for line in lines)]
    charts, left = [], list(names)
    for title, pattern, unit, stacked in _GROUPS:
        members = [name for name in left if re.fullmatch(pattern, name)]
        if members:
            left = [name for name in left if name not in members]
            charts.append(_curve(title, members, lines, unit=unit, stacked=stacked))
    for prefix in dict.fromkeys(name.partition("/")[0] for name in left):
        members = [name for name in left if name.partition("/")[0] == prefix]
        charts.append(_curve(_words(prefix), members, lines))
    return charts


def figures(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Figures of several encoders with their intervals.

    Args:
        rows: with `metric`, `encoder`, `value`, and `low` and `high` where there is an interval.
    """
    low, high = (min(row.get("low", row["value"]) for row in rows), max(row.get("high", row["value"]) for row in rows))
    x = {"field": "value", "type": "quantitative", "title": None, "scale": {"domain": [low, high], "nice": True}}
    x["axis"] = {"tickCount": 5}
    y = {"field": "metric", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 220}}
    color = {"field": "encoder", "type": "nominal", "title": None, "sort": None}
    offset = {"yOffset": {"field": "encoder", "sort": None}}
    tips = [{"field": n, "title": n, **({"format": ".4f"} if n in ("value", "low", "high") else {})}
            for n in ("metric", "encoder", "value", "low", "high")]  # fmt: skip
    interval = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    spec = {
        "data": {"values": list(rows)},
        "height": 18 * len(rows) + 20,
        "layer": [
            {"transform": [{"filter": "isValid(datum.low)"}], "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
             "encoding": {**interval, "y": y, "color": color, **offset}},
            {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "aria": False},
             "encoding": {"x": x, "y": y, "color": color, **offset, "tooltip": tips}},
        ],
    }  # fmt: skip
    told = "; ".join(f"{row['metric']} of {row['encoder']} {row['value']:.3f}" for row in rows)
    return Chart("Figures", f"Figures on held-out samples: {told}", spec)


def classes_chart(shares: Mapping[str, float]) -> Chart:
    """The accuracy of each class, the lowest first; of many classes, the lowest ones."""
    worst = sorted(shares.items(), key=lambda item: item[1])[:SHOWN_CLASSES]
    spec = {
        "data": {"values": [{"class": name, "accuracy": share} for name, share in worst]},
        "height": 18 * len(worst),
        "mark": {"type": "bar", "aria": False, "cornerRadiusEnd": 2, "height": 10},
        "encoding": {
            "x": {"field": "accuracy", "type": "quantitative", "title": None, "scale": {"domain": [0, 1]},
                  "axis": {"format": "%", "tickCount": 5}},
            "y": {"field": "class", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 160}},
            "tooltip": [{"field": "class"}, {"field": "accuracy", "format": ".1%"}],
        },
    }  # fmt: skip
    title = "Accuracy by class" if len(worst) == len(shares) else f"The {len(worst)} classes of lowest accuracy"
    return Chart(title, f"{title}: from {worst[0][0]} {worst[0][1]:.1%} to {worst[-1][0]} {worst[-1][1]:.1%}", spec)


def confusion_chart(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Chart:
    """Counts of (label, guess) as a matrix; of many classes, those that are confused most."""
    wrong = dict.fromkeys(range(len(classes)), 0)
    total = dict.fromkeys(range(len(classes)), 0)
    for label, guess, count in counts:
        total[label] += count
        for confused in {label, guess} if label != guess else ():
            wrong[confused] += count
    kept = sorted(sorted(wrong, key=lambda c: -wrong[c])[:SHOWN_CLASSES])
    names = _distinct([classes[c] for c in kept])
    name_of = dict(zip(kept, names, strict=True))
    values = [
        {"label": name_of[label], "guess": name_of[guess], "count": count, "share": count / total[label]}
        for label, guess, count in counts
        if label in name_of and guess in name_of
    ]
    axis = {"labelLimit": 110, "grid": False, "domain": False, "ticks": False}
    side = 19 * max(6, len(kept))
    spec = {
        "data": {"values": values},
        "height": side,
        "usermeta": {"max_width": side + 260},
        "mark": {"type": "rect", "aria": False, "cornerRadius": 1},
        "encoding": {
            "x": {"field": "guess", "type": "nominal", "sort": names, "title": "label of the neighbors",
                  "scale": {"domain": names}, "axis": {**axis, "labelAngle": -50}},
            "y": {"field": "label", "type": "nominal", "sort": names, "title": "own label",
                  "scale": {"domain": names}, "axis": axis},
            "color": {"field": "share", "type": "quantitative", "title": "share of the label's samples",
                      "scale": {"domain": [0, 1]}, "legend": {"format": "%", "orient": "top"}},
            "tooltip": [{"field": "label"}, {"field": "guess"}, {"field": "count"},
                        {"field": "share", "format": ".1%"}],
        },
    }  # fmt: skip
    right = sum(count for label, guess, count in counts if label == guess)
    about = f"Confusion of {len(kept)} of {len(classes)} classes; {right} of {sum(total.values())} samples are right"
    return Chart("Confusion", about, spec)


def map_chart(groups: Sequence[str], title: str, *, samples: int) -> Chart:
    """The embedding map. The page fills in its data, `points`: x, y, i (the sample) and group.

    Args:
        groups: the names of the colors: classes or modalities. More than ten are not told apart by a legend.
        title: of the groups.
        samples: the number of points; few are drawn larger.
    """
    few, size = 0 < len(groups) <= 10, 34 if samples > 200 else 90
    color = {"field": "group", "type": "nominal", "title": title, "sort": list(groups)}
    color |= {"scale": {"domain": list(groups)}, "legend": {} if few else None}
    # A scale without values would draw no point of unlabeled samples.
    grouped = ({"color": color} if groups else {}) | ({"shape": {**color}} if few else {})
    hover = {"type": "point", "on": "pointerover", "nearest": True, "fields": ["i"], "clear": "pointerout"}
    axis = {"type": "quantitative", "axis": None, "scale": {"zero": False, "padding": 12}}
    encoding = {"x": {"field": "x", **axis}, "y": {"field": "y", **axis}}
    spec = {
        "data": {"name": "points"},
        "params": [{"name": "chosen", "value": -1}],
        "height": 420,
        "view": {"stroke": None},
        "layer": [
            {"params": [{"name": "hover", "select": hover}],
             "mark": {"type": "point", "filled": True, "size": size, "opacity": 0.75, "aria": False},
             "encoding": {**encoding, **grouped}},
            {"transform": [{"filter": "datum.i === chosen"}],
             "mark": {"type": "point", "size": 320, "strokeWidth": 2.5, "aria": False, "style": "chosen"},
             "encoding": encoding},
        ],
    }  # fmt: skip
    colors = f"; colors: {title}" if groups else ""
    about = f"Test samples as points, near each other where their embeddings are{colors}"
    return Chart("Embedding map", about, spec)


def _curve(
    title: str, names: Sequence[str], lines: Sequence[Mapping[str, Any]], *, unit: str = "", stacked: bool = False
) -> Chart:
    """One chart of several columns of the log over the steps."""
    rows = _thinned(names, lines)
    titles = [_series_title(name, title) for name in names]
    y: dict[str, Any] = {"title": None if unit == "%" else unit or None, "type": "quantitative"}
    y["axis"] = {"format": "%"} if unit == "%" else {"format": ".1e"} if title == "Learning rate" else {}
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickMinStep": 1, "tickCount": 5}}
    tip = ".1%" if unit == "%" else ".4~g"
    several = len(names) > 1
    # Legends are as wide as the chart, also on a phone.
    legend = {"columns": 3 if max(map(len, titles)) <= 12 else 1 if max(map(len, titles)) > 24 else 2}
    color = {"type": "nominal", "sort": titles, "title": None, "scale": {"domain": titles}, "legend": legend}
    layers: list[dict[str, Any]] = []
    if stacked:
        layers.append({
            "transform": [{"fold": [f"s{i}" for i in range(len(names))], "as": ["part", "share"]},
                          {"calculate": f"{titles}[toNumber(substring(datum.part, 1))]", "as": "name"}],
            "mark": {"type": "area", "aria": False, "opacity": 0.85},
            "encoding": {"x": x, "y": {**y, "field": "share", "stack": "zero", "scale": {"domain": [0, 1]}},
                         "order": {"field": "part"},
                         "color": {"field": "name", "type": "nominal", "sort": titles, "title": None,
                                   "scale": {"domain": titles}, "legend": {"columns": 3}}},
        })  # fmt: skip
    else:
        layers += [{
            "transform": [{"filter": f"isValid(datum.s{i})"}],
            "mark": {"type": "line", "strokeWidth": 1.8, "aria": False, "point": len(rows) < 2},
            "encoding": {"x": x, "y": {**y, "field": f"s{i}", "scale": {"zero": False}},
                         **({"color": {**color, "datum": name}} if several else {})},
        } for i, name in enumerate(titles)]  # fmt: skip
    hover = {"type": "point", "fields": ["step"], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    tips = [{"field": f"s{i}", "title": name, "format": tip} for i, name in enumerate(titles)]
    shown = {"param": "hover", "empty": False, "value": 0.6}
    layers.append({
        "params": [{"name": "hover", "select": hover}],
        "mark": {"type": "rule", "aria": False, "strokeWidth": 1},
        "encoding": {"x": x, "opacity": {"condition": shown, "value": 0},
                     "tooltip": [{"field": "step", "title": "step"}, *tips]},
    })  # fmt: skip
    told = "; ".join(_summary(f"s{i}", name, rows) for i, name in enumerate(titles))
    return Chart(title, f"{title} by step. {told}", {"data": {"values": rows}, "height": 170, "layer": layers})


def _thinned(names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most `POINTS` rows of a step and of values s0, s1, …: means of equal groups of log lines."""
    lines = [line for line in lines if any(is_number(line.get(name)) for name in names)]
    size = -(-len(lines) // POINTS)
    rows = []
    for group in (lines[i : i + size] for i in range(0, len(lines), size)):
        row: dict[str, Any] = {"step": group[-1]["step"]}
        for i, name in enumerate(names):
            values = [line[name] for line in group if is_number(line.get(name))]
            row[f"s{i}"] = float(f"{sum(values) / len(values):.6g}") if values else None
        rows.append(row)
    return rows


def _summary(column: str, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    known = [(row[column], row["step"]) for row in rows if row[column] is not None]
    (first, _), (last, step), (least, at) = known[0], known[-1], min(known)
    return f"{name}: {first:.4g} at first, {last:.4g} at step {step}, least {least:.4g} at step {at}"


def _series_title(name: str, title: str) -> str:
    """The name of a curve in a chart: without the part that the title of the chart says."""
    inner = name.partition("/")[2] or name
    return _TIME.get(inner) or ("total" if name == "loss" and title == "Loss" else _words(inner))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which none is given twice."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
