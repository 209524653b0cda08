"""Pairs across groups have one weight, and an affinity of reordered rows has the weights of these rows."""

import pytest
import torch

from mmcon.affinity import (
    CandidateWeights,
    Dense,
    LabelKernel,
    MultiLabel,
    SameLabel,
    SameSample,
    SpanOverlap,
    TimeKernel,
    coarser,
)
from mmcon.affinity.groups import Groups

N = 12
LABELS, SAMPLES, TIMES = torch.arange(N) % 3, torch.arange(N) // 2, torch.linspace(0, 3, N)
KERNEL = TimeKernel(TIMES, group=SAMPLES, width_seconds=1.0)
NESTED = SameSample(SAMPLES) + 0.5 * SameLabel(SAMPLES // 2)
GROUPED = {
    "labels": SameLabel(LABELS),
    "other candidates": SameLabel(LABELS[:5], LABELS),
    "times": KERNEL,
    "spans": SpanOverlap(TIMES, TIMES + 1, group=LABELS),
    "scaled": 0.3 * SameLabel(LABELS),
    "complement": ~SameLabel(LABELS),
    "product": SameLabel(LABELS) * Dense(torch.rand(N, N, generator=torch.Generator().manual_seed(0))),
    "nested sum": NESTED,
}
OTHERS = {
    "kernel": LabelKernel(TIMES, width=1.0),
    "several labels": MultiLabel(torch.eye(N)),
    "sum of crossed groups": SameSample(SAMPLES) + SameLabel(LABELS),
    "candidates": CandidateWeights(torch.arange(N) > 3, anchors=N),
}


@pytest.mark.parametrize("name", list(GROUPED))
def test_pairs_across_groups_have_one_weight(name):
    groups, weights = GROUPED[name].groups(), GROUPED[name].dense()
    across = groups.rows[:, None] != groups.columns
    assert across.any()
    torch.testing.assert_close(weights[across], torch.full_like(weights[across], groups.across))


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_affinities_have_no_groups(name):
    assert OTHERS[name].groups() is None


@pytest.mark.parametrize("name", [*GROUPED, *OTHERS])
def test_reordered_rows_have_their_weights(name):
    affinity = {**GROUPED, **OTHERS}[name]
    (a, c), g = affinity.shape, torch.Generator().manual_seed(1)
    rows, columns = torch.randperm(a, generator=g), torch.randperm(c, generator=g)
    torch.testing.assert_close(affinity.reordered(rows, columns).dense(), affinity.dense()[rows][:, columns])
    if a == c:
        same = affinity.reordered(rows, rows)
        assert same.symmetric == affinity.symmetric
        torch.testing.assert_close(same.dense(), affinity.dense()[rows][:, rows])


def test_coarser_groups_contain_the_others():
    fine, coarse, crossed = (Groups(x, x) for x in (SAMPLES, SAMPLES // 2, LABELS))
    assert coarser(fine, coarse) is coarse
    assert coarser(coarse, fine) is coarse
    assert coarser(coarse, crossed) is None
    assert coarser(fine, None) is None
