"""Losses outside the family, baselines, diagnostics and the learnable temperature."""

import math

import pytest
import torch
from loss_cases import D, draw, unit

from mmcon.affinity import SameLabel
from mmcon.errors import InputError
from mmcon.losses import (
    HardNegatives,
    LearnableTemperature,
    cross_entropy,
    diagnose,
    max_margin,
    rank_n_contrast,
    siglip,
    triplet,
    weighted_supcon,
)


def ranked_by_loops(z, y, temperature):
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        s = {j: -float((z[i] - z[j]).norm()) / temperature for j in others}
        d = {j: abs(float(y[i] - y[j])) for j in others}
        terms = [s[j] - math.log(sum(math.exp(s[k]) for k in others if d[k] >= d[j])) for j in others]
        losses.append(-sum(terms) / len(terms))
    return torch.tensor(losses, dtype=D)


def test_rank_n_contrast_equals_the_double_loop_with_ties():
    z, y = draw(9, 4), torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 5.0, 7.0, 7.0], dtype=D)
    ours = rank_n_contrast(z, y, temperature=0.5, reduction="none")
    torch.testing.assert_close(ours, ranked_by_loops(z, y, 0.5), rtol=1e-12, atol=1e-12)
    temperature = torch.tensor(0.5, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z, t: rank_n_contrast(z, y, temperature=t), [z.clone().requires_grad_(), temperature], fast_mode=True
    )


def test_rank_n_contrast_against_other_candidates_leaves_self_out():
    z, y = draw(9, 4), torch.arange(9).to(D)
    rows = {"temperature": 0.5, "candidates": z.clone(), "candidate_labels": y, "reduction": "none"}
    ours = rank_n_contrast(z[3:6], y[3:6], self_index=torch.arange(3, 6), **rows)
    torch.testing.assert_close(ours, ranked_by_loops(z, y, 0.5)[3:6])


def test_siglip_equals_the_double_loop():
    a, c, labels = unit(5, 4), unit(7, 4, seed=1), torch.arange(7) % 5
    ours = siglip(a, c, SameLabel(torch.arange(5), labels), temperature=0.1, bias=-3.0, reduction="none")
    for i in range(5):
        sign = [1 if int(labels[j]) == i else -1 for j in range(7)]
        terms = [math.log(1 + math.exp(-sign[j] * (float(a[i] @ c[j]) / 0.1 - 3.0))) for j in range(7)]
        assert float(ours[i]) == pytest.approx(sum(terms), rel=1e-12)
    inputs = [x.clone().requires_grad_() for x in (a, c, torch.tensor(0.1, dtype=D), torch.tensor(-3.0, dtype=D))]
    affinity = SameLabel(torch.arange(5), labels)
    assert torch.autograd.gradcheck(
        lambda a, c, t, b: siglip(a, c, affinity, temperature=t, bias=b), inputs, fast_mode=True
    )


