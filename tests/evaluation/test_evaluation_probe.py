import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import fit_probe, held_out_rows, linear_probe


def blobs(n: int = 600, classes: int = 6, d: int = 12, spread: float = 1.5, seed: int = 0, first_sample: int = 0):
    """Gaussian classes of even size around fixed centres; labels are 0, 10, 20 …"""
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    label = torch.arange(n) % classes
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    index = Index({"sample": first_sample + torch.arange(n), "label": 10 * label})
    return Features(centres[label] + spread * noise, index)


@pytest.mark.parametrize(("l2", "n"), [(1e-1, 600), (1e-3, 600), (1e-1, 90)])  # of few rows, the rows are rotated
def test_solution_is_scikit_learns(l2, n):
    train, test = blobs(n=n), blobs(seed=1)
    theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-10, max_iter=5000).fit(train.values, train.labels)
    ours = fit_probe(train, scaling="none", l2=l2, max_iterations=500)
    torch.testing.assert_close(ours.weight.T, torch.from_numpy(theirs.coef_), atol=1e-3, rtol=0)
    result = ours.evaluate(test)
    assert result.top1 == pytest.approx(theirs.score(test.values, test.labels), abs=0.005)
    assert ours.l2 == l2
    assert ours.held_out == {}


def test_standard_scaling_takes_the_training_sets_statistics():
    train = blobs()
    stretched = Features(train.values * torch.logspace(-3, 3, 12) + 7, train.index)
    plain, scaled = fit_probe(train, l2=0.01), fit_probe(stretched, l2=0.01)
    torch.testing.assert_close(plain.weight, scaled.weight, atol=1e-3, rtol=0)
    unit = fit_probe(train, scaling="unit", l2=0.01)
    torch.testing.assert_close(unit.logits(train.values), unit.logits(train.values * 5))


def test_strength_is_chosen_on_the_training_set_alone():
    # Few samples, many noisy columns: a strong regulariser generalises, a weak one does not.
    train, test = blobs(n=120, d=100, spread=4.0), blobs(n=1200, d=100, spread=4.0, seed=1)
    chosen = fit_probe(train)
    assert chosen.l2 == max(chosen.held_out, key=lambda s: (chosen.held_out[s], s))
    assert chosen.l2 > 1e-6
    weakest = fit_probe(train, l2=1e-6).evaluate(test).top1
    assert chosen.evaluate(test).top1 > weakest


def test_probe_is_the_same_each_time_and_leaves_its_input_alone():
    train = blobs()
    before = train.values.clone()
    a, b = fit_probe(train), fit_probe(train)
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(train.values, before)
    with torch.no_grad():  # an evaluation often runs where gradients are off
        assert torch.equal(fit_probe(train).weight, a.weight)


def test_rows_of_a_sample_stay_together_and_order_does_not_matter():
    train = blobs()
    twice = Features.cat([train, train])
    out = held_out_rows(twice, share=0.2)
    assert torch.equal(out[: len(train)], out[len(train) :])
    assert 0.15 < out.double().mean() < 0.25
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    assert torch.equal(held_out_rows(train.take(order), share=0.2), out[: len(train)][order])
    assert not torch.equal(held_out_rows(train, share=0.2, seed=1), out[: len(train)])


def test_columns_that_never_vary_do_no_harm():
    train = blobs()
    dead = Features(torch.cat([train.values, torch.full((len(train), 3), 0.1)], 1), train.index)
    torch.testing.assert_close(fit_probe(dead, l2=0.01).weight[:12], fit_probe(train, l2=0.01).weight)


def test_labels_and_classes_are_reported_as_given():
    result = linear_probe(blobs(), blobs(seed=1), l2=0.01)
    assert set(result.predicted.tolist()) <= {0, 10, 20, 30, 40, 50}
    assert set(result.per_class) == {0, 10, 20, 30, 40, 50}
    mean = sum(result.per_class.values()) / 6
    assert result.top1 == pytest.approx(mean)  # classes are of even size
    assert result.top1 < result.top5 <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": -1.0}, "l2 >= 0"),
        ({"l2": []}, "one or more l2"),
        ({"scaling": "max"}, "'standard', 'unit' or 'none'"),
        ({"held_out_share": 0.0}, "0 of 600 rows held out"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        fit_probe(blobs(), **options)


def test_bad_data_is_named():
    train = blobs()
    with pytest.raises(InputError, match="two classes; got 1"):
        fit_probe(train.take(train.labels == 10))
    with pytest.raises(InputError, match="width 12; got width 4"):
        linear_probe(train, blobs(d=4), l2=0.1)
    with pytest.raises(InputError, match=r"others: \[50\]"):
        linear_probe(train.take(train.labels < 50), train, l2=0.1)
