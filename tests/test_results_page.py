"""docs/results.md is made from the result files: every number of it, and with runs that are missing."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from mmcon.evaluation.statistics import t_interval

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
results_page = importlib.import_module("results_page")
sys.path.pop(0)

METHODS = list(results_page.TITLES)


def test_the_page_is_what_the_tool_writes_from_the_files():
    assert results_page.PAGE.read_text() == results_page.page(), "run `python tools/results_page.py`"


def test_the_first_table_is_derived_from_the_files_without_the_tool():
    files = {name: sorted((ROOT / "benchmarks" / "results" / "main").glob(f"{name}-seed-?.json")) for name in METHODS}
    lines = results_page.PAGE.read_text().splitlines()
    for name, title in results_page.TITLES.items():
        values = [json.loads(file.read_text())["linear_probe"] for file in files[name]]
        line = next(line for line in lines if line.startswith(f"| {title} | 0.0"))
        assert str(t_interval(values)) == line.split(" | ")[2]


def test_the_accuracy_of_a_run_is_that_of_its_predictions():
    for runs in results_page.read().values():
        for of in runs.values():
            for run in of.values():
                assert float(results_page.is_correct(run).mean()) == pytest.approx(run["linear_probe"])


def test_missing_runs_are_dashes(tmp_path):
    shutil.copy(results_page.RESULTS / "elsewhere.md", tmp_path)
    empty = results_page.page(tmp_path)
    assert "No run is there yet." in empty
    assert not re.search(r"\d\.\d{3}", empty.partition("## Figures of other pages")[0])
    (tmp_path / "main").mkdir()
    shutil.copy(results_page.RESULTS / "main" / "supcon-seed-0.json", tmp_path / "main")
    first = json.loads((tmp_path / "main" / "supcon-seed-0.json").read_text())
    lines = results_page.page(tmp_path).splitlines()
    assert f"{first['linear_probe']:.3f}" in next(line for line in lines if line.startswith("| SupCon, out |"))
    assert next(line for line in lines if line.startswith("| SimCLR |")).split(" | ")[1:3] == ["–", "–"]


def run(correct, seed):
    """A result of eight test images."""
    packed = "".join(str(int(of)) for of in correct)
    return {seed: {"correct": f"{int(packed, 2):02x}", "test_images": 8, "linear_probe": sum(correct) / 8}}


def test_a_difference_of_accuracy_is_tested_over_images():
    first, second = run([1, 1, 1, 1, 1, 1, 1, 0], 0), run([0, 0, 0, 0, 0, 0, 0, 0], 0)
    assert results_page.is_correct(first[0]).tolist() == [1, 1, 1, 1, 1, 1, 1, 0]
    _, results = results_page.accuracy_differences({"a": (first, second), "b": (first, first), "c": (first, {})})
    # Of the 2^7 exchanges two are as extreme: p = 2/128, times the two comparisons that could be made.
    assert results == {"a": "the first is better", "b": "not different"}
    table, _ = results_page.accuracy_differences({"a": (first, second), "b": (first, first), "c": (first, {})})
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[2:4] for row in rows] == [["0.0156", "0.0312"], ["1.0000", "1.0000"], ["–", "–"]]


def test_a_figure_by_seed_is_compared_by_the_interval_of_its_difference():
    runs = {
        "supcon": {s: {"error": 0.2 + 0.001 * s} for s in range(3)},
        "simclr": {s: {"error": 0.3} for s in range(3)},
    }
    figures = {"error": (lambda run: run["error"], False)}
    found = results_page.seed_differences({"main": runs}, figures, "simclr")
    assert found["error"].startswith("better, by -0.099")
    assert "not different" in results_page.seed_differences({"main": runs}, figures, "supcon")["error"]
    assert results_page.seed_differences({"main": runs}, figures, "max-margin") == {}


def test_the_sweeps_are_derived_from_the_files_without_the_tool():
    """The cells of both tables, and the lines of the picture, are the means over the files."""
    page, folder = results_page.PAGE.read_text(), ROOT / "benchmarks" / "results"
    axes = results_page.sweep_figure(results_page.read()).axes
    for number, (group, (title, values, methods)) in enumerate(results_page.SWEEPS.items()):
        rows = page.partition(f"### {title}\n")[2].partition("\n\n###")[0].splitlines()
        lines = {line.get_label(): line for line in axes[number].get_lines()}
        for method in methods:
            cells = next(row for row in rows if row.startswith(f"| {results_page.TITLES[method]} |")).split(" | ")
            drawn = dict(zip(*lines[results_page.TITLES[method]].get_data(), strict=True))
            seeds = []
            for value, cell in zip(values, cells[1:], strict=False):
                name = f"main/{method}" if value == results_page.PLAIN[group] else f"{group}/{method}-{value}"
                files = sorted(folder.glob(f"{name}-seed-?.json"))
                seeds.append({file.stem[-1]: json.loads(file.read_text())["linear_probe"] for file in files})
                found = [*seeds[-1].values()]
                assert cell.removesuffix(" *") == (str(t_interval(found)) if len(found) > 1 else f"{found[0]:.3f}")
            common = set.intersection(*map(set, seeds))
            means = [sum(of[seed] for seed in common) / len(common) for of in seeds]
            assert drawn == pytest.approx(dict(zip(map(float, values), means, strict=True)))
    assert "(figures/sweeps.svg)" in page
    assert "<svg" in results_page.FIGURE.read_text()


def test_a_value_that_differs_has_a_star_and_a_spread_is_by_seed(monkeypatch):
    monkeypatch.setattr(results_page, "SWEEPS", {"temperature": ("Temperature", ("0.02", "0.1"), ("supcon", "simclr"))})
    good, bad = [1] * 8, [0] * 8
    both = {method: run(good, 0) | run(good, 1) | run(good, 2) for method in ("supcon", "simclr")}
    swept = {"supcon-0.02": run(bad, 0) | run(bad, 1) | run(bad, 2)}
    swept["simclr-0.02"] = run(good, 0) | run([*good[1:], 0], 1) | run(good, 2)
    (_, table), findings = results_page.sweep_section({"main": both, "temperature": swept}, "temperature")
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[1].endswith(" *") for row in rows] == [True, False]
    # The spread of SimCLR is 0, 1/8 and 0 by seed; that of SupCon is 1 with all.
    assert rows[1][3].startswith("0.042")
    assert findings[0][0].startswith("temperature, best less worst, SupCon, out and SimCLR: worse, by 0.958")
    assert not findings[0][1]
