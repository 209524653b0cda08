"""docs/results.md is made from the result files: every number of it, and with runs that are missing."""

import importlib
import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import mmcon
from mmcon import registry
from mmcon.evaluation.statistics import t_interval
from mmcon.sources.few_labels import few_labels

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
results_page = importlib.import_module("results_page")
comparisons, regimes, result_runs, sweeps = (
    importlib.import_module(f"evidence.{name}") for name in ("comparisons", "regimes", "runs", "sweeps")
)
sys.path.pop(0)

METHODS = list(result_runs.TITLES)


def test_the_page_is_what_the_tool_writes_from_the_files():
    assert results_page.PAGE.read_text() == results_page.page(), "run `python tools/results_page.py`"


def test_the_first_table_is_derived_from_the_files_without_the_tool():
    files = {name: sorted((ROOT / "benchmarks" / "results" / "main").glob(f"{name}-seed-?.json")) for name in METHODS}
    lines = results_page.PAGE.read_text().splitlines()
    for name, title in result_runs.TITLES.items():
        values = [json.loads(file.read_text())["linear_probe"] for file in files[name]]
        line = next(line for line in lines if line.startswith(f"| {title} | 0.0"))
        assert str(t_interval(values, shares=True)) == line.split(" | ")[2]


def test_the_accuracy_of_a_run_is_that_of_its_predictions():
    for runs in result_runs.read().values():
        for of in runs.values():
            for run in of.values():
                assert float(result_runs.is_correct(run).mean()) == pytest.approx(run["linear_probe"])


def test_missing_runs_are_dashes(tmp_path):
    shutil.copy(result_runs.RESULTS / "elsewhere.md", tmp_path)
    empty = results_page.page(tmp_path)
    assert "No run is there yet." in empty
    assert not re.search(r"\d\.\d{3}", empty.partition("## Figures of other pages")[0])
    (tmp_path / "main").mkdir()
    shutil.copy(result_runs.RESULTS / "main" / "supcon-seed-0.json", tmp_path / "main")
    first = json.loads((tmp_path / "main" / "supcon-seed-0.json").read_text())
    lines = results_page.page(tmp_path).splitlines()
    assert f"{first['linear_probe']:.3f}" in next(line for line in lines if line.startswith("| SupCon (out) |"))
    assert next(line for line in lines if line.startswith("| SimCLR |")).split(" | ")[1:3] == ["–", "–"]


def run(correct, seed):
    """A result of eight test images."""
    packed = "".join(str(int(of)) for of in correct)
    return {seed: {"correct": f"{int(packed, 2):02x}", "test_images": 8, "linear_probe": sum(correct) / 8}}


def test_a_difference_of_accuracy_is_tested_over_images():
    first, second = run([1, 1, 1, 1, 1, 1, 1, 0], 0), run([0, 0, 0, 0, 0, 0, 0, 0], 0)
    assert result_runs.is_correct(first[0]).tolist() == [1, 1, 1, 1, 1, 1, 1, 0]
    _, results = comparisons.accuracy_differences({"a": (first, second), "b": (first, first), "c": (first, {})})
    # Of the 2^7 exchanges two are as extreme: p = 2/128, times the two comparisons that could be made.
    assert results == {"a": "the first is better", "b": "not different"}
    assert [comparisons.finding(*item).claim for item in results.items()] == ["shows", "open"]
    assert comparisons.finding("a", comparisons.verdict(-0.1, 0.01)).claim == "refuted"
    table, _ = comparisons.accuracy_differences({"a": (first, second), "b": (first, first), "c": (first, {})})
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[2:4] for row in rows] == [["0.0156", "0.0312"], ["1.0000", "1.0000"], ["–", "–"]]


def test_a_figure_by_seed_is_compared_by_the_interval_of_its_difference():
    first, second = ({s: {"error": 0.2 + 0.001 * s} for s in range(3)}, {s: {"error": 0.3} for s in range(3)})

    def compare(one, other):
        return comparisons.seed_findings("errors", one, other, lambda run: run["error"], higher=False)

    (found,) = compare(first, second)
    assert found.text.startswith("errors: better, by -0.099")
    assert found.claim == "shows"
    assert [(one.claim, one.text[:21]) for one in compare(first, first)] == [("open", "errors: not different")]
    assert compare(second, first)[0].claim == "refuted"
    assert compare(first, {s: second[s] for s in (0, 1)}) == []  # two seeds may differ by chance alone


def test_the_sweeps_are_derived_from_the_files_without_the_tool():
    """The cells of both tables, and the lines of the picture, are the means over the files."""
    page, folder = results_page.PAGE.read_text(), ROOT / "benchmarks" / "results"
    axes = sweeps.sweep_figure(result_runs.read()).axes
    for number, (group, (title, values, methods)) in enumerate(sweeps.SWEEPS.items()):
        rows = page.partition(f"### {title}\n")[2].partition("\n\n###")[0].splitlines()
        lines = {line.get_label(): line for line in axes[number].get_lines()}
        for method in methods:
            cells = next(row for row in rows if row.startswith(f"| {result_runs.TITLES[method]} |")).split(" | ")
            drawn = dict(zip(*lines[result_runs.TITLES[method]].get_data(), strict=True))
            seeds = []
            for value, cell in zip(values, cells[1:], strict=False):
                name = f"main/{method}" if value == sweeps.PLAIN[group] else f"{group}/{method}-{value}"
                files = sorted(folder.glob(f"{name}-seed-?.json"))
                seeds.append({file.stem[-1]: json.loads(file.read_text())["linear_probe"] for file in files})
                found = [*seeds[-1].values()]
                assert cell.removesuffix(" *") == (
                    str(t_interval(found, shares=True)) if len(found) > 1 else f"{found[0]:.3f}"
                )
            common = set.intersection(*map(set, seeds))
            means = [sum(of[seed] for seed in common) / len(common) for of in seeds]
            assert drawn == pytest.approx(dict(zip(map(float, values), means, strict=True)))
    assert "(figures/sweeps.svg)" in page
    assert "<svg" in sweeps.FIGURE.read_text()


