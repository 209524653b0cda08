"""The loss under torch.func, the meta device and GradScaler's scale."""

import pytest
import torch
from loss_cases import D, unit

from mmcon.affinity import LabelKernel, SameLabel
from mmcon.errors import InputError
from mmcon.losses import explain_backend, weighted_supcon

pytestmark = [
    # Of PyTorch: jvp and inductor load scripted functions, and a graph after another looks at inner gradients.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def loss(rows, temperature=0.2, backend="auto"):
    return weighted_supcon(
        rows, None, SameLabel(torch.arange(len(rows)) // 2), temperature=temperature, backend=backend
    )


def test_the_reference_has_every_transform_of_torch_func():
    z = unit(8, 3)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(z), expected)
    both = torch.stack([z, z.flip(0)])
    torch.testing.assert_close(torch.func.vmap(loss)(both), torch.stack([loss(x) for x in both]))
    direction = unit(8, 3, seed=1)
    _, slope = torch.func.jvp(loss, (z,), (direction,))
    torch.testing.assert_close(slope, (expected * direction).sum())
    hessian = torch.func.hessian(loss)(z)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda x: loss(x, backend="dense"), z))
    temperatures = torch.tensor([0.1, 0.2], dtype=D)
    by_temperature = torch.func.vmap(lambda t: loss(z, t))(temperatures)
    torch.testing.assert_close(by_temperature, torch.stack([loss(z, t) for t in temperatures]))


def test_under_torch_func_auto_takes_full_matrices_and_tiles_are_refused():
    z = unit(600, 3)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, backend="dense"), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(z), expected)
    with pytest.raises(InputError, match=r"under torch\.func; got backend 'tiled'"):
        torch.func.grad(lambda x: loss(x, backend="tiled"))(z)


@pytest.mark.parametrize("backend", ["auto", "dense", "tiled"])
def test_on_the_meta_device_there_are_shapes_alone(backend):
    rows = torch.empty(600, 8, device="meta", requires_grad=True)
    labels = torch.empty(600, dtype=torch.int64, device="meta")
    kernel = LabelKernel(torch.empty(600, device="meta"), width=1.0)
    for affinity in (SameLabel(labels), kernel):
        losses = weighted_supcon(rows, None, affinity, temperature=0.1, reduction="none", backend=backend)
        assert losses.shape == (600,)
        losses.sum().backward()
        assert rows.grad.shape == (600, 8)
    assert explain_backend(rows, None, kernel, temperature=0.1).backend == "dense"


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("form", ["out", "in"])
def test_the_usual_initial_scale_of_half_precision_does_not_overflow(backend, form):
    n, scale = 256, 2.0**16
    rows = unit(n, 16).half()
    settings = {"temperature": 0.05, "form": form, "backend": backend, "reduction": "none"}
    found = {}
    for kind in (torch.float16, torch.float64):
        z = rows.detach().to(kind, copy=True).requires_grad_()
        losses = weighted_supcon(z, None, SameLabel(torch.arange(n) // 8), **settings)
        # The sum of scaled losses is above the largest half, 65,504; their mean is what a gradient scaler sees.
        (losses.sum() * scale / n).backward()
        found[kind] = z.grad.double()
    assert torch.isfinite(found[torch.float16]).all()
    torch.testing.assert_close(found[torch.float16], found[torch.float64], rtol=2e-3, atol=1e-2)
