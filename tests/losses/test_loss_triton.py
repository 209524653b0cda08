"""The kernels in Triton's interpreter, in a subprocess: the interpreter is selected at import."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHECK = """
import sys, torch
import triton.runtime.interpreter as interpreter

# Triton 3.6 converts a bound of a loop by int(array of one number), which NumPy 2.4 refuses.
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())
interpreter._patch_lang_tensor = patched

from jaxtyping import install_import_hook
install_import_hook("mmcon", "beartype.beartype")

from mmcon.affinity import SameLabel
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.backends.triton import supported_weights, triton_losses
from mmcon.losses.loss_inputs import prepare
from mmcon.losses.settings import LossSettings

operands, tolerance = getattr(torch, sys.argv[1]), float(sys.argv[2])
g = torch.Generator().manual_seed(0)
unit = lambda n: torch.nn.functional.normalize(torch.randn(n, 24, generator=g), dim=1)
ALL, OTHERS = {"form": "out", "denominator": "all"}, [
    {"form": "in", "denominator": "all"}, {"form": "out", "denominator": "negatives"},
    {"form": "in", "denominator": "negatives"}, {"form": "out", "denominator": "one"},
]
# Anchors, candidates (None: the anchors), temperature, length of the rows, settings.
sizes = ((70, None, 0.1), (128, None, 0.1), (70, 90, 0.2), (9, 130, 0.1), (1, None, 0.1))
cases = [(n, c, t, 1.0, ALL) for n, c, t in sizes]
cases += [(70, c, 0.1, 1.0, {**s, "row_normalize": r}) for s in OTHERS for c, r in ((None, True), (150, False))]
# One exponential of a pair overflows float32; rows of another length.
cases += [(70, None, 0.01, 1.0, ALL), (70, None, 0.1, 3.0, ALL), (70, None, 300.0, 90.0, OTHERS[0])]
for a, c, temperature, length, options in cases:
    z0, p0 = unit(a) * length, None if c is None else unit(c) * length
    y = torch.randint(0, 6, (a,), generator=g); y[0] = 99
    own = None
    if c is not None:
        own = torch.where(torch.arange(a) % 3 == 0, torch.arange(a), -1)
        p0[own[own >= 0]] = z0[own >= 0]
        pool_y = torch.randint(0, 6, (c,), generator=g); pool_y[own[own >= 0]] = y[own >= 0]
    affinity = (SameLabel(y) if c is None else SameLabel(y, pool_y)) * 0.5
    results = []
    for rows in (dense_losses, lambda p: triton_losses(p, supported_weights(p), operands)):
        z, t = z0.clone().requires_grad_(), torch.tensor(temperature, requires_grad=True)
        pool = None if c is None else p0.clone().requires_grad_()
        problem = prepare(z, pool, affinity, temperature=t, self_index=own, settings=LossSettings(**options))
        out = rows(problem)
        loss = out.losses.sum() / out.valid.sum().clamp_min(1)
        loss.backward()
        results.append([out.valid, out.losses.detach(), z.grad, t.grad] + ([] if pool is None else [pool.grad]))
    assert torch.equal(results[0][0], results[1][0])
    # An error in a similarity is an error in a logit divided by the temperature.
    allowed = tolerance * max(1.0, 0.1 / temperature)
    names = ("losses", "anchors", "temperature", "candidates")
    for name, expected, found in zip(names, results[0][1:], results[1][1:]):
        scale = expected.abs().max().clamp_min(1e-3)
        assert torch.isfinite(found).all(), (a, c, options, name)
        error = float((expected - found).abs().max() / scale)
        assert error < allowed, (a, c, temperature, length, options, name, error)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("operands", "tolerance"), [("float32", 1e-4), ("float16", 5e-3)])
def test_kernels_equal_the_reference(operands, tolerance):
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHECK, operands, str(tolerance)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
