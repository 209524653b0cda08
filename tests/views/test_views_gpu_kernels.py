"""The Triton kernels of image views in Triton's interpreter, in a subprocess, against the operations of a CPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHECK = """
import torch
import triton.runtime.interpreter as interpreter

# Triton 3.6 converts a bound of a loop by int(array of one number), which NumPy 2.4 refuses.
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())
interpreter._patch_lang_tensor = patched

from jaxtyping import install_import_hook
install_import_hook("mmcon_views", "beartype.beartype")

from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import meta_of
from mmcon_views.image import blur, color, gpu_kernels, resample

g = torch.Generator().manual_seed(0)
def close(name, found, expected, tolerance=2e-6):
    off = float((found - expected).abs().max())
    assert off < tolerance, (name, off)

bytes = torch.randint(0, 256, (2, 3, 23, 19), dtype=torch.uint8, generator=g)
for interpolation in ("bilinear", "bicubic"):
    for size in ((5, 7), (26, 22)):
        view = create_view("image/random-resized-crop", size=size, interpolation=interpolation)
        box = view.draw(keys(seed=1, sample=range(2)), meta_of(bytes, "image"))
        own = [box[name] for name in ("top", "left", "height", "width")]
        for batch, scale in ((bytes, 1 / 255), (bytes[:, :1].float() / 255, 1.0)):
            found = gpu_kernels.resample(batch, own, size, cubic=interpolation == "bicubic", scale=scale)
            close((interpolation, size), found, resample._resample_stacked(batch, box, size, interpolation), 1e-5)

x = torch.rand(10, 3, 40, 27, generator=g)
x[:, :, :3, :3] = x[:, :1, :3, :3]  # gray pixels
jitter = create_view("image/color-jitter")
params = jitter.draw(keys(seed=0, sample=range(10)), meta_of(x, "image"))
assert len({tuple(order) for order in params["order"].tolist()}) > 5
expected, found = x.clone(), x.clone()
color.jitter_(expected, params, jitter.OPERATIONS)
rows = params["apply"].nonzero().view(-1)
names = ("brightness", "contrast", "saturation", "hue")
factors = torch.stack([params[name] for name in names], 1).to(torch.float32)
gpu_kernels.jitter_(found, rows, params["order"][rows], factors[rows])
close("jitter", found, expected, 1e-5)
assert torch.equal(found[~params["apply"]], x[~params["apply"]])

weights = blur.gaussian_weights(torch.tensor([0.1, 0.8, 3.0]), 5).float()
weights = torch.where(weights > 1e-7, weights, 0)
for outside in (None, 0.25):
    for images in (x[:3, :, :9], x[:3, :1, :9, :8]):
        found = gpu_kernels.convolve(images, weights, (weights > 0).sum(1) - 1, outside)
        close("blur", found, blur.convolve(images, weights, outside))
print("equal")
"""


@pytest.mark.slow
def test_kernels_equal_the_operations_of_a_cpu():
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
