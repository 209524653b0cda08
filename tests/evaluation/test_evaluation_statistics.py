import itertools

import pytest
import torch
from scipy import stats

from mmcon.errors import InputError
from mmcon.evaluation import statistics
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


def test_bootstrap_against_scipy():
    """The ends are quantiles of random resamples, whose error with 20,000 of them is about a fiftieth of the width."""
    values = torch.rand(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64).square()
    ours = bootstrap(values, draws=20_000, level=0.9)
    options = {"n_resamples": 20_000, "confidence_level": 0.9, "method": "percentile", "vectorized": True, "rng": 0}
    theirs = stats.bootstrap((values.numpy(),), lambda x, axis: x.mean(axis), **options).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


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


# --- what a wrong operator or constant would change -------------------------------------------------------------------


def test_defaults_are_as_documented():
    values = torch.randn(30, generator=torch.Generator().manual_seed(1))
    assert bootstrap(values) == bootstrap(values, level=0.95, draws=2000, seed=0)
    assert bootstrap(values) not in (bootstrap(values, draws=1999), bootstrap(values, draws=2001))
    first, second = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    assert paired_permutation(first, second) == paired_permutation(first, second, draws=10_000, seed=0)
    assert paired_permutation(first, second) != paired_permutation(first, second, seed=1)
    others = [paired_permutation(first, second, draws=draws).p_value for draws in (9_999, 10_001)]
    assert paired_permutation(first, second).p_value not in others
    assert t_interval([1.0, 2.0, 4.0]) == t_interval([1.0, 2.0, 4.0], level=0.95)
    assert wilson(3, 9) == wilson(3, 9, level=0.95)
    assert wilson(3, 9).level == 0.95
    right = classify(torch.eye(3), torch.arange(3), torch.arange(3))
    assert right.interval() == wilson(3, 3)
    assert right.interval(level=0.5) == wilson(3, 3, level=0.5)


def test_wilson_takes_none_and_all():
    assert wilson(0, 4).value == 0
    assert wilson(4, 4).value == 1
    assert wilson(1, 4).value == 0.25


def test_bootstrap_ends_are_the_quantiles_of_the_level():
    """Of two items 0 and 1, a resample's mean is 0, ½ or 1 with probability ¼, ½, ¼."""
    values = torch.tensor([0.0, 1.0])
    narrow, wide = bootstrap(values, level=0.4), bootstrap(values, level=0.9)
    assert (narrow.low, narrow.value, narrow.high) == (0.5, 0.5, 0.5)
    assert (wide.low, wide.high, wide.level, wide.n) == (0, 1, 0.9, 2)


def test_bootstrap_of_groups_weighs_items_not_groups():
    """Group 0 has three items, group 1 one: the mean over items is ¾, that over groups would be ½."""
    interval = bootstrap(torch.tensor([1.0, 1.0, 1.0, 0.0]), groups=torch.tensor([7, 7, 7, 9]), level=0.4)
    assert (interval.value, interval.low, interval.high) == (0.75, 0.75, 0.75)


def test_intervals_do_not_depend_on_the_size_of_blocks(monkeypatch):
    values = torch.arange(10.0)
    first, second = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    whole = bootstrap(values, draws=100), paired_permutation(first, second, draws=100)
    for size in (1, 70):
        monkeypatch.setattr(statistics, "_BLOCK_SIZE", size)
        assert (bootstrap(values, draws=100), paired_permutation(first, second, draws=100)) == whole


def test_t_interval_by_hand():
    """Of 1, 2 and 3: mean 2, deviation 1; the 97.5 % quantile of t with two degrees of freedom is 4.3027."""
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.value == 2
    assert interval.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert interval.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert t_interval([1.0, 2.0]).n == 2  # two runs are enough


def test_t_interval_of_shares_ends_at_0_and_1():
    assert t_interval([0.5, 0.75]).high > 1
    assert t_interval([0.5, 0.75]).low < 0
    of_shares = t_interval([0.5, 0.75], shares=True)
    assert (of_shares.value, of_shares.low, of_shares.high) == (0.625, 0.0, 1.0)
    assert t_interval([0.5, 0.51], shares=True) == t_interval([0.5, 0.51])


def test_mcnemar_counts_items_and_discordant_pairs():
    one = torch.tensor([True, False])
    test = mcnemar(one, torch.tensor([False, False]))
    assert (test.difference, test.p_value, test.n) == (0.5, 1.0, 2)
    assert mcnemar(torch.tensor([False, False]), one).difference == -0.5


def test_permutation_is_exact_up_to_the_number_of_draws():
    """Four equal differences: 2 of 2⁴ exchanges are as extreme. With fewer draws, random exchanges and the observed."""
    first, second = torch.ones(4), torch.zeros(4)
    assert paired_permutation(first, second, draws=16).p_value == 2 / 16
    random = paired_permutation(first, second, draws=15).p_value * 16
    assert random == pytest.approx(round(random))
    assert 1 <= random <= 7


def test_a_random_permutation_test_counts_the_observed_exchange():
    """Of 2¹⁰⁰ exchanges of equal differences only two are as extreme: none is drawn, and p is 1 / (draws + 1)."""
    test = paired_permutation(torch.ones(100), torch.zeros(100), draws=99)
    assert (test.p_value, test.difference, test.n) == (0.01, 1.0, 100)


def test_permutation_of_equal_systems():
    same = paired_permutation(torch.ones(5), torch.ones(5))
    assert (same.p_value, same.difference, same.n) == (1.0, 0.0, 5)


def test_permutation_ties_by_rounding_count_as_extreme():
    """.1 + .2 and .3 differ by rounding: exchanging both gives the same sum, whichever way it is added up."""
    first = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    test = paired_permutation(first, torch.zeros(3, dtype=torch.float64))
    assert test.p_value == 1.0  # the sum is 0 but for rounding: every exchange is as extreme


def test_permutation_by_groups_averages_over_items():
    groups = torch.tensor([0, 0, 0, 1])
    test = paired_permutation(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.zeros(4), groups=groups)
    assert (test.difference, test.n) == (0.75, 2)


def test_top5_counts_the_fifth_and_not_the_sixth():
    scores = torch.arange(7.0).flip(0).repeat(7, 1)
    result = classify(scores, torch.arange(7), torch.arange(7))
    assert result.top5 == pytest.approx(5 / 7)
    assert result.top1 == pytest.approx(1 / 7)


def test_a_label_above_all_classes_and_no_items_are_refused():
    with pytest.raises(InputError, match=r"among the 2 of the training set; got others: \[5\]"):
        classify(torch.zeros(1, 2), torch.tensor([5]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"others: \[2, 3, 4, 5, 6\]\."):
        classify(torch.zeros(6, 2), torch.arange(2, 8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="at least one item"):
        classify(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="at least one value"):
        bootstrap(torch.zeros(0))
