"""Labels and times as tensors, arrays and lists; texts, and values that are not finite, are refused by name."""

import numpy as np
import pytest
import torch

from mmcon.affinity import LabelKernel, MultiLabel, SameLabel, SideFeatures, TimeKernel
from mmcon.affinity.spans import SpanOverlap
from mmcon.batch import Index, as_column
from mmcon.errors import InputError
from mmcon.losses import SupConLoss, weighted_supcon

NAN, INF = float("nan"), float("inf")
FEATURES = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_supcon_takes_labels_and_masks_of_any_kind(kind):
    loss = SupConLoss()
    expected = loss(FEATURES, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(loss(FEATURES, kind([0, 0, 1, 1])), expected)
    mask = [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    assert torch.allclose(loss(FEATURES, mask=kind(mask)), expected)


@pytest.mark.parametrize("labels", [["a", "a", "b", "b"], np.array(["a", "a", "b", "b"]), "aabb", [0, 0, "b", "b"]])
def test_supcon_refuses_texts_with_the_fix(labels):
    with pytest.raises(InputError, match=r"SupConLoss, labels.*\n.*names\.index"):
        SupConLoss()(FEATURES, labels)


def test_supcon_refuses_fractions_and_a_wrong_number_of_labels():
    with pytest.raises(InputError, match=r"labels\.long"):
        SupConLoss()(FEATURES, [0.0, 0.0, 1.0, 1.0])
    with pytest.raises(InputError, match="4 labels, one a sample; got 3"):
        SupConLoss()(FEATURES, np.array([0, 0, 1]))


def test_affinities_take_arrays_and_lists():
    assert SameLabel([0, 0, 1]).dense().tolist() == SameLabel(np.array([0, 0, 1])).dense().tolist()
    assert SameLabel([0, 0, 1]).dense().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert LabelKernel([0.0, 1.0], width=2.0, kernel="linear").dense().tolist() == [[1.0, 0.5], [0.5, 1.0]]
    assert LabelKernel([0.0, 1.0], width=2.0, kernel="linear").dense().dtype == torch.float32
    assert SameLabel([0, 1], [1, 1, 0]).dense().tolist() == [[0, 0, 1], [1, 1, 0]]
    with pytest.raises(InputError, match=r"SameLabel.*\n.*names\.index"):
        SameLabel(["a", "b"])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "make",
    [
        lambda values: TimeKernel(values, width_seconds=1.0, group=None),
        lambda values: TimeKernel(torch.arange(4.0), values, width_seconds=1.0, group=None),
        lambda values: LabelKernel(values, width=1.0),
        lambda values: SpanOverlap(values, values + 1, group=None),
        lambda values: SideFeatures(values[:, None].expand(4, 3)),
        lambda values: MultiLabel(values[:, None].expand(4, 3)),
    ],
    ids=["times", "candidate times", "labels", "spans", "features", "targets"],
)
def test_values_that_are_not_finite_are_refused(make, bad):
    with pytest.raises(InputError, match=r"1 of 4 rows with NaN or infinity, first at rows \[2\]"):
        make(torch.tensor([0.0, 1.0, bad, 2.0]))


def test_a_time_that_is_not_finite_is_named_by_its_column():
    table = Index({"time": torch.tensor([0.0, NAN]), "group": torch.tensor([1, 1])})
    with pytest.raises(InputError, match="finite values of column 'time'"):
        TimeKernel(width_seconds=1.0).bind(table)
    rows = torch.nn.functional.normalize(FEATURES[:, 0], dim=1)
    with pytest.raises(InputError, match="TimeKernel"):
        weighted_supcon(rows, None, TimeKernel([0.0, 1.0, NAN, 2.0], width_seconds=1.0, group=None), temperature=0.1)


@pytest.mark.parametrize("width", [NAN, INF, 0.0, -1.0])
def test_widths_are_finite_and_above_zero(width):
    with pytest.raises(InputError, match="a finite width above 0"):
        TimeKernel(torch.arange(4.0), width_seconds=width, group=None)


def test_a_wrong_column_is_named_with_those_that_are_there():
    with pytest.raises(InputError, match=r"a column 'tme'; got columns \['group', 'time'\]"):
        TimeKernel("tme", width_seconds=1.0).bind(Index({"time": torch.zeros(2), "group": torch.zeros(2)}))


def test_columns_keep_their_type_and_are_copied_from_arrays():
    array = np.zeros(3, dtype=np.float32)
    column = as_column("test", array)
    column[0] = 1
    assert array[0] == 0
    assert column.dtype == torch.float32
    assert as_column("test", [1, 2]).dtype == torch.int64
    assert as_column("test", [[1, 2], [3, 4]]).shape == (2, 2)
    for odd in ([[1], [2, 3]], [None, 1], object(), {"a": 1}, 3):
        with pytest.raises(InputError, match="numbers in a tensor, an array or a list"):
            as_column("test", odd)
