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
