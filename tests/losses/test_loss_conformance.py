"""The laws of the loss, for every preset on every backend."""

import pytest
import torch
from loss_cases import D, by_loops, columns, rectangular_presets, square_presets, unit

from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.backends.selection import supported_backends
from mmcon.losses.backends.tiled import general_losses, tiled_losses
from mmcon.losses.loss_inputs import prepare
from mmcon.losses.settings import LossSettings
from mmcon.losses.supcon import weighted_supcon

N, C, WIDTH = 16, 11, 5
SQUARE = list(square_presets(columns(N)))
RECTANGULAR = list(rectangular_presets(columns(N), columns(C)))
BACKENDS = ["dense", "tiled"]


def case(name):
    """Anchors, candidates (None: the anchors), where self is, and the preset."""
    if name in SQUARE:
        return unit(N, WIDTH), None, torch.arange(N), square_presets(columns(N))[name]
    a, c = columns(N), columns(C, seed=1)
    return unit(N, WIDTH), unit(C, WIDTH, seed=2), torch.full((N,), -1), rectangular_presets(a, c)[name]


def losses_of(name, backend, reorder=None):
    anchors, candidates, _, preset = case(name)
    return weighted_supcon(anchors, candidates, **{**preset, "reduction": "none"}, backend=backend)


every_preset = pytest.mark.parametrize("name", SQUARE + RECTANGULAR)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_preset
@every_backend
def test_equals_the_double_loop(name, backend):
    anchors, candidates, self_index, preset = case(name)
    expected, valid = by_loops(anchors, anchors if candidates is None else candidates, self_index, preset)
    torch.testing.assert_close(losses_of(name, backend), expected, rtol=1e-12, atol=1e-12)
    mean = weighted_supcon(anchors, candidates, **{**preset, "reduction": "valid"}, backend=backend)
    torch.testing.assert_close(mean, expected.sum() / valid.sum())


@every_preset
@every_backend
def test_gradients_are_those_of_finite_differences(name, backend):
    anchors, candidates, _, preset = case(name)
    inputs = [anchors, torch.tensor(0.3, dtype=D)] + ([] if candidates is None else [candidates])

    def loss(z, temperature, pool=None):
        settings = {**preset, "temperature": temperature, "reduction": "all"}
        return weighted_supcon(z, pool, **settings, backend=backend)

    if "detached" in name:
        pytest.skip("a detached weight is not the derivative of the value, on purpose")
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@every_preset
def test_all_tile_sizes_and_both_paths_give_the_dense_gradients(name):
    anchors, candidates, self_index, preset = case(name)
    known = {k: v for k, v in preset.items() if k in ("form", "denominator", "row_normalize", "negative_weights")}
    settings = LossSettings(**known)

    def gradients(rows):
        z = anchors.clone().requires_grad_()
        pool = None if candidates is None else candidates.clone().requires_grad_()
        temperature = torch.tensor(0.2, dtype=D, requires_grad=True)
        own = None if candidates is None else self_index
        problem = prepare(z, pool, preset["affinity"], temperature=temperature, self_index=own, settings=settings)
        losses = rows(problem).losses
        (losses * torch.linspace(0.5, 2, N, dtype=D)).sum().backward()
        return [losses.detach(), z.grad, temperature.grad] + ([] if pool is None else [pool.grad])

    expected = gradients(dense_losses)
    for tile in (1, 7, 64, N):
        for rows in (tiled_losses, general_losses):
            for ours, theirs in zip(gradients(lambda p, r=rows, t=tile: r(p, t)), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SQUARE)
@every_backend
def test_rows_in_another_order_have_their_losses_in_that_order(name, backend):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    moved = {key: column[order] for key, column in columns(N).items()}
    preset = {**square_presets(moved)[name], "reduction": "none"}
    ours = weighted_supcon(unit(N, WIDTH)[order], None, **preset, backend=backend)
    torch.testing.assert_close(ours, losses_of(name, backend)[order], rtol=1e-12, atol=1e-12)


def safety_sweep():
    """Rows, labels and temperature of every hard case."""
    z = unit(N, WIDTH).float()
    label, one = columns(N)["label"], torch.zeros(N, dtype=torch.int64)
    zeros = z.clone()
    zeros[2:5] = 0
    yield from (("cold", z, label, t) for t in (0.001, 0.005, 0.01))
    yield "half", z.half(), label, 0.01
    yield "bfloat", z.bfloat16(), label, 0.01
    yield "one row", z[:1], label[:1], 0.1
    yield "no row", z[:0], label[:0], 0.1
    yield "singletons", z, torch.arange(N), 0.1
    yield "one class", z, one, 0.1
    yield "zero vectors", zeros, label, 0.05
    yield "twins", z[:1].expand(N, -1).contiguous(), label, 0.001


@pytest.mark.parametrize("name", SQUARE)
@every_backend
def test_every_hard_case_is_finite_and_as_the_equations_say(name, backend):
    for case_name, z, label, temperature in safety_sweep():
        known = columns(N)
        c = {key: column[: len(z)] for key, column in known.items()}
        c = {key: v.float() if v.is_floating_point() else v for key, v in c.items()}
        c |= {"label": label, "group": label, "sample": label}
        preset = {**square_presets(c)[name], "temperature": temperature, "reduction": "none"}
        z = z.detach().requires_grad_()
        losses = weighted_supcon(z, None, **preset, backend=backend)
        losses.sum().backward()
        assert torch.isfinite(losses).all(), case_name
        assert torch.isfinite(z.grad).all(), case_name
        scale = 1e-4 / temperature
        exact = weighted_supcon(z.detach().double(), None, **preset, backend="dense")
        torch.testing.assert_close(
            losses.double(), exact, rtol=1e-4, atol=scale, msg=lambda m, c=case_name: f"{c}: {m}"
        )
        if case_name == "singletons" and name in ("supcon_out", "supcon_in", "simclr", "sincere", "dcl"):
            assert losses.abs().sum() == 0
        if case_name == "one class" and name == "dcl":
            assert losses.abs().sum() == 0  # no negatives: no denominator, so no anchor is valid


@every_backend
def test_autocast_leaves_the_loss_in_float32(backend):
    z, c = unit(N, WIDTH).float(), columns(N)
    preset = square_presets(c)["supcon_out"]
    with torch.autocast("cpu", torch.bfloat16):
        under = weighted_supcon(z, None, **preset, backend=backend)
    torch.testing.assert_close(under, weighted_supcon(z, None, **preset, backend=backend), rtol=0, atol=0)


def test_a_preset_that_a_backend_does_not_offer_is_refused_by_name():
    anchors, candidates, _, preset = case("x_clr")
    assert "triton" not in supported_backends("x_clr")
    with pytest.raises(Exception, match="triton"):
        weighted_supcon(anchors, candidates, **preset, backend="triton")
