"""The kernels in Triton's interpreter, in a subprocess: the interpreter is selected at import."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHECK = """
import sys, torch
from mmcon.affinity import SameLabel
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.problem import prepare
from mmcon.losses.settings import LossSettings
from mmcon.losses.backends.triton import triton_losses

operands, tolerance = getattr(torch, sys.argv[1]), float(sys.argv[2])
g = torch.Generator().manual_seed(0)
unit = lambda n: torch.nn.functional.normalize(torch.randn(n, 24, generator=g), dim=1)
for a, c, temperature in ((70, None, 0.1), (70, 90, 0.2), (9, 130, 0.1), (1, None, 0.1)):
    z0, p0 = unit(a), None if c is None else unit(c)
    y = torch.randint(0, 6, (a,), generator=g); y[0] = 99
    own = None
    if c is not None:
        own = torch.where(torch.arange(a) % 3 == 0, torch.arange(a), -1)
        p0[own[own >= 0]] = z0[own >= 0]
        pool_y = torch.randint(0, 6, (c,), generator=g); pool_y[own[own >= 0]] = y[own >= 0]
    affinity = SameLabel(y) if c is None else SameLabel(y, pool_y)
    results = []
    for rows in (dense_losses, lambda p: triton_losses(p, operands)):
        z, t = z0.clone().requires_grad_(), torch.tensor(temperature, requires_grad=True)
        pool = None if c is None else p0.clone().requires_grad_()
        problem = prepare(z, pool, affinity, temperature=t, self_index=own, settings=LossSettings())
        out = rows(problem)
        loss = out.losses.sum() / out.valid.sum().clamp_min(1)
        loss.backward()
        results.append([out.losses.detach(), z.grad, t.grad] + ([] if pool is None else [pool.grad]))
    for expected, found in zip(*results):
        scale = expected.abs().max().clamp_min(1e-3)
        assert torch.isfinite(found).all()
        error = float((expected - found).abs().max() / scale)
        assert error < tolerance, (a, c, error)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("operands", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
def test_kernels_equal_the_reference(operands, tolerance):
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHECK, operands, str(tolerance)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
