"""The report of a classifier against torchmetrics and scikit-learn, and the probe by SGD."""

import pytest
import torch
from evaluation_cases import labeled_features
from sklearn.metrics import confusion_matrix, recall_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from mmcon.errors import ConfigError, InputError
from mmcon.evaluation import sgd_probe
from mmcon.evaluation.calibration import calibration
from mmcon.evaluation.classification_report import classification_report
from mmcon.evaluation.evaluation_list import EvaluationInput, find_evaluation, number_option
from mmcon.evaluation.probe import fit_probe
from mmcon.evaluation.sgd_probe import fit_sgd_probe
from mmcon.sources.base import TensorSource
from mmcon.views import Identity

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def report():
    """Random scores of seven classes, of which the last has no sample."""
    g = torch.Generator().manual_seed(0)
    test = labeled_features(300, 1, classes=6)
    probabilities = (torch.randn(300, 7, generator=g) + 2 * torch.eye(7)[test.labels]).softmax(1)
    return probabilities, test.labels, classification_report(probabilities, test, torch.arange(7), names=NAMES)


def test_accuracies_are_those_of_torchmetrics(report):
    probabilities, labels, result = report
    for k, ours in ((1, result.classification.top1), (5, result.classification.top5)):
        theirs = multiclass_accuracy(probabilities, labels, num_classes=7, average="micro", top_k=k)
        assert ours == pytest.approx(float(theirs))
    by_class = multiclass_accuracy(probabilities, labels, num_classes=7, average="none")
    assert [i.value for i in result.by_class.values()] == pytest.approx(by_class[:6].tolist())
    assert result.worst_class == NAMES[int(by_class[:6].argmin())]
    assert "gnu" not in result.by_class


def test_the_confusion_is_scikit_learns(report):
    probabilities, labels, result = report
    guess = probabilities.argmax(1)
    theirs = confusion_matrix(labels, guess, labels=range(7))
    assert result.confusion.tolist() == theirs.tolist()
    assert result.mean_of_classes == pytest.approx(recall_score(labels, guess, labels=range(6), average="macro"))
    true, other, count = result.confusions(1)[0]
    assert count == max(theirs[i][j] for i in range(7) for j in range(7) if i != j)
    assert count == theirs[NAMES.index(true)][NAMES.index(other)]


@pytest.mark.parametrize("bins", [15, 4])
def test_the_calibration_error_is_that_of_torchmetrics(report, bins):
    probabilities, labels, _ = report
    ours = calibration(probabilities, probabilities.argmax(1) == labels, bins=bins)
    theirs = multiclass_calibration_error(probabilities.double(), labels, num_classes=7, n_bins=bins, norm="l1")
    assert ours.error == pytest.approx(float(theirs), abs=1e-6)
    assert int(ours.counts.sum()) == 300


def test_the_table_has_the_worst_class_first_and_the_json_all(report):
    result = report[2]
    lines = result.table().splitlines()
    assert lines[0].startswith("classifier: top-1 0.")
    first = next(i for i, line in enumerate(lines) if line.startswith("class ")) + 1
    assert lines[first].split()[0] == result.worst_class
    plain = result.to_json()
    assert list(plain["by_class"]) == list(NAMES[:6])
    assert len(plain["confusion"]) == 7
    assert len(result.plot().axes) == 3


def test_numbers_that_are_no_probabilities_are_refused():
    with pytest.raises(InputError, match="probabilities from 0 to 1"):
        calibration(torch.tensor([[3.0, 1.0]]), torch.tensor([True]))
    with pytest.raises(InputError, match="got 0 rows"):
        calibration(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))


