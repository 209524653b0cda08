"""The baselines of the reference recipe as objectives: large-margin softmax and the triplet loss."""

import pytest
import torch
from loss_cases import unit
from torch import nn

from mmcon.batch import Index, ViewBatch
from mmcon.errors import ConfigError, InputError
from mmcon.losses import max_margin, triplet
from mmcon.objective.baseline_objectives import CrossEntropy, MarginClassifier, TripletLoss
from mmcon.sources.base import TensorSource

N, WIDTH = 6, 4
LABELS = torch.arange(N) % 3


class Tower(nn.Module):
    feature_dim = WIDTH

    def forward(self, views):
        return views


def batch_of(**columns):
    """Two views of each sample, whose rows are in view-major order."""
    views = (unit(N, WIDTH).float(), unit(N, WIDTH, seed=1).float())
    rows = {"sample": torch.arange(N), "label": LABELS, **columns}
    return ViewBatch({"image": views}, {"image": Index({name: of.repeat(2) for name, of in rows.items()})}, step=0)


def test_a_margin_classifier_and_cross_entropy_are_max_margin():
    torch.manual_seed(0)
    network, batch = MarginClassifier(Tower(), 3, margin=2), batch_of()
    objective = CrossEntropy(TensorSource(torch.zeros(N, 1), labels=LABELS))
    expected = max_margin(torch.cat(batch.views["image"]), network.layer.weight, LABELS.repeat(2), margin=2)
    torch.testing.assert_close(objective(network(batch), batch), expected)
    with pytest.raises(InputError, match="an integer margin of 1 or more"):
        MarginClassifier(Tower(), 3, margin=0)
    with pytest.raises(InputError, match="feature_dim"):
        MarginClassifier(nn.Identity(), 3)


def test_the_triplet_objective_is_the_loss_of_all_rows_in_the_one_space():
    batch = batch_of()
    rows = torch.cat(batch.views["image"])
    expected = triplet(rows, LABELS.repeat(2), margin=0.5)
    assert expected > 0
    torch.testing.assert_close(TripletLoss(margin=0.5)({"shared": {"image": rows}}, batch), expected)
    with pytest.raises(InputError, match="one space, one modality"):
        TripletLoss(margin=0.5)({"first": {"image": rows}, "second": {"image": rows}}, batch)
    with pytest.raises(ConfigError, match="margin above 0"):
        TripletLoss(margin=0.0)


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_labels_of_no_class_are_refused(label):
    """-1 was the last class of a margin, and a class of its own in triplets; -100 left its row out of cross-entropy."""
    batch = batch_of(label=torch.tensor([0, 1, 2, 0, 1, label]))
    got = f"labels from 0.*; got labels from {min(label, 0)} to {max(label, 2)}"
    with pytest.raises(InputError, match=got):
        MarginClassifier(Tower(), 3)(batch)
    with pytest.raises(InputError, match=got):
        CrossEntropy(TensorSource(torch.zeros(N, 1), labels=LABELS))(torch.zeros(2 * N, 3), batch)
    if label < 0:
        with pytest.raises(InputError, match=got):
            TripletLoss(margin=0.5)({"shared": {"image": torch.cat(batch.views["image"])}}, batch)


def test_mixed_samples_are_refused_by_losses_of_one_label():
    batch = batch_of(partner_label=LABELS, share=torch.full((N,), 0.5))
    rows = torch.cat(batch.views["image"])
    for refused in (
        lambda: MarginClassifier(Tower(), 3)(batch),
        lambda: TripletLoss(margin=0.5)({"shared": {"image": rows}}, batch),
    ):
        with pytest.raises(InputError, match="--mix none"):
            refused()
