"""Figures of sounds, on features made by hand."""

import pytest
import torch

from mmcon.batch import Index, ViewBatch
from mmcon.evaluation.audio import evaluate_audio, log_mel_statistics
from mmcon.evaluation.features import Features


def features(rows, **columns):
    table = {"sample": torch.arange(len(rows)), **{name: torch.tensor(value) for name, value in columns.items()}}
    return Features(torch.tensor(rows), Index(table))


def test_a_prompt_is_looked_for_in_other_languages_only():
    """Prompts 0 and 1 in languages 0 and 1; angles in degrees: 0, 90 | 10, 20.

    Prompt 0 of language 0 (0°) finds 10° first: right. Prompt 1 of language 0 (90°) finds 20°: right. Prompt 0 of
    language 1 (10°) finds 0°: right. Prompt 1 of language 1 (20°) finds 0° before 90°: wrong, and right at 5.
    """
    angle = torch.deg2rad(torch.tensor([0.0, 90.0, 10.0, 20.0]))
    rows = torch.stack([angle.cos(), angle.sin()], 1).tolist()
    test = features(rows, prompt=[0, 1, 0, 1], language=[0, 0, 1, 1])
    figures = evaluate_audio(test, test)
    assert figures["recall"] == {"at_1": 0.75, "at_5": 1.0, "at_10": 1.0}
    assert figures["recall_chance"]["at_1"] == 0.5
    assert figures["mean_average_precision"] == pytest.approx((3 + 1 / 2) / 4)


def test_classes_are_looked_for_in_training():
    train = features([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], label=[0, 0, 1, 1])
    figures = evaluate_audio(train, features([[1.0, 0.05], [1.0, 0.0]], label=[0, 1]))
    assert figures["recall"]["at_1"] == 0.5
    assert figures["knn"] == figures["linear_probe"] == 0.5


def test_classes_that_training_has_not_are_looked_for_among_themselves():
    train = features([[1.0, 0.0], [0.0, 1.0]], label=[0, 1])
    unseen = features([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], label=[2, 2, 3])
    assert evaluate_audio(train, unseen)["recall"]["at_1"] == 1.0
    assert "knn" not in evaluate_audio(train, unseen)


def test_without_labels_there_are_no_figures():
    assert evaluate_audio(features([[1.0], [2.0]]), features([[1.0]])) == {}


def test_statistics_do_not_count_padding():
    x = torch.tensor([[1.0, 3.0, 99.0]]).view(1, 1, 1, 3)
    part = {"log_mel": x, "length": torch.tensor([2])}
    batch = ViewBatch({"audio": (part,)}, {"audio": Index({"sample": torch.tensor([0])})})
    assert log_mel_statistics(batch).tolist() == [[2.0, 1.0]]