def test_max_margin_with_margin_one_is_cross_entropy_and_grows_with_it():
    x, w, y = draw(6, 4), draw(3, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(max_margin(x, w, y, margin=1), cross_entropy(x @ w.T, y))
    losses = [float(max_margin(x, w, y, margin=m)) for m in (1, 2, 4)]
    assert losses == sorted(losses)
    # One row at θ = 120°, margin 2 and so k = 1: ψ = -cos 240° - 2 = -1.5, against the other class's logit of 0.
    x, w = torch.tensor([[1.0, 0.0]], dtype=D), torch.tensor([[-0.5, 3**0.5 / 2], [0.0, 1.0]], dtype=D)
    expected = math.log(1 + math.exp(1.5))
    assert float(max_margin(x, w, torch.tensor([0]), margin=2)) == pytest.approx(expected)


def test_triplet_worked_example():
    z = torch.tensor([[0.0], [1.0], [3.0], [3.5]], dtype=D)
    y = torch.tensor([0, 0, 1, 1])
    # hard: 1 - 3 + 2, 1 - 2 + 2, .5 - 2 + 2, .5 - 2.5 + 2
    assert float(triplet(z, y, margin=2.0)) == pytest.approx((0 + 1 + 0.5 + 0) / 4)
    # all, of which the loss is above 0: (1,0,2): 1, (1,0,3): .5, (2,3,1): .5
    assert float(triplet(z, y, margin=2.0, mining="all")) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert float(triplet(z, torch.zeros(4).long(), margin=2.0)) == 0


def test_distances_of_triplets_are_exact_where_rows_are_near_or_equal():
    z = (1 + 1e-4 * draw(6, 4)).float()
    z = torch.cat([z, z[:2]]).requires_grad_()
    y = torch.arange(8) % 2
    wide = z.detach().double().requires_grad_()
    loss, expected = triplet(z, y, margin=1e-3), triplet(wide, y, margin=1e-3)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(z.grad.double(), wide.grad, rtol=1e-3, atol=1e-4)
    assert triplet(z.detach().bfloat16(), y, margin=1e-3).isfinite()


def test_diagnostics_of_one_positive_each():
    z, y = unit(8, 6), torch.arange(8) % 4
    found = diagnose(z, None, SameLabel(y), temperature=0.3, independent_negatives=True)
    loss = weighted_supcon(z, None, SameLabel(y), temperature=0.3)
    assert found.valid_anchors == 1
    assert found.positives_per_anchor == 1
    assert found.bound == pytest.approx(math.log(7) - float(loss))
    # With one positive the softmax over positives is 1 there, and the in form has its gradient there all the same.
    assert found.effective_positives_out == pytest.approx(1)
    # Pull and push balance: half of the gradient is on positives.
    assert found.gradient_on_positives == pytest.approx(0.5)
    assert "bound" not in diagnose(z, None, SameLabel(y), temperature=0.3).metrics()
    assert "bound" not in diagnose(z, None, SameLabel(y // 2), temperature=0.3, independent_negatives=True).metrics()


def test_the_out_form_keeps_more_positives_at_work_than_the_in_form():
    centres, y = unit(4, 16), torch.arange(4).repeat(16)
    spread = torch.linspace(0.2, 2.0, 64, dtype=D)[:, None]
    z = torch.nn.functional.normalize(centres[y] + spread * unit(64, 16, seed=1), dim=1)
    found = diagnose(z, None, SameLabel(y), temperature=0.1)
    assert found.effective_positives_out > 1.5 * found.effective_positives_in


def test_diagnostics_without_any_positive_are_finite_or_left_out():
    found = diagnose(unit(5, 4), None, SameLabel(torch.arange(5)), temperature=0.1).metrics()
    assert found == {"valid_anchors": 0.0}


def test_a_temperature_beyond_its_bound_comes_back():
    temperature = LearnableTemperature(initial=0.02, minimum=0.01)
    with torch.no_grad():
        temperature.log_logit_scale.fill_(9.0)
    assert float(temperature().detach()) == pytest.approx(0.01)
    temperature().backward()
    assert float(temperature.log_logit_scale.grad) != 0
    with pytest.raises(InputError, match="minimum <= initial"):
        LearnableTemperature(initial=0.001, minimum=0.01)


def test_the_triplet_loss_averages_over_anchors_with_a_positive_and_a_negative():
    """Of 0, 1 | 3 the last has no positive: (1 - 3 + 3) and (1 - 2 + 3), a mean of 1.5 over two anchors."""
    z = torch.tensor([[0.0], [1.0], [3.0]])
    assert triplet(z, torch.tensor([0, 0, 1]), margin=3.0).item() == 1.5
    assert triplet(z, torch.tensor([0, 0, 0]), margin=3.0).item() == 0
    assert triplet(z, torch.tensor([0, 1, 2]), margin=3.0).item() == 0


def test_labels_without_values_and_no_labels_are_not_read():
    none = torch.zeros(0, dtype=torch.int64)
    assert triplet(torch.zeros(0, 2), none, margin=1.0).item() == 0
    assert cross_entropy(torch.zeros(3, 2, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")).is_meta


@pytest.mark.parametrize("options", [{"class_prior": 1.0}, {"class_prior": -0.1}, {"concentration": -0.5}])
def test_hard_negatives_outside_their_range_are_refused(options):
    assert HardNegatives(concentration=0.0, class_prior=0.0)
    with pytest.raises(InputError, match=r"HardNegatives.*class_prior in \[0, 1\)"):
        HardNegatives(**options)
