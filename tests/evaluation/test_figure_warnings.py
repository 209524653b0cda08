"""Warnings about figures: few samples, classes without samples, and no difference from a random encoder."""

import pytest
import torch

from mmcon.evaluation.figure_warnings import figure_warnings, retrieval_warnings, temporal_warnings
from mmcon.evaluation.second_stage import metrics_json, results_json
from mmcon.evaluation.statistics import classify
from mmcon.evaluation.text import text_metrics_json


def accuracy(correct, classes=3):
    """A classification of labels 0, 1, 2, 0, … that is right where `correct` is."""
    labels = torch.arange(len(correct)) % classes
    predicted = torch.where(torch.tensor(correct), labels, (labels + 1) % classes)
    return classify(torch.nn.functional.one_hot(predicted, classes).float(), labels, torch.arange(classes))


def metrics(trained, random):
    return {name: dict.fromkeys(("linear_probe", "knn"), accuracy(correct)) for name, correct in
            (("trained encoder", trained), ("random encoder", random))}  # fmt: skip


def test_few_samples_carry_their_interval():
    (found,) = figure_warnings(metrics([True] * 2, [False] * 2) | {"random encoder": {}}, 2, kind="images")
    # Wilson's interval of 2 of 2: 1 / (1 + 1.96² / 2) = .342.
    assert found == "few images: with 2 held out, the 95 % interval of an accuracy is as wide as 1.000 [0.342, 1.000]"
    assert figure_warnings(metrics([True] * 400, [False] * 400), 400) == []


def test_classes_without_samples_are_named():
    trained = {"linear_probe": accuracy([True] * 300)}
    (found,) = figure_warnings({"trained": trained}, 300, classes=["cat", "dog", "owl", "emu"], kind="images")
    assert found == "no held-out images of 1 of 4 classes: emu"


@pytest.mark.parametrize(
    ("trained", "random", "equal"),
    [
        ([True, False] * 200, [True, False] * 200, True),  # the same
        ([True, False] * 200, [True] * 400, True),  # worse
        ([True] * 203 + [False] * 197, [True] * 200 + [False] * 200, True),  # 3 of 3: McNemar's p is .25
        ([True] * 220 + [False] * 180, [True] * 200 + [False] * 200, False),  # 20 of 20
    ],
)
def test_a_figure_no_better_than_that_of_a_random_encoder_says_so(trained, random, equal):
    found = figure_warnings(metrics(trained, random), 400)
    assert [
        text.startswith("the trained encoder is not better than a random one by linear_probe") for text in found
    ] == ([True] if equal else [])


def test_warnings_are_in_the_results_of_every_kind():
    weak = metrics([True, False] * 200, [True, False] * 200)
    assert "not better" in metrics_json(weak)["warnings"][0]
    assert "not better" in text_metrics_json(weak)["warnings"][0]
    numbers = {"trained": {"knn": 0.5}, "random encoders": {"knn": 0.5}}
    assert "knn 0.500 and 0.500" in results_json(numbers, n=400)["warnings"][0]
    assert "warnings" not in results_json(numbers)
    strong = metrics([True] * 400, [True, False] * 200)
    assert "warnings" not in metrics_json(strong)
    assert metrics_json(strong)["knn_top1_interval"] == pytest.approx([0.99, 1.0], abs=1e-3)


def recalls(first, second, queries):
    ways = {"first_to_second": first, "second_to_first": second}
    return {"held_out": {way: {"recall_at_1": value, "queries": queries} for way, value in ways.items()}}


def test_recalls_from_few_pairs_or_no_better_than_at_random_are_reported():
    few = {"trained": recalls(0.5, 0.5, 10), "random_towers": recalls(0.1, 0.5, 10)}
    assert results_json(few)["warnings"] == [
        "few pairs: with 10 held out, the 95 % interval of recall at 1 is as wide as 0.500 [0.237, 0.763]",
        "the trained encoder is not better than a random one by recall at 1, second_to_first 0.500 and 0.500",
    ]
    by_pair = {"held_out": {"image-text": recalls(0.4, 0.5, 400)["held_out"], "uniformity": {"image": -2.0}}}
    assert retrieval_warnings({"trained": by_pair, "random_encoders": {"held_out": {}}}) == []
    (found,) = retrieval_warnings({"trained": by_pair, "random_encoders": by_pair})
    assert "recall at 1, image-text first_to_second 0.400 and 0.400; recall at 1, image-text" in found


def temporal(values, interval):
    ordered = {"order_accuracy": sum(values) / len(values), "order_accuracy_interval": interval}
    correlated = {"lag_correlation": sum(values) / len(values)}
    return ordered | correlated | {"by_clip": {"order_accuracy": values, "lag_correlation": values}}


def test_temporal_figures_of_few_videos_or_no_better_than_at_random_are_reported():
    trained, random = temporal([0.8, 0.9, 0.7, 0.8], [0.6, 0.9]), temporal([0.6, 0.7, 0.5, 0.6], [0.4, 0.7])
    # Better in each of four videos, which happens in 2 of 2⁴ exchanges: p is .125.
    assert temporal_warnings({"trained": trained, "random": random}, 4) == [
        "few videos: with 4 held out, the 95 % interval of the order of two frame times is as wide as"
        " 0.800 [0.600, 0.900]",
        "the trained encoder is not better than a random one by lag_correlation 0.800 and 0.600;"
        " order_accuracy 0.800 and 0.600",
    ]
    trained, random = temporal([0.8] * 10, [0.78, 0.82]), temporal([0.6] * 10, [0.58, 0.62])
    assert temporal_warnings({"trained": trained, "random": random}, 10) == []
