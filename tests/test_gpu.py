"""What only a GPU shows: kernels compiled, views made on the device, a run under bf16. Skipped where there is none.

`MMCON_TEST_DEVICE=cpu` runs all but the kernels on a CPU, to try the tests themselves.
"""

import copy
import os

import pytest
import torch

import mmcon
from mmcon.affinity import SameLabel
from mmcon.loading.loader import ViewLoader
from mmcon.losses import weighted_supcon
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.problem import prepare
from mmcon.losses.settings import LossSettings
from mmcon.models.ema import MomentumEncoder
from mmcon.models.encoders import create_encoder
from mmcon.objective.queue import Queue
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Subset
from mmcon.sources.factory import create_source
from mmcon.training.gradient_caching import cached
from mmcon.training.run import Run, RunSettings
from mmcon.views import meta_of

DEVICE = torch.device(os.environ.get("MMCON_TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")
needs_kernels = pytest.mark.skipif(DEVICE.type != "cuda", reason="kernels are compiled for GPUs only")


def unit(n, d=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1).to(DEVICE)


def results(rows, anchors, candidates, affinity, own=None):
    """Losses of the rows, and the gradients of anchors, candidates and temperature."""
    a, temperature = anchors.clone().requires_grad_(), torch.tensor(0.1, device=DEVICE, requires_grad=True)
    c = None if candidates is None else candidates.clone().requires_grad_()
    problem = prepare(a, c, affinity, temperature=temperature, self_index=own, settings=LossSettings())
    out = rows(problem)
    (out.losses.sum() / out.valid.sum().clamp_min(1)).backward()
    return [out.losses.detach(), a.grad, temperature.grad, *([] if c is None else [c.grad])]


@needs_kernels
@pytest.mark.parametrize(("operands", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
@pytest.mark.parametrize(("anchors", "candidates"), [(1, None), (70, None), (1024, None), (1500, 4100), (3, 200)])
def test_compiled_kernels_equal_the_reference(operands, tolerance, anchors, candidates):
    from mmcon.losses.backends.triton import triton_losses

    labels = torch.arange(anchors, device=DEVICE) % 7
    labels[0] = 99  # an anchor without positives
    rows, pool, own, affinity = unit(anchors), None, None, SameLabel(labels)
    if candidates is not None:
        pool, own = unit(candidates, seed=1), torch.arange(anchors, device=DEVICE)
        pool[:anchors] = rows
        affinity = SameLabel(labels, torch.cat([labels, torch.arange(candidates - anchors, device=DEVICE) % 7]))
    expected = results(dense_losses, rows, pool, affinity, own)
    found = results(lambda p: triton_losses(p, getattr(torch, operands)), rows, pool, affinity, own)
    for want, got in zip(expected, found, strict=True):
        assert torch.isfinite(got).all()
        assert float((want - got).abs().max()) <= tolerance * float(want.abs().max().clamp_min(1e-3))


@needs_kernels
def test_auto_takes_the_kernels_and_memory_stays_linear():
    n = 32_768
    z, labels = unit(n).requires_grad_(), torch.arange(n, device=DEVICE) % 100
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    weighted_supcon(z, None, SameLabel(labels), temperature=0.1).backward()
    # One float32 matrix of similarities would take 4 GiB.
    assert torch.cuda.max_memory_allocated() - before < 512 * 2**20


@pytest.mark.parametrize("name", [
    "image/simclr", "image/simclr-supcon", "image/supcon-autoaugment", "image/stacked-randaugment-talk",
    "image/stacked-randaugment-infomin", "image/dino", "image/cmc",
])  # fmt: skip
def test_views_are_the_same_on_the_device(name):
    """One draw, applied on a CPU and on the device: equal but for rounding, and pixels that a tie of rounding moves."""
    view = mmcon.create_view(name, size=64)
    photos = torch.randint(0, 256, (8, 3, 96, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    params = view.draw(mmcon.keys(seed=0, sample=range(8), view=0, step=0), meta_of(photos, "image"))
    on_cpu, on_device = view.apply(photos, params), view.apply(photos.to(DEVICE), params).cpu()
    assert on_device.shape == on_cpu.shape
    off = (on_cpu - on_device).abs()
    assert float((off > 0.02).float().mean()) < 0.02
    assert float(off.mean()) < 2e-3


def trained(folder, *, steps=6, resume=False, chunk_size=None, precision="bf16"):
    """A short run with queue and momentum encoder; its losses, and its model."""
    settings = RunSettings(epochs=2, max_steps=steps, log_every=1, checkpoint_every=3)
    run = Run(folder, seed=1, settings=settings, resume=resume, mixed_precision=precision, cpu=DEVICE.type == "cpu")
    source = create_source("samples/fashion", split="train")
    source = Subset(source, range(0, len(source), 20))
    view = mmcon.create_view("image/simclr", size=28, area=(0.5, 1.0), strength=0.5)
    sampler = UniformSampler(source.labels, batch_size=64, seed=1)
    loader = ViewLoader(source, {"image": [view, view]}, sampler, seed=1, device=run.device)
    encoder = create_encoder("mmcon/resnet-tiny", image_size=28, in_channels=1)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=64)})
    queue, momentum = Queue(size=256), MomentumEncoder(model, momentum=0.9)
    objective = mmcon.Objective(affinity=SameLabel(), temperature=0.1, queue=queue)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    network = run.prepare(model, optimizer, objective=objective, queue=queue, momentum=momentum)
    losses = []
    for batch in run.batches(loader):
        assert batch.views["image"][0].device.type == DEVICE.type
        if chunk_size:
            loss = cached(network, objective, batch, chunk_size=chunk_size)
        else:
            loss = objective(network(batch), batch)
        losses.append(float(loss.detach()))
        run.step(loss)
        momentum.update(network)
        queue.push(momentum(batch), batch)
    run.close()
    return losses, copy.deepcopy(model).cpu()


def test_a_run_learns_and_resumes(tmp_path):
    losses, _ = trained(tmp_path / "whole", steps=12)
    # Until the queue is full its candidates make the task harder; from then on the loss falls.
    assert losses[-1] < max(losses)
    first, _ = trained(tmp_path / "two", steps=6)
    second, _ = trained(tmp_path / "two", steps=12, resume=True)
    # Sums of GPUs are not in a fixed order: near, not equal.
    torch.testing.assert_close(torch.tensor(first + second), torch.tensor(losses), rtol=0.02, atol=0.02)


@needs_kernels
def test_what_workers_make_comes_in_page_locked_memory():
    source = create_source("samples/fashion", split="train")
    view = mmcon.create_view("image/simclr", size=28)
    sampler = UniformSampler(source.labels, batch_size=16, seed=0)
    loader = ViewLoader(source, {"image": [view]}, sampler, seed=0, workers=1, device=DEVICE)
    _, (drawn, *_) = next(iter(loader._steps()))
    assert drawn.samples.is_pinned()
    assert next(iter(loader)).views["image"][0].is_cuda


def test_gradient_caching_on_the_device(tmp_path):
    losses, _ = trained(tmp_path / "chunks", chunk_size=16)
    assert len(losses) == 6
    assert torch.isfinite(torch.tensor(losses)).all()