def test_a_value_that_differs_has_a_star_and_a_spread_is_by_seed(monkeypatch):
    monkeypatch.setattr(sweeps, "SWEEPS", {"temperature": ("Temperature", ("0.02", "0.1"), ("supcon", "simclr"))})
    good, bad = [1] * 8, [0] * 8
    both = {method: run(good, 0) | run(good, 1) | run(good, 2) for method in ("supcon", "simclr")}
    swept = {"supcon-0.02": run(bad, 0) | run(bad, 1) | run(bad, 2)}
    swept["simclr-0.02"] = run(good, 0) | run([*good[1:], 0], 1) | run(good, 2)
    (_, table), findings = sweeps.sweep_section({"main": both, "temperature": swept}, "temperature")
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[1].endswith(" *") for row in rows] == [True, False]
    # The spread of SimCLR is 0, 1/8 and 0 by seed; that of SupCon is 1 with all.
    assert rows[1][3].startswith("0.042")
    assert findings[0][0].startswith("temperature, best less worst, SupCon (out) and SimCLR: worse, by 0.958")
    assert findings[0].claim == "refuted"


def test_a_result_is_stated_once():
    """The batch size of the main runs has no test of its own: two corrections of one comparison are two statements."""
    lines = results_page.PAGE.read_text().partition("## Methods under one budget")[0].splitlines()
    stated = [line.rpartition(": ")[0] for line in lines if line.startswith("- ")]
    assert len(set(stated)) == len(stated)
    assert not [line for line in stated if "batches of 64" in line]


def test_the_regimes_are_derived_from_the_files_without_the_tool():
    page, folder = results_page.PAGE.read_text(), ROOT / "benchmarks" / "results" / "regimes"
    shown = page.partition("## Other regimes\n")[2].partition("\n## ")[0]
    every, fair = [*regimes.REGIMES], regimes.WITH_FAIR_PROBE
    tables = {"linear probe": ("linear_probe", every), "k-NN": ("knn", every), "fair probe": ("fair_probe", fair)}
    for title, (figure, names) in tables.items():
        part = shown.partition(f"| {title} |")[2].partition("\n\n")[0].splitlines()
        for method in result_runs.THREE:
            row = next(line for line in part if line.startswith(f"| {result_runs.TITLES[method]} |"))
            cells = row.removesuffix(" |").split(" | ")[-len(names) :]
            for name, cell in zip(names, cells, strict=True):
                files = sorted(folder.glob(f"{method}-{name}-seed-?.json"))
                values = [json.loads(file.read_text())[figure] for file in files]
                alone = [f"{value:.3f}" for value in values] or [comparisons.DASH]
                assert cell == (str(t_interval(values, shares=True)) if len(values) > 1 else alone[0])


@pytest.fixture(scope="module")
def script():
    """The script that makes the runs; the sources that it registers are forgotten after the tests."""
    registry.load_plugins()
    before = dict(registry._entries)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    module = importlib.import_module("results")
    sys.path.pop(0)
    yield module
    del sys.modules["results"]
    registry._entries.clear()
    registry._entries.update(before)


@pytest.mark.slow
def test_every_run_has_a_file_of_its_own(script):
    files = [trial.file for trial in script.trials()]
    assert len(set(files)) == len(files)
    assert {file.relative_to(result_runs.RESULTS) for file in files} >= {
        file.relative_to(result_runs.RESULTS) for file in result_runs.RESULTS.glob("*/*.json")
    }


@pytest.mark.slow
def test_noisy_labels_are_those_of_training_alone(script):
    clean, noisy = (
        {split: mmcon.create_source(name, split=split) for split in ("train", "test")}
        for name in ("samples/fashion", "results/noisy-labels")
    )
    assert noisy["test"].labels.equal(clean["test"].labels)
    assert noisy["train"].ids.equal(clean["train"].ids)
    wrong = noisy["train"].labels != clean["train"].labels
    # Of the labels that are redrawn, one in ten is redrawn as it was.
    assert float(wrong.double().mean()) == pytest.approx(0.4 * 0.9, abs=0.02)
    of_wrong = noisy["train"].labels[wrong].bincount(minlength=10).double() / wrong.sum()
    assert of_wrong.tolist() == pytest.approx([0.1] * 10, abs=0.02)


@pytest.mark.slow
def test_a_long_tail_is_geometric_and_its_test_classes_are_even(script):
    train = mmcon.create_source("results/long-tail", split="train")
    counts = train.labels.bincount().tolist()
    assert (counts[0], counts[-1], len(counts)) == (800, 8, 10)
    ratios = [first / second for first, second in pairwise(counts)]
    assert ratios == pytest.approx([100 ** (1 / 9)] * 9, rel=0.07)
    kept = few_labels(train, share=script.REGIMES["long-tail"]["label_fraction"], seed=0)
    assert kept.labels.bincount()[[0, -1]].tolist() == [400, 4]
    assert len(kept) == pytest.approx(1000, abs=20)  # about as many images as a main run has
    assert mmcon.create_source("results/long-tail", split="test").labels.bincount().unique().tolist() == [200]
