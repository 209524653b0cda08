"""Tiles agree with the dense reference on paths of their own: asymmetric weights and learnable kernels."""

import pytest
import torch

from mmcon.affinity import Dense, LabelKernel
from mmcon.losses import weighted_supcon


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
