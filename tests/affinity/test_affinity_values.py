"""Weights with a known value, derived by hand from each equation."""

import math

import pytest
import torch

from mmcon.affinity import Dense, Hierarchy, LabelKernel, MixedLabel, MultiLabel, SameLabel, SideFeatures
from mmcon.affinity.factors import ClassFactor
from mmcon.batch import as_column
from mmcon.errors import InputError


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # Distances over a width of 2 are 0, 1/2, 1 and 3/2.
        ("gaussian", [1.0, math.exp(-1 / 8), math.exp(-1 / 2), math.exp(-9 / 8)]),
        ("exponential", [1.0, math.exp(-1 / 2), math.exp(-1), math.exp(-3 / 2)]),
        ("linear", [1.0, 0.5, 0.0, 0.0]),
        ("sigmoid", [2 / (1 + math.exp(x)) for x in (0, 0.5, 1, 1.5)]),
        ("step", [1.0, 1.0, 1.0, 0.0]),
    ],
)
def test_kernels_of_numbers(kernel, expected):
    weights = LabelKernel(torch.tensor([0.0, 1.0, 2.0, 3.0]), width=2.0, kernel=kernel).dense()
    assert weights[0].tolist() == pytest.approx(expected, abs=1e-7)
    assert torch.equal(weights, weights.T)


def test_a_floor_sets_lower_weights_to_zero_and_keeps_the_floor_itself():
    labels = torch.tensor([0.0, 1.0, 2.0])
    kernel = LabelKernel(labels, width=2.0, kernel="linear", floor=0.5)
    assert kernel.dense()[0].tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(InputError, match="a floor in"):
        LabelKernel(labels, width=2.0, floor=1.0)


def test_a_kernel_of_infinite_support_has_no_negatives_unless_there_is_a_floor():
    labels, side = torch.arange(3.0), torch.eye(3)
    assert LabelKernel(labels, width=1.0).never_zero
    assert SideFeatures(side).never_zero
    assert not LabelKernel(labels, width=1.0, floor=0.1).never_zero
    assert not SideFeatures(side, floor=0.1).never_zero
    assert not SideFeatures(side, kernel="half").never_zero


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # Cosines of the first row with the four directions are 1, 0, -1 and √½.
        ("softmax", [1.0, math.exp(-2), math.exp(-4), math.exp((math.sqrt(0.5) - 1) / 0.5)]),
        ("half", [1.0, 0.5, 0.0, math.sqrt(0.5) / 2 + 0.5]),
        ("cosine", [1.0, 0.0, 0.0, math.sqrt(0.5)]),
    ],
)
def test_side_features(kernel, expected):
    side = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    weights = SideFeatures(side, kernel=kernel, temperature=0.5).dense()
    assert weights[0].tolist() == pytest.approx(expected, abs=1e-6)
    floored = SideFeatures(side, kernel="half", floor=0.6).dense()
    assert floored[0].tolist() == pytest.approx([1.0, 0.0, 0.0, math.sqrt(0.5) / 2 + 0.5], abs=1e-6)


def test_measures_of_several_labels():
    targets = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]])
    # Of the first two rows one label is shared; their sets have 2 and 3 labels, 4 in the union.
    values = {name: MultiLabel(targets, measure=name).dense()[0, 1].item() for name in ("jaccard", "cosine")}
    assert values == pytest.approx({"jaccard": 1 / 4, "cosine": 1 / math.sqrt(6)})
    assert MultiLabel(targets, measure="distribution").dense()[0, 1].item() == pytest.approx(1 / 6)


def test_jaccard_weights_of_empty_sets_are_zero():
    assert MultiLabel(torch.zeros(2, 3), measure="jaccard").dense().tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_class_table_counts_positives_where_its_weight_is_above_zero():
    table = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    factor = ClassFactor(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1, 2, 2]), 3, table)
    # Class 0 has weight with classes 0 and 1, which have 2 and 1 candidates; class 2 has none.
    assert factor.positive_counts(torch.arange(3)).tolist() == [3, 3, 0]


