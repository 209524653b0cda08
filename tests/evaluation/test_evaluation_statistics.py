import itertools

import pytest
import torch
from scipy import stats

from mmcon.errors import InputError
from mmcon.evaluation.statistics import (
    bootstrap,
    classify,
    mcnemar,
    paired_permutation,
    t_interval,
    wilson,
)


def test_wilson_by_its_formula():
    n, p, z = 50, 0.8, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    interval = wilson(40, 50)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert str(wilson(1738, 2000)) == "0.869 [0.854, 0.883]"


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(InputError, match=f"successes={successes}, n={n}"):
        wilson(successes, n)


def test_bootstrap_agrees_with_the_normal_interval_and_repeats():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = bootstrap(values, draws=1500)
    half = 1.96 * float(values.std()) / 20
    assert interval.low == pytest.approx(float(values.mean()) - half, abs=0.015)
    assert interval.high == pytest.approx(float(values.mean()) + half, abs=0.015)
    assert bootstrap(values, draws=1500) == interval
    assert bootstrap(values, draws=1500, seed=1) != interval


def test_bootstrap_over_groups_is_wider_where_items_of_a_group_are_alike():
    groups = torch.arange(20).repeat_interleave(50)
    values = torch.randn(20, generator=torch.Generator().manual_seed(1))[groups]
    by_item, by_group = bootstrap(values), bootstrap(values, groups=groups)
    assert by_group.value == pytest.approx(by_item.value)
    assert by_group.n == 20
    # Fifty copies of each value carry no more than one does: the interval is √50 as wide.
    ratio = (by_group.high - by_group.low) / (by_item.high - by_item.low)
    assert ratio == pytest.approx(50**0.5, rel=0.15)


def test_bootstrap_refuses_a_single_group():
    with pytest.raises(InputError, match="two groups"):
        bootstrap(torch.ones(3), groups=torch.zeros(3, dtype=torch.long))


def test_t_interval_against_scipy():
    values = [0.86, 0.871, 0.855, 0.869]
    low, high = stats.t.interval(0.9, 3, loc=sum(values) / 4, scale=stats.sem(values))
    interval = t_interval(values, level=0.9)
    assert (interval.low, interval.high, interval.n) == (pytest.approx(low), pytest.approx(high), 4)
    with pytest.raises(InputError, match="two runs"):
        t_interval([0.5])


def test_mcnemar_by_hand():
    first = torch.tensor([True] * 9 + [False] * 3 + [True] * 8)
    second = torch.tensor([False] * 9 + [True] * 3 + [True] * 8)
    # 9 against 3 of 12 discordant items: 2 · P(X <= 3), X ~ Binomial(12, ½) = 2 · (1 + 12 + 66 + 220) / 4096.
    test = mcnemar(first, second)
    assert test.p_value == pytest.approx(2 * 299 / 4096)
    assert test.difference == pytest.approx(6 / 20)
    assert mcnemar(first, first).p_value == 1.0


def test_permutation_counts_all_exchanges_of_a_small_set():
    first, second = torch.tensor([0.9, 0.8, 0.7, 0.95, 0.3]), torch.tensor([0.5, 0.7, 0.75, 0.6, 0.3])
    difference = (first.double() - second.double()).tolist()
    signed = [
        abs(sum(s * d for s, d in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = sum(s >= abs(sum(difference)) - 1e-9 for s in signed) / 32
    assert paired_permutation(first, second).p_value == pytest.approx(expected)


def test_permutation_against_scipy():
    g = torch.Generator().manual_seed(2)
    first = torch.randn(60, generator=g, dtype=torch.float64) + 0.25
    second = torch.randn(60, generator=g, dtype=torch.float64)
    theirs = stats.permutation_test(
        (first.numpy(), second.numpy()),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=0,
    )
    ours = paired_permutation(first, second, draws=20_000)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.015)
    assert ours.difference == pytest.approx(theirs.statistic)


def test_permutation_of_truth_values_agrees_with_mcnemar():
    first = torch.tensor([True] * 9 + [False] * 3 + [True] * 8)
    second = torch.tensor([False] * 9 + [True] * 3 + [True] * 8)
    assert paired_permutation(first, second).p_value == pytest.approx(mcnemar(first, second).p_value)


def test_permutation_by_groups_exchanges_whole_groups():
    groups = torch.arange(4).repeat_interleave(100)
    # All 400 items agree, but there are four units: the least two-sided p is 2 / 2⁴.
    assert paired_permutation(torch.ones(400), torch.zeros(400), groups=groups).p_value == pytest.approx(2 / 16)


def test_random_permutations_count_the_observed_one():
    # 200 units that all differ by 1: of 99 random exchanges none reaches the observed sum, at 2 / 2²⁰⁰ each.
    # The observed one is counted among the 100: p = (0 + 1) / (99 + 1).
    assert paired_permutation(torch.ones(200), torch.zeros(200), draws=99).p_value == pytest.approx(1 / 100, rel=1e-9)


def test_permutation_under_no_difference_is_even():
    """Under the null, p is below .2 about one time in five."""
    g = torch.Generator().manual_seed(3)
    below = [
        paired_permutation(torch.randn(30, generator=g), torch.randn(30, generator=g), draws=200).p_value < 0.2
        for _ in range(300)
    ]
    assert 0.13 < sum(below) / 300 < 0.27


def test_classify_by_hand():
    scores = torch.tensor([[3.0, 1, 2], [1, 3, 2], [2, 2, 1]])
    result = classify(scores, torch.tensor([10, 30, 20]), torch.tensor([10, 20, 30]))
    # Right; wrong; a tie of the first two classes, which goes to the first.
    assert result.correct.tolist() == [True, False, False]
    assert result.predicted.tolist() == [10, 20, 10]
    assert result.top1 == pytest.approx(1 / 3)
    assert result.top5 == 1.0
    assert result.per_class == {10: 1.0, 20: 0.0, 30: 0.0}
    assert result.interval().n == 3


def test_classify_refuses_a_class_that_was_never_trained():
    with pytest.raises(InputError, match=r"others: \[7\]"):
        classify(torch.zeros(2, 2), torch.tensor([0, 7]), torch.tensor([0, 1]))
