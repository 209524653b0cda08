"""Matryoshka: the loss of leading dimensions. On several ranks, with queues and chunks: test_objective_processes.py."""

import pytest
import torch
from loss_cases import unit

from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index
from mmcon.errors import ConfigError
from mmcon.losses import presets, weighted_supcon
from mmcon.objective.objective import Objective

N = 6
TABLE = Index({"sample": torch.arange(N), "label": torch.arange(N) % 2})


def first(rows, dim):
    return torch.nn.functional.normalize(rows[:, :dim], dim=1)


def test_the_loss_is_the_sum_over_leading_dimensions_each_at_length_one():
    z = unit(N, 8).requires_grad_()
    objective = Objective(affinity=SameLabel(), temperature=0.2, truncate=(2, 5), truncate_weights=(0.5, 3.0))
    parts = [z, first(z, 2), first(z, 5)]
    losses = [weighted_supcon(part, None, SameLabel(TABLE["label"]), temperature=0.2) for part in parts]
    expected = losses[0] + 0.5 * losses[1] + 3 * losses[2]
    loss = objective(z, TABLE)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, z)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    logged = objective.last.metrics()
    assert [logged[f"loss/space/rows{suffix}"] for suffix in ("", "[:2]", "[:5]")] == pytest.approx(
        [part.item() for part in losses]
    )
    assert list(objective.last_rows) == ["space/rows"]  # of all dimensions: what warns of a collapse


def test_both_directions_of_two_modalities_are_cut():
    image, text = unit(N, 4), unit(N, 4, seed=1)
    tables, same = {"image": TABLE, "text": TABLE}, SameSample(TABLE["sample"], TABLE["sample"])
    objective = Objective(**presets.clip(temperature=0.2), truncate=[3])
    expected = sum(
        weighted_supcon(first(a, dim), first(c, dim), same, temperature=0.2) / 2
        for dim in (3, 4)
        for a, c in ((image, text), (text, image))
    )
    torch.testing.assert_close(objective({"joint": {"image": image, "text": text}}, tables), expected)


def test_half_precision_is_normalized_in_float32():
    z = unit(N, 8).bfloat16()
    whole, both = (Objective(affinity=SameLabel(), temperature=0.2, truncate=dims)(z, TABLE) for dims in ((), (4,)))
    expected = weighted_supcon(first(z.float(), 4), None, SameLabel(TABLE["label"]), temperature=0.2)
    torch.testing.assert_close(both - whole, expected)


@pytest.mark.parametrize("zero", [0.0, 1e-9])
def test_a_row_without_its_leading_dimensions_has_no_gradient_of_them(zero):
    z = unit(N, 8)
    z[2] = torch.tensor([zero] * 4 + [0.5] * 4)
    settings = {"affinity": SameLabel(), "temperature": 0.2}
    gradients = []
    for dims in ((), (4,)):
        rows = z.clone().requires_grad_()
        gradients.append(torch.autograd.grad(Objective(**settings, truncate=dims)(rows, TABLE), rows)[0])
    assert torch.equal(gradients[1][2], gradients[0][2])  # of all dimensions alone; it was 1e11 here
    assert not torch.equal(gradients[1][3], gradients[0][3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncate": (8,)}, "truncate below 8, the width of space/rows; got 8"),
        ({"truncate": (12,)}, "truncate below 8, the width of space/rows; got 12"),
        ({"truncate": (0, 4)}, "different numbers of dimensions above 0; got \\[0, 4\\]"),
        ({"truncate": (4, 4)}, "different numbers of dimensions above 0"),
        ({"truncate": (4,), "truncate_weights": (1.0, 2.0)}, "a finite number >= 0 for each of 1 in truncate; got"),
        ({"truncate": (4,), "truncate_weights": (-1.0,)}, "a finite number >= 0"),
        ({"truncate": (4,), "similarity": lambda a, c: a @ c.T}, "the dot product; got a similarity"),
    ],
)
def test_dimensions_that_the_rows_lack_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Objective(affinity=SameLabel(), temperature=0.2, **settings)(unit(N, 8), TABLE)
