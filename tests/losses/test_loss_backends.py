"""Tiles agree with the dense reference on paths of their own: asymmetric weights and learnable kernels."""

import math

import pytest
import torch
from loss_cases import by_loops

from mmcon.affinity import Dense, LabelKernel, SameLabel
from mmcon.losses import LossSettings, presets, weighted_supcon
from mmcon.losses.backends import weight_tiles
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.backends.tiled import tiled_losses
from mmcon.losses.loss_inputs import prepare


def unit_rows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, 8, dtype=torch.float64, generator=generator), dim=1)


def loss_and_gradients(rows, affinity, parameters, backend, **options):
    rows = rows.clone().requires_grad_()
    loss = weighted_supcon(rows, None, affinity, temperature=0.2, backend=backend, **options)
    return [loss.detach(), *torch.autograd.grad(loss, [rows, *parameters])]


@pytest.mark.parametrize("symmetric", [True, False])
def test_several_tiles_of_given_weights(symmetric):
    n = 1500  # three tiles of the symmetric backend
    weights = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = weights * (weights > 0.9)
    affinity = Dense(weights + weights.T if symmetric else weights)
    dense, tiled = (loss_and_gradients(unit_rows(n), affinity, [], name) for name in ("dense", "tiled"))
    for expected, found in zip(dense, tiled, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("row_normalize", [True, False])
def test_a_learnable_width_receives_the_same_gradient_by_tiles(form, row_normalize):
    labels = torch.linspace(0, 3, 40, dtype=torch.float64)
    width = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    affinity = LabelKernel(labels, width=width, floor=0.2)
    options = {"form": form, "row_normalize": row_normalize}
    dense, tiled = (
        loss_and_gradients(unit_rows(40), affinity, [width], name, **options) for name in ("dense", "tiled")
    )
    assert dense[-1] != 0
    for expected, found in zip(dense, tiled, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("denominator", ["one", "negatives", "all"])
def test_a_kernel_above_zero_everywhere_takes_its_negatives_from_their_weights(backend, denominator):
    rows, labels = unit_rows(5), torch.tensor([0.0, 0.3, 1.0, 1.4, 2.0], dtype=torch.float64)
    weight = torch.exp(-((labels[:, None] - labels[None]) ** 2) / 2)
    far = (labels[:, None] - labels[None]).abs() / 2
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        e = {j: math.exp(float(rows[i] @ rows[j]) / 0.2) for j in others}
        push = sum(float(far[i, j]) * e[j] for j in others)
        for j in others:
            below = push + {"one": e[j], "negatives": 0.0, "all": sum(e.values())}[denominator]
            share = float(weight[i, j]) / sum(float(weight[i, k]) for k in others)
            expected -= share * math.log(e[j] / below) / 5
    found = weighted_supcon(
        rows,
        None,
        LabelKernel(labels, width=1.0),
        temperature=0.2,
        denominator=denominator,
        negative_weights=Dense(far),
        backend=backend,
    )
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_similarity_of_the_candidates_alone_gives_the_anchors_no_gradient():
    anchors, candidates = unit_rows(6).requires_grad_(), unit_rows(6, seed=1).requires_grad_()
    found = {}
    for backend in ("dense", "tiled"):
        loss = weighted_supcon(
            anchors,
            candidates,
            SameLabel(torch.arange(6) // 2, torch.arange(6) // 2),
            temperature=0.2,
            similarity=lambda a, c: c[:, 0].expand(len(a), -1),
            backend=backend,
        )
        found[backend] = torch.autograd.grad(loss, [anchors, candidates], allow_unused=True, materialize_grads=True)
    for dense, tiled in zip(found["dense"], found["tiled"], strict=True):
        torch.testing.assert_close(tiled, dense)
    assert not found["tiled"][0].any()


@pytest.mark.parametrize("class_prior", [0.05, 0.99])  # with .99 the lower bound of the corrected sum is the value
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_debiasing_with_one_negative_or_none(backend, class_prior):
    samples = torch.tensor([0, 0, 1])  # two anchors have one negative; the third has no positive
    preset = presets.debiased(samples=samples, class_prior=class_prior) | {"temperature": 0.2}
    expected, _ = by_loops(unit_rows(3), unit_rows(3), torch.arange(3), preset)
    found = weighted_supcon(unit_rows(3), None, **{**preset, "reduction": "none"}, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


FORMS = {
    "in": {"form": "in"},
    "in, negatives": {"form": "in", "denominator": "negatives"},
    "one": {"denominator": "one"},
    "negatives": {"denominator": "negatives", "row_normalize": False},
    "weights of negatives": {"negative_weights": Dense(torch.arange(81.0).reshape(9, 9) / 9)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("square", [True, False])
def test_tiles_with_weights_agree_with_full_matrices_in_every_form(form, symmetric, square):
    given = (torch.rand(9, 9, generator=torch.Generator().manual_seed(1)).double() - 0.6).clamp_min(0)
    affinity = Dense(given + given.T) if symmetric else Dense(given)
    found = []
    for losses_of in (dense_losses, lambda problem: weight_tiles.weight_tile_losses(problem, 4)):
        anchors, temperature = unit_rows(9).requires_grad_(), torch.tensor(0.3, requires_grad=True)
        candidates = None if square else unit_rows(9, seed=1).requires_grad_()
        settings = LossSettings(**FORMS[form])
        problem = prepare(anchors, candidates, affinity, temperature=temperature, self_index=None, settings=settings)
        assert weight_tiles.supports(problem)
        losses, _ = losses_of(problem)
        inputs = [anchors, temperature] if candidates is None else [anchors, temperature, candidates]
        found.append([losses.detach(), *torch.autograd.grad(losses @ torch.arange(9.0).double(), inputs)])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_tiles_with_weights_leave_exponentials_out_of_range_to_logarithms():
    affinity = LabelKernel(torch.arange(6.0), width=1.0, floor=0.1)
    settings = LossSettings(form="in")
    for temperature, fits in ((0.02, True), (0.01, False)):
        rows = unit_rows(6).float()
        problem = prepare(rows, None, affinity, temperature=temperature, self_index=None, settings=settings)
        assert (weight_tiles.weight_tile_losses(problem, 4) is not None) == fits
        torch.testing.assert_close(tiled_losses(problem, 4).losses, dense_losses(problem).losses, rtol=1e-4, atol=1e-4)


def test_far_positives_beside_near_negatives_have_a_finite_loss():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])  # a ratio of exponentials of e^100
    affinity = Dense(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    problem = prepare(rows, None, affinity, temperature=0.02, self_index=None, settings=LossSettings(denominator="one"))
    torch.testing.assert_close(tiled_losses(problem).losses, torch.tensor([100.0, math.log(2), 0.0]))


@pytest.mark.parametrize(("form", "denominator", "temperature"), [("in", "all", 0.04), ("out", "one", 0.05)])
def test_positives_of_the_least_weights_have_finite_gradients(form, denominator, temperature):
    """The weight of the only positive of an anchor times its exponential leaves the range of float32."""
    labels = torch.tensor([0.0, 12.9, 1000.0, 1001.0, 2000.0, 2001.0])
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    rows[1] = -rows[0]
    results = {}
    for backend, dtype in (("tiled", torch.float32), ("dense", torch.float64)):
        z = rows.to(dtype).requires_grad_()
        settings = {"form": form, "denominator": denominator, "temperature": temperature, "reduction": "none"}
        kernel = LabelKernel(labels.to(dtype), width=1.0)
        losses = weighted_supcon(z, None, kernel, backend=backend, **settings)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        results[backend] = losses.double(), gradient.double()
    for mine, expected in zip(results["tiled"], results["dense"], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)