def test_the_weights_of_a_hierarchy_follow_the_depth_of_the_common_ancestor():
    paths = torch.tensor([[0, 0], [0, 1], [1, 2]])  # group and class of each class
    table = Hierarchy.table(paths, [0.0, 0.25, 1.0])
    weights = Hierarchy(torch.tensor([0, 1, 2]), table=table).dense()
    assert weights.tolist() == [[1.0, 0.25, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_given_weights_keep_their_dtype_and_receive_their_gradient():
    weights = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    affinity = Dense(weights)
    assert affinity.dense().dtype == torch.float64
    assert list(affinity.parameters()) == [weights]
    assert list(Dense(weights.detach()).parameters()) == []
    assert Dense(torch.tensor([[0, 1], [1, 0]])).dense().dtype == torch.get_default_dtype()


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_a_scale_is_finite_and_not_negative(scale):
    with pytest.raises(InputError, match="a finite scale >= 0"):
        Dense(torch.eye(2)) * scale


def test_a_hierarchy_takes_a_batch_of_one_class():
    table = Hierarchy.table(torch.tensor([[0], [1]]), [0.0, 1.0])
    assert Hierarchy(torch.tensor([1, 1]), table=table).dense().tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("affinity", ["several labels", "one label"])
def test_row_sums_of_a_multiple_leave_self_out(affinity):
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    single = MultiLabel(targets, measure="cosine") if affinity == "several labels" else SameLabel(labels)
    sums, valid = (single * 3.0).row_sums(torch.arange(3))
    dense = 3 * single.dense().double()  # row sums are float64
    assert torch.allclose(sums, dense.sum(1) - dense.diagonal(), atol=1e-6)
    assert valid.tolist() == [True, True, False]


def test_given_weights_are_symmetric_only_where_candidates_are_the_anchors():
    weights, rows = torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([0, 1])
    assert Dense(weights).symmetric
    assert Dense(weights, rows).symmetric
    assert not Dense(weights, rows, torch.tensor([1, 0])).symmetric
    assert not Dense(torch.tensor([[1.0, 0.5], [0.2, 1.0]])).symmetric


def test_labels_that_are_equal_as_floats_are_different_classes():
    assert SameLabel(torch.tensor([2**24, 2**24 + 1])).dense().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("temperature", [0.025, 0.03])
def test_opposite_side_features_reach_zero_where_they_say_so(temperature):
    weights = SideFeatures(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), kernel="softmax", temperature=temperature)
    assert weights.never_zero == (float(weights.dense()[0, 1]) > 0)


def test_weights_are_made_under_another_default_device():
    with torch.device("meta"):
        weights = LabelKernel(torch.tensor([0.0, 1.0], device="cpu"), width=1.0, floor=0.1).dense()
    assert weights[0, 1] == pytest.approx(math.exp(-0.5))


def test_a_weight_at_the_floor_stays():
    weights = LabelKernel(torch.tensor([0.0, 1.0, 1.2]), width=2.0, kernel="linear", floor=0.5).dense()
    assert weights[0].tolist() == [1.0, 0.5, 0.0]


def test_whether_a_kernel_reaches_zero_is_decided_at_the_precision_of_the_labels():
    """Times in seconds since 1970 are a minute apart: float32 holds every 128th second, and would see no distance."""
    times = torch.tensor([2.0**30, 2.0**30 + 60], dtype=torch.float64)
    assert not LabelKernel(times, width=1.0).never_zero
    assert LabelKernel(times, width=10.0).never_zero


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0, 1], [1, 0], [0.5, 1.5]), r"a share from 0 to 1.*torch.float32 of shape \(2,\), from 0.5 to 1.5"),
        (([0, 1], [1, 0], [0, 1]), r"a share from 0 to 1.*torch.int64 of shape \(2,\), from 0 to 1"),
        (([0, 1], [0.5, 1.0], [0.5, 1.0]), r"integers, one a row; got torch.float32 of shape \(2,\)\."),
        ((torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).long()), r"torch.int64 of shape \(0,\)\."),
    ],
)
def test_columns_of_mixed_labels_that_do_not_fit_are_named_with_their_range(columns, message):
    with pytest.raises(InputError, match=message):
        MixedLabel(*(as_column("test", column) for column in columns))


def test_weights_without_values_are_not_known_to_be_symmetric():
    labels, table = torch.zeros(3, dtype=torch.int64, device="meta"), torch.eye(2, device="meta")
    assert not Hierarchy(labels, table=table).symmetric
    assert Hierarchy(torch.tensor([0, 1]), table=torch.eye(2)).symmetric
