"""What the loss takes and refuses: features, temperatures, broken rows, and weights in the dtype of the rows."""

import math

import numpy as np
import pytest
import torch
from loss_cases import D, draw, unit
from pytorch_metric_learning.losses import SupConLoss as TheirSupCon

from mmcon.affinity import Dense, LabelKernel, MixedLabel, SideFeatures, TimeKernel
from mmcon.errors import InputError
from mmcon.losses import LearnableTemperature, SupConLoss, weighted_supcon

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_one_view_may_come_without_its_axis():
    rows = draw(6, 4)
    expected = SupConLoss()(rows[:, None], LABELS)
    torch.testing.assert_close(SupConLoss()(rows, LABELS), expected, rtol=0, atol=0)
    for labels in (LABELS.tolist(), LABELS.numpy(), LABELS.numpy().astype(np.int32)):
        torch.testing.assert_close(SupConLoss()(rows, labels), expected, rtol=0, atol=0)


def test_a_temperature_may_be_a_number_a_tensor_or_learnable():
    rows = draw(6, 4)
    learnable = LearnableTemperature(initial=0.2)
    expected = SupConLoss(0.2)(rows, LABELS)
    torch.testing.assert_close(SupConLoss(torch.tensor(0.2))(rows, LABELS), expected)
    module = SupConLoss(learnable)
    loss = module(rows, LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert learnable.log_logit_scale.grad != 0
    assert list(module.parameters()) == [learnable.log_logit_scale]


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("form one of out, in", {"form": "outer"}),
        ("denominator one of", {"denominator": "some"}),
        ("SupConLoss: expected one temperature above 0", {"temperature": 0.0}),
        ("SupConLoss: expected one temperature above 0", {"temperature": torch.tensor(-1.0)}),
        ("SupConLoss: expected one temperature above 0", {"temperature": torch.ones(2)}),
        ("SupConLoss: expected one temperature above 0", {"temperature": math.nan}),
    ],
)
def test_settings_are_checked_when_the_module_is_built(message, settings):
    with pytest.raises(InputError, match=message):
        SupConLoss(**settings)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_rows_are_refused_by_number(value):
    rows = unit(6, 4)
    rows[3, 1] = value
    with pytest.raises(InputError, match=r"finite anchors; got 1 of 6 rows with NaN or infinity, first at rows \[3\]"):
        weighted_supcon(rows, None, Dense(torch.ones(6, 6)), temperature=0.1)
    with pytest.raises(InputError, match="finite candidates"):
        weighted_supcon(unit(6, 4), rows, Dense(torch.ones(6, 6)), temperature=0.1)
    with pytest.raises(InputError, match=r"rows \[3\]"):
        SupConLoss()(rows, LABELS)
    loss = weighted_supcon(rows, None, Dense(torch.ones(6, 6)), temperature=0.1, check_finite=False)
    assert not torch.isfinite(loss)


def test_finite_rows_whose_sum_overflows_are_accepted():
    rows = torch.full((2, 4), 1e38)
    assert weighted_supcon(rows, None, torch.ones(2, 2), temperature=1e38, similarity=lambda a, c: a[:, :2]).isfinite()


def test_weights_have_the_precision_of_the_rows():
    numbers, seconds = torch.tensor([0, 1, 3, 7]), torch.tensor([0, 2, 3, 5])
    kernel = LabelKernel(numbers, width=3.0).with_dtype(D).dense()
    gap = (numbers[:, None] - numbers).double()
    torch.testing.assert_close(kernel, torch.exp(-((gap / 3) ** 2) / 2), rtol=1e-15, atol=0)
    lag = (seconds[:, None] - seconds).abs().double()
    times = TimeKernel(seconds, group=None, width_seconds=3.0, kernel="exponential").with_dtype(D).dense()
    torch.testing.assert_close(times, torch.exp(-lag / 3), rtol=1e-15, atol=0)
    features = draw(4, 3).float()
    exact = SideFeatures(features.double()).dense()
    torch.testing.assert_close(SideFeatures(features).with_dtype(D).dense(), exact, rtol=1e-15, atol=0)
    # The loss asks for them: rows in float64 have the same loss with features in either dtype.
    losses = [
        weighted_supcon(unit(4, 3), None, SideFeatures(f), temperature=0.1) for f in (features, features.double())
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-14, atol=0)


def test_equal_rows_have_the_loss_of_their_number_in_tiles_too():
    # All similarities are 1/T, so that the loss is log(n - 1), whatever the weights: their sum over a row is 1.
    n, temperature = 1500, 0.05
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (2, n), generator=generator)
    affinity = MixedLabel(labels[0], labels[1], torch.rand(n, generator=generator))
    rows = torch.zeros(n, 4)
    rows[:, 0] = 1
    for backend in ("dense", "tiled"):
        losses = weighted_supcon(rows, None, affinity, temperature=temperature, backend=backend, reduction="none")
        assert (losses - math.log(n - 1)).abs().max() < 3 * torch.finfo(torch.float32).eps / temperature


def test_a_kernel_that_rounds_to_zero_does_not_claim_to_be_above_it():
    near, far = LabelKernel(torch.tensor([0.0, 6.0]), width=1.0), LabelKernel([0, 60], width=1.0)
    assert near.never_zero
    assert far.dense()[0, 1] == 0
    assert not far.never_zero
    assert far.infinite_support  # its negatives are those of the negative weights, whatever the labels of a batch
    assert not SideFeatures(draw(4, 3), temperature=0.005).never_zero
    assert not (far + far).never_zero
    assert (far + near).never_zero


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_an_anchor_whose_weights_round_to_nothing_has_no_positives_and_a_finite_gradient(backend):
    """exp(-14.3² / 2) = 4e-45, the least number of float32, is too small to be divided by."""
    times = torch.tensor([0.0, 0.3, 0.5, 14.8])
    affinity = TimeKernel(times, width_seconds=1.0, group=None)
    assert affinity.row_sums(torch.arange(4))[1].tolist() == [True, True, True, False]
    rows = torch.nn.functional.normalize(draw(4, 8), dim=1).requires_grad_()
    weighted_supcon(rows, None, affinity, temperature=0.1, backend=backend).backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


def test_a_batch_of_one_class_has_a_loss_here_and_none_in_pytorch_metric_learning():
    rows, labels = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
    assert float(SupConLoss()(rows, labels)) == pytest.approx(math.log(2))
    assert float(TheirSupCon()(rows, labels)) == 0
