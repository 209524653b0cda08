"""Few labels: stratified subsets, and the probe's accuracy by their size."""

from pathlib import Path

import pytest
import torch
from evaluation_cases import labeled_features

from mmcon.errors import ConfigError, InputError
from mmcon.evaluation.few_label_curve import few_label_curve
from mmcon.evaluation.probe import fit_probe
from mmcon.sources.base import Subset, TensorSource, channels_of
from mmcon.sources.few_labels import few_labels, stratified_rows
from mmcon.training.config import RunConfig

ROOT = Path(__file__).parents[2]

LABELS = torch.tensor([0] * 30 + [1] * 100 + [2] * 3)


def counts_of(rows):
    return torch.bincount(LABELS[rows], minlength=3).tolist()


def test_a_share_of_every_class_is_rounded_up_and_subsets_are_nested():
    assert counts_of(stratified_rows(LABELS, share=0.1, seed=0)) == [3, 10, 1]
    assert counts_of(stratified_rows(LABELS, share=0.01, seed=0)) == [1, 1, 1]
    assert counts_of(stratified_rows(LABELS, share=1.0, seed=0)) == [30, 100, 3]
    assert counts_of(stratified_rows(LABELS, per_class=5, seed=0)) == [5, 5, 3]
    smaller, larger = (stratified_rows(LABELS, share=share, seed=0).tolist() for share in (0.05, 0.25))
    assert set(smaller) < set(larger)
    assert smaller != stratified_rows(LABELS, share=0.05, seed=1).tolist()


def test_a_share_of_samples_without_labels_is_a_share_of_all():
    source = TensorSource(torch.zeros(40, 1))
    assert len(few_labels(source, share=0.25, seed=0)) == 10
    with pytest.raises(ConfigError, match="--labels-per-class: expected labels"):
        few_labels(source, per_class=2, seed=0)


@pytest.mark.parametrize(
    "budget", [{}, {"share": 0.0}, {"share": 1.5}, {"per_class": 0}, {"per_class": 1, "share": 0.5}]
)
def test_a_budget_that_means_nothing_is_refused(budget):
    with pytest.raises(InputError, match="a fraction in"):
        stratified_rows(LABELS, seed=0, **budget)


def test_more_labels_help_and_all_labels_are_the_probe():
    train, test = labeled_features(300, 0), labeled_features(200, 1)
    result = few_label_curve(train, test, shares=(0.05, 1.0), per_class=(1,), draws=2)
    by_name = {budget.name: budget for budget in result.budgets}
    assert [budget.name for budget in result.budgets] == ["1 a class", "5 %", "100 %"]
    assert by_name["1 a class"].labels == 5
    assert len(by_name["5 %"].top1) == 2
    assert by_name["100 %"].top1 == (fit_probe(train).evaluate(test).top1,)
    assert by_name["1 a class"].mean < by_name["100 %"].mean
    rows = stratified_rows(train.labels, per_class=1, seed=1)
    assert by_name["1 a class"].top1[1] == fit_probe(train.take(rows), l2=0.01).evaluate(test).top1
    assert "100 %" in result.table()
    assert result.to_json()["budgets"]["5 %"]["top1_by_draw"] == list(by_name["5 %"].top1)
    assert result.plot().axes[0].get_xscale() == "log"


def test_every_recipe_can_train_on_few_labels():
    source = TensorSource(torch.zeros(len(LABELS), 1, 2, 2), labels=LABELS)
    assert RunConfig().labeled_subset(source) is source
    few = RunConfig(label_fraction=0.1, seed=4).labeled_subset(source)
    assert torch.equal(few.ids, source.ids[stratified_rows(LABELS, share=0.1, seed=4)])
    # A part of a part still has the channels of its images, and the classes of the whole.
    part = RunConfig(labels_per_class=2).labeled_subset(Subset(source, range(0, 133, 2)))
    assert (channels_of(part), len(part), len(part.classes)) == (1, 6, 3)
    recipes = [path.read_text() for path in (ROOT / "recipes").glob("*.py")]
    loops = [text for text in recipes if "run.batches(" in text]  # the others start the recipes that have a loop
    assert len(loops) >= len(recipes) - 1
    for text in loops:
        assert "config.labeled_subset(" in text, text[:200]