def test_the_probe_by_sgd_reaches_the_regression_and_chooses_on_training_samples():
    train, test = labeled_features(400, 0), labeled_features(200, 1)
    probe = fit_sgd_probe(train, learning_rates=(1e-4, 3.0), weight_decays=(0.0, 1e-4), epochs=10, batch_size=64)
    assert probe.learning_rate == 3.0
    assert set(probe.held_out) == {"0.0001, 0", "0.0001, 0.0001", "3, 0", "3, 0.0001"}
    assert probe.held_out[f"3, {probe.l2:g}"] == max(probe.held_out.values())
    assert probe.evaluate(test).top1 == pytest.approx(fit_probe(train, l2=0.01).evaluate(test).top1, abs=0.03)


def test_the_steps_of_sgd_are_torchs():
    """One pair: the same batches by torch.optim.SGD and its cosine schedule give the same classifier."""
    from mmcon.evaluation.sgd_probe import _train
    from mmcon.random import keys

    data = labeled_features(100, 0)
    weight, bias = _train(
        data.values, data.labels, [(0.5, 0.01)], classes=5, epochs=2, batch_size=32, seed=3, title="probe"
    )
    theirs = torch.nn.Linear(8, 5)
    torch.nn.init.zeros_(theirs.weight)
    torch.nn.init.zeros_(theirs.bias)
    groups = [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for epoch in range(2):
        order = keys(seed=3, epoch=epoch).child("sgd probe").permutation("order", 100)[0]
        for rows in order.split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(theirs(data.values[rows]), data.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(weight[0], theirs.weight.T.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bias[0, 0], theirs.bias.detach(), atol=1e-5, rtol=1e-4)


def test_held_out_rows_are_classified_in_chunks(monkeypatch):
    train = labeled_features(60, 0)
    options = {"learning_rates": (0.1, 3.0), "weight_decays": (0.0,), "epochs": 1}
    whole = fit_sgd_probe(train, **options)
    shapes, baddbmm = [], torch.baddbmm
    monkeypatch.setattr(sgd_probe, "VALIDATION_ROWS", 5)
    monkeypatch.setattr(torch, "baddbmm", lambda *of: shapes.append(of[1].shape[1]) or baddbmm(*of))
    assert fit_sgd_probe(train, **options).held_out == whole.held_out
    assert shapes == [53, 5, 2, 60]  # the first step, the 7 held-out rows in chunks, and the step of all rows


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("probe", "solver", "sdg", "lbfgs or sgd; got 'sdg'"),
        ("knn", "neighbors", "many", "a whole number of 1 or more; got 'many'"),
        ("knn", "neighbors", None, "got None"),
        ("few-labels", "draws", 2.5, "a whole number of 1 or more; got 2.5"),
        ("perturbations", "perturbation_steps", "a", "a whole number"),
        ("perturbations", "perturbations", [{}], "kinds among"),
        ("outliers", "outlier_neighbors", True, "a whole number from 1 to 30; got True"),
        ("cues", "cue_correlation", "x", "a number from 0 to 1; got 'x'"),
        ("fine-tuning", "fine_tuning_rates", ["fast"], "a number of 0 or more; got 'fast'"),
    ],
)
def test_options_of_no_use_are_named(name, option, value, message):
    features, source = labeled_features(30, 0), TensorSource(torch.zeros(30, 3, 2, 2, dtype=torch.uint8))
    given = EvaluationInput(
        train=features, test=features, train_source=source, test_source=source, encode=torch.nn.Identity(),
        view=Identity(), modality="image", options={option: value}, near={"other": source},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        find_evaluation(name).run(given)


def test_numbers_of_options_may_be_text():
    assert number_option({"rate": "1e-4"}, "rate", 0.1, lowest=0) == 1e-4
    assert number_option({"draws": 3.0}, "draws", 1, lowest=1) == 3


@pytest.mark.parametrize("options", [{"learning_rates": ()}, {"weight_decays": (-1.0,)}, {"epochs": 0}])
def test_a_grid_that_cannot_be_trained_is_refused(options):
    with pytest.raises(InputError, match="rates > 0"):
        fit_sgd_probe(labeled_features(20, 0), **options)
