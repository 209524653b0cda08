"""Affinities: worked examples, tiles against the full matrix, factors against tiles."""

import pytest
import torch

from mmcon.affinity import (
    Computed,
    Dense,
    Hierarchy,
    LabelKernel,
    MixedLabel,
    MultiLabel,
    SameLabel,
    SameSample,
    SideFeatures,
    TimeKernel,
)
from mmcon.batch import Index
from mmcon.errors import InputError

N, C = 40, 30
D = torch.float64


def known(n, seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "label": torch.randint(0, 5, (n,), generator=g),
        "sample": torch.randint(0, n // 2, (n,), generator=g),
        "labels": (torch.rand(n, 6, generator=g) > 0.7).to(D),
        "time": torch.rand(n, generator=g, dtype=D) * 4,
        "group": torch.randint(0, 20, (n,), generator=g),
        "partner_label": torch.randint(0, 5, (n,), generator=g),
        "share": (torch.rand(n, generator=g, dtype=D) * 1.4 - 0.2).clamp(0, 1),
        "side": torch.randn(n, 3, generator=g, dtype=D),
    }


TABLE = torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=D) * (torch.eye(5, dtype=D) + 0.5 > 0.9)
BY_NAME = {
    "SameLabel": SameLabel(),
    "SameSample": SameSample(),
    "MixedLabel": MixedLabel(),
    "MultiLabel": MultiLabel(),
    "MultiLabel cosine": MultiLabel(measure="cosine"),
    "MultiLabel jaccard": MultiLabel(measure="jaccard"),
    "LabelKernel": LabelKernel("time", width=0.5),
    "LabelKernel floor": LabelKernel("time", width=0.5, floor=0.2),
    "LabelKernel of vectors": LabelKernel("side", width=0.5, kernel="step"),
    "TimeKernel": TimeKernel(width_seconds=1.0),
    "TimeKernel linear": TimeKernel(width_seconds=0.3, kernel="linear"),
    "TimeKernel without groups": TimeKernel(width_seconds=0.3, group=None, kernel="exponential"),
    "Hierarchy": Hierarchy(table=TABLE),
    "SideFeatures": SideFeatures(),
    "SideFeatures half": SideFeatures(kernel="half"),
    "SideFeatures cosine": SideFeatures(kernel="cosine", floor=0.3),
    "product": SameLabel() * SameSample(),
    "graded product": SameLabel() * LabelKernel("time", width=0.5),
    "sum": SameSample() + 0.5 * SameLabel(),
    "sum of factors": MultiLabel() + TimeKernel(width_seconds=1.0) * 2.0,
    "complement": ~SameLabel(),
    "function": Computed(lambda rows, columns: (rows["time"][:, None] > columns["time"]).to(D)),
}
every = pytest.mark.parametrize("name", list(BY_NAME))


def bound(name, square):
    rows = Index(known(N, 0))
    return BY_NAME[name].bind(rows, None if square else Index(known(C, 1)))


@every
@pytest.mark.parametrize("square", [True, False])
def test_tiles_are_cut_from_the_whole(name, square):
    affinity = bound(name, square)
    whole = affinity.dense()
    assert whole.shape == affinity.shape == (N, N if square else C)
    assert (whole >= 0).all()
    torch.testing.assert_close(affinity.tile(slice(3, 11), slice(5, 29)), whole[3:11, 5:29])
    if affinity.symmetric:
        torch.testing.assert_close(whole, whole.T)
    if affinity.never_zero:
        assert (whole > 0).all()


@every
@pytest.mark.parametrize("square", [True, False])
def test_row_sums_and_validity_leave_self_out(name, square):
    affinity = bound(name, square)
    own = torch.arange(N) if square else torch.where(torch.arange(N) % 3 == 0, torch.arange(N) % C, -1)
    weights = affinity.dense().to(D).clone()
    here = own >= 0
    weights[torch.arange(N)[here], own[here]] = 0
    sums, valid = affinity.row_sums(own)
    torch.testing.assert_close(sums.to(D), torch.where(valid, weights.sum(1), 0), rtol=1e-6, atol=1e-9)
    assert torch.equal(valid, (weights > 0).any(1))


@every
@pytest.mark.parametrize("square", [True, False])
def test_factors_multiply_as_the_whole_does(name, square):
    affinity = bound(name, square)
    if (factors := affinity.factors()) is None:
        pytest.skip("read by tiles")
    whole = affinity.dense().to(D)
    x = torch.randn(whole.shape[1], 4, generator=torch.Generator().manual_seed(2), dtype=D)
    y = torch.randn(whole.shape[0], 4, generator=torch.Generator().manual_seed(3), dtype=D)
    torch.testing.assert_close(sum(f.matmul(x) for f in factors), whole @ x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sum(f.transpose().matmul(y) for f in factors), whole.T @ y, rtol=1e-6, atol=1e-6)
    i, j = torch.arange(N), torch.arange(N) % whole.shape[1]
    torch.testing.assert_close(sum(f.weights_at(i, j).to(D) for f in factors), whole[i, j], rtol=1e-6, atol=1e-6)


