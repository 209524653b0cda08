"""Losses of pytorch-metric-learning under the calls of this package."""

import sys

import pytest
import torch
from loss_cases import draw
from pytorch_metric_learning import losses

from mmcon.errors import ConfigError, InputError, MissingDependencyError
from mmcon.losses.metric_learning import MetricLearningLoss

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])


@pytest.mark.parametrize(("name", "theirs", "options"), [
    ("multi-similarity", losses.MultiSimilarityLoss, {"alpha": 2, "beta": 40}),
    ("circle", losses.CircleLoss, {"m": 0.25, "gamma": 64}),
])  # fmt: skip
def test_the_library_computes_the_loss(name, theirs, options):
    rows = draw(8, 16)
    ours = MetricLearningLoss(name, **options)
    torch.testing.assert_close(ours(rows, LABELS), theirs(**options)(rows, LABELS), rtol=0, atol=0)
    torch.testing.assert_close(ours(rows, LABELS.tolist()), ours(rows, LABELS.numpy()), rtol=0, atol=0)


def test_views_of_a_sample_have_its_label():
    features = draw(8, 2, 16)
    expected = losses.MultiSimilarityLoss()(torch.cat([features[:, 0], features[:, 1]]), LABELS.repeat(2))
    torch.testing.assert_close(MetricLearningLoss("multi-similarity")(features, LABELS), expected, rtol=0, atol=0)


def test_proxies_are_parameters():
    loss = MetricLearningLoss("proxy-anchor", num_classes=4, embedding_size=16)
    rows = draw(8, 16).float().requires_grad_()
    loss(rows, LABELS).backward()
    assert [tuple(p.shape) for p in loss.parameters()] == [(4, 16)]
    assert all(x.grad is not None and bool(x.grad.abs().sum() > 0) for x in (rows, *loss.parameters()))


def test_half_precision_is_computed_in_float32():
    rows = draw(8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = MetricLearningLoss("circle")(rows.bfloat16(), LABELS)
    torch.testing.assert_close(half, MetricLearningLoss("circle")(rows.bfloat16().float(), LABELS), rtol=0, atol=0)


BAD = {
    "one of multi-similarity, circle": (InputError, lambda: MetricLearningLoss("triplet")),
    "did you mean 'gamma'": (ConfigError, lambda: MetricLearningLoss("circle", gama=3)),
    r"\['num_classes', 'embedding_size'\]": (InputError, lambda: MetricLearningLoss("proxy-anchor")),
    "8 labels": (InputError, lambda: MetricLearningLoss("circle")(draw(8, 4), LABELS[:3])),
    "integers, one a row": (InputError, lambda: MetricLearningLoss("circle")(draw(8, 4), LABELS / 2)),
    "finite features": (InputError, lambda: MetricLearningLoss("circle")(draw(8, 4) / 0, LABELS)),
    "features `b v d`": (InputError, lambda: MetricLearningLoss("circle")(draw(8), LABELS)),
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_input_gets_one_clear_error(message):
    error, call = BAD[message]
    with pytest.raises(error, match=message):
        call()


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(MissingDependencyError, match=r"mmcon\[metric-learning\]"):
        MetricLearningLoss("circle")
