"""Comparison of runs: hand-made predictions, whose tests can be counted; Holm's correction; runs that do not match."""

import json
import re

import pytest
import torch
from evaluation_cases import labeled_features

from mmcon import cli
from mmcon.batch import Index
from mmcon.errors import DataError, InputError
from mmcon.evaluation.comparison import compare_runs
from mmcon.evaluation.features import Features
from mmcon.evaluation.saved_predictions import read_predictions, save_predictions
from mmcon.evaluation.second_stage import evaluate_features
from mmcon.evaluation.statistics import Classification, holm

TEST = labeled_features(40, 0)


def save(folder, wrong, metric="knn", test=TEST):
    """Predictions that are wrong on the given rows."""
    correct = torch.ones(len(test), dtype=torch.bool)
    correct[list(wrong)] = False
    predicted = torch.where(correct, test.labels, (test.labels + 1) % 5)
    top1 = correct.double().mean().item()
    save_predictions(folder, {metric: Classification(top1, 1.0, {}, predicted, correct)}, test)
    return folder


def naive_holm(p_values):
    """Each p-value times the number of those that are not smaller, made monotone from the smallest on."""
    corrected = []
    for p in p_values:
        steps = [q * sum(r >= q for r in p_values) for q in p_values if q <= p]
        corrected.append(min(1.0, max(steps)))
    return corrected


def test_holms_correction():
    p_values = [0.01, 0.04, 0.03, 0.005, 0.9]
    # .005 × 5, .01 × 4, .03 × 3, .04 × 2 raised to the one before, .9 × 1
    assert holm(p_values) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm(p_values) == pytest.approx(naive_holm(p_values))
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_predictions_are_read_back(tmp_path):
    table = read_predictions(save(tmp_path, [1, 3]))["knn"]
    assert torch.equal(table["label"], TEST.labels)
    assert (~table["correct"]).nonzero()[:, 0].tolist() == [1, 3]
    (tmp_path / "predictions" / "knn.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"knn\.parquet"):
        read_predictions(tmp_path)


def test_recipes_save_the_predictions_of_the_trained_encoder(tmp_path):
    train = labeled_features(60, 1)
    (tmp_path / "model").mkdir()
    found = evaluate_features(train, TEST, model_folder=tmp_path / "model", classes=list("abcde"))
    saved = read_predictions(tmp_path)
    assert {name: table["correct"].tolist() for name, table in saved.items()} == {
        name: own.correct.tolist() for name, own in found.items()
    }
    assert torch.equal(saved["knn"]["sample"], TEST.index["sample"])


def test_a_difference_that_is_there_and_one_that_is_not(tmp_path):
    """A is wrong on 10 samples on which B is right: 2^10 exchanges, of which 2 are as extreme, p = 2 / 1024."""
    runs = [save(tmp_path / "a", range(10)), save(tmp_path / "b", []), save(tmp_path / "c", [20])]
    result = compare_runs(runs)
    assert [a.interval.value for a in result.accuracies] == [0.75, 1.0, 0.975]
    by_pair = {(d.first, d.second): d for d in result.differences}
    assert by_pair["a", "b"].p_samples == 2 / 1024
    assert by_pair["a", "b"].p_corrected == pytest.approx(3 * 2 / 1024)
    assert by_pair["a", "b"].difference.value == pytest.approx(-0.25)
    assert by_pair["a", "b"].verdict == "b better"
    # 11 differ; the sum of signs is 9 or more for 1 + 11 of 2^11 exchanges, on both sides.
    assert by_pair["a", "c"].p_samples == pytest.approx(2 * 12 / 2048)
    assert by_pair["b", "c"].p_samples == 1.0
    assert by_pair["b", "c"].verdict == "not different"
    text = result.table()
    assert "not different: b − c" in text
    assert "corrected by Holm for 3 comparisons" in text
    assert len(result.plot().axes) == 1


def test_seeds_are_tested_too_with_the_least_p_that_they_can_give(tmp_path):
    for run, wrong in (("a", (range(0, 8), range(0, 9), range(0, 10))), ("b", ([], [1], []))):
        for seed, rows in enumerate(wrong):
            save(tmp_path / run / f"seed-{seed}", rows)
    result = compare_runs([tmp_path / "a", tmp_path / "b"])
    (difference,) = result.differences
    assert (difference.seeds, difference.p_seeds) == (3, 0.25)
    assert result.accuracies[0].by_seed == {"0": 0.8, "1": 0.775, "2": 0.75}
    assert "cannot give less than p = 0.25" in result.table()


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    a, other = save(tmp_path / "a", [0]), save(tmp_path / "other", [0], metric="linear_probe")
    with pytest.raises(InputError, match="no metric in all of"):
        compare_runs([a, other])
    with pytest.raises(InputError, match="two runs or more"):
        compare_runs([a])
    with pytest.raises(DataError, match=r"predictions/\*\.parquet"):
        compare_runs([a, tmp_path])
    fewer = save(tmp_path / "fewer", [], test=TEST.take(slice(0, 30)))
    with pytest.raises(DataError, match="30 samples of fewer, of which 30 are the same"):
        compare_runs([a, fewer])


def test_predictions_of_evaluate_come_before_those_of_the_recipe(tmp_path):
    run = save(tmp_path / "run", [])
    save(run / "evaluation", range(20))
    save(run, [1], metric="linear_probe")
    result = compare_runs([run, save(save(tmp_path / "other", []), [], metric="linear_probe")])
    assert {a.metric: a.interval.value for a in result.accuracies if a.run == "run"} == {
        "knn": 0.5,
        "linear_probe": 0.975,
    }
    assert f"run: predictions in {run / 'evaluation' / 'predictions'}, {run / 'predictions'}" in result.table()


def test_the_same_samples_with_other_labels_are_refused(tmp_path):
    other = Features(TEST.values, Index({**TEST.index, "label": (TEST.labels + (TEST.index["sample"] < 3)) % 5}))
    with pytest.raises(DataError, match="other labels of 3 of 40 samples of b"):
        compare_runs([save(tmp_path / "a", []), save(tmp_path / "b", [], test=other)])


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--draws", "0"), "1,000 exchanges or more; got 0"), (("--output", "x.docx"), "a picture: .*; got x.docx")],
)
def test_bad_options_of_the_command_are_refused(tmp_path, capsys, words, message):
    assert cli.main(["compare", str(save(tmp_path / "a", [])), str(save(tmp_path / "b", [])), *words]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err)
    assert not printed.out


def test_the_command_prints_a_table_or_json_and_draws(tmp_path, capsys):
    runs = [str(save(tmp_path / "a", range(10))), str(save(tmp_path / "b", []))]
    assert cli.main(["compare", *runs, "--output", str(tmp_path / "picture.png")]) == 0
    assert "b better: a − b" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", *runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][0]["result"] == "b better"
    assert cli.main(["compare", *runs, "--metric", "probe"]) == 2
    assert "['probe'] in all of" in capsys.readouterr().err