def test_classes_labels_groups_and_trees_have_factors():
    having = {name for name in BY_NAME if bound(name, True).factors() is not None}
    assert {"SameLabel", "SameSample", "MixedLabel", "MultiLabel", "Hierarchy", "product", "sum"} <= having


@pytest.mark.parametrize("square", [True, False])
def test_small_groups_are_a_band(square):
    n, g = 2000, torch.Generator().manual_seed(0)
    times, groups = torch.rand(n, generator=g, dtype=D), torch.randint(0, 300, (n,), generator=g)
    other = None if square else torch.rand(700, generator=g, dtype=D)
    other_groups = None if square else torch.randint(0, 300, (700,), generator=g)
    affinity = TimeKernel(times, other, group=groups, candidate_group=other_groups, width_seconds=0.5, kernel="linear")
    (band,) = affinity.factors()
    whole = affinity.dense()
    x = torch.randn(whole.shape[1], 3, generator=g, dtype=D)
    torch.testing.assert_close(band.matmul(x), whole @ x)
    torch.testing.assert_close(band.transpose().matmul(torch.ones(n, 1, dtype=D))[:, 0], whole.sum(0))
    own = torch.arange(n) % whole.shape[1]
    torch.testing.assert_close(band.weights_at(torch.arange(n), own), whole[torch.arange(n), own])
    whole[torch.arange(n), own] = 0
    sums, valid = affinity.row_sums(own)
    torch.testing.assert_close(sums, whole.sum(1))
    assert torch.equal(valid, (whole > 0).any(1))


def test_a_singleton_is_not_valid_however_sums_round():
    labels = torch.tensor([0, 1, 1])
    targets = torch.tensor([[0.1, 0.7, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert SameLabel(labels).row_sums(torch.arange(3))[1].tolist() == [False, True, True]
    assert MultiLabel(targets).row_sums(torch.arange(3))[1].tolist() == [False, True, True]


def test_time_kernel_worked_example():
    affinity = TimeKernel(
        torch.tensor([0.0, 1.0, 1.0]), group=torch.tensor([0, 0, 1]), width_seconds=2.0, kernel="linear"
    )
    assert affinity.dense().tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_hierarchy_weights_by_common_ancestor():
    # cat and dog share "animal", car stands alone
    table = Hierarchy.table(torch.tensor([[0, 0], [0, 1], [1, 2]]), [0.0, 0.5, 1.0])
    assert table.tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_one_matrix_of_samples_serves_all_views():
    mask = torch.tensor([[1.0, 0.3], [0.0, 1.0]])
    whole = Dense(mask, rows=torch.tensor([0, 1, 0, 1])).dense()
    assert torch.equal(whole, mask.repeat(2, 2))


def test_learnable_widths_receive_gradients_through_composition():
    width = torch.tensor(0.5, dtype=D, requires_grad=True)
    affinity = SameLabel() * TimeKernel(width_seconds=width)
    assert [p is width for p in affinity.parameters()] == [True]
    doubled = affinity.map_parameters(lambda p: 2 * p).bind(Index(known(N, 0)))
    doubled.dense().sum().backward()
    assert width.grad.abs() > 0


BAD = {
    "integers": lambda: SameLabel(torch.tensor([0.5, 1.0])),
    "weights >= 0": lambda: Dense(torch.tensor([[1.0, -1.0]])),
    "finite": lambda: Dense(torch.tensor([[1.0, float("nan")]])),
    "width above 0": lambda: LabelKernel(torch.ones(3), width=0.0),
    "gaussian, exponential": lambda: LabelKernel(torch.ones(3), width=1.0, kernel="guassian"),
    "a column 'time'": lambda: TimeKernel(width_seconds=1.0).bind(Index({"label": torch.zeros(2)})),
    "bind it": lambda: SameLabel().dense(),
    "one shape": lambda: (SameLabel(torch.zeros(2).long()) * SameLabel(torch.zeros(3).long())).shape,
    "class indices": lambda: Hierarchy(torch.tensor([7]), table=TABLE),
    "scale >= 0": lambda: SameLabel() * -1.0,
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_input_gets_one_clear_error(message):
    with pytest.raises(InputError, match=message):
        BAD[message]()
