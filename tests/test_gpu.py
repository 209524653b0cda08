"""What only a GPU shows: kernels compiled, views made on the device, runs under bf16 and fp16, NCCL on one rank.

Skipped where there is no GPU. `MMCON_TEST_DEVICE=cpu` runs all but the kernels on a CPU, to try the tests themselves.
"""

import copy
import os
from datetime import timedelta

import loss_cases
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import mmcon
from mmcon.affinity import SameLabel
from mmcon.distributed.fsdp import full_state, shard
from mmcon.errors import NonFiniteError
from mmcon.loading.loader import ViewLoader
from mmcon.losses import weighted_supcon
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.loss_inputs import prepare
from mmcon.losses.settings import LossSettings
from mmcon.models.batch_norm import synchronize_batch_norm
from mmcon.models.ema import MomentumEncoder
from mmcon.models.encoders import create_encoder
from mmcon.objective.queue import Queue
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Subset
from mmcon.sources.factory import create_source
from mmcon.training.gradient_caching import cached
from mmcon.training.run import Run, RunSettings
from mmcon.training.step import StepLocation, Stepper
from mmcon.views import meta_of

DEVICE = torch.device(os.environ.get("MMCON_TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")
needs_kernels = pytest.mark.skipif(DEVICE.type != "cuda", reason="kernels are compiled for GPUs only")
FORMS = [
    {},
    {"form": "in"},
    {"denominator": "negatives"},
    {"form": "in", "denominator": "negatives"},
    {"denominator": "one"},
]


@pytest.fixture(autouse=True, scope="session")
def first_blocks():
    """The kernels with the first of their blocks: choosing among them compiles each."""
    if DEVICE.type == "cuda":
        from mmcon.losses.backends import triton_kernels

        for kernel in vars(triton_kernels).values():
            if hasattr(kernel, "configs"):
                kernel.configs = kernel.configs[:1]


def unit(n, d=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1).to(DEVICE)


def results(rows, anchors, candidates, affinity, own=None, temperature=0.1, **settings):
    """Losses of the rows, and the gradients of anchors, candidates and temperature."""
    a, t = anchors.clone().requires_grad_(), torch.tensor(temperature, device=DEVICE, requires_grad=True)
    c = None if candidates is None else candidates.clone().requires_grad_()
    problem = prepare(a, c, affinity, temperature=t, self_index=own, settings=LossSettings(**settings))
    out = rows(problem)
    (out.losses.sum() / out.valid.sum().clamp_min(1)).backward()
    return [out.losses.detach(), a.grad, t.grad, *([] if c is None else [c.grad])]


@needs_kernels
@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.parametrize(("operands", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_compiled_kernels_equal_the_reference(settings, operands, tolerance):
    from mmcon.losses.backends.triton import supported_weights, triton_losses

    sizes = [(1024, None), (1500, 4100), *([] if settings else [(1, None), (70, None), (3, 200)])]
    for anchors, candidates in sizes:
        labels = torch.arange(anchors, device=DEVICE) % 7
        labels[0] = 99  # an anchor without positives
        rows, pool, own, affinity = unit(anchors), None, None, SameLabel(labels)
        if candidates is not None:
            pool, own = unit(candidates, seed=1), torch.arange(anchors, device=DEVICE)
            pool[:anchors] = rows
            more = torch.arange(candidates - anchors, device=DEVICE) % 7
            affinity = SameLabel(labels, torch.cat([labels, more]))
        expected = results(dense_losses, rows, pool, affinity, own, **settings)

        def kernels(problem):
            return triton_losses(problem, supported_weights(problem), getattr(torch, operands))

        found = results(kernels, rows, pool, affinity, own, **settings)
        for want, got in zip(expected, found, strict=True):
            assert torch.isfinite(got).all()
            assert float((want - got).abs().max()) <= tolerance * float(want.abs().max().clamp_min(1e-3))


@needs_kernels
def test_temperatures_whose_exponentials_overflow():
    from mmcon.losses.backends.triton import supported_weights, triton_losses

    rows, affinity = unit(1024), SameLabel(torch.arange(1024, device=DEVICE) % 7)
    expected = results(dense_losses, rows, None, affinity, temperature=0.005)
    found = results(lambda p: triton_losses(p, supported_weights(p)), rows, None, affinity, temperature=0.005)
    for want, got in zip(expected, found, strict=True):
        assert float((want - got).abs().max()) <= 0.1 * float(want.abs().max())


def on_device(table):
    return {k: v.to(DEVICE, torch.float32 if v.is_floating_point() else v.dtype) for k, v in table.items()}


PRESETS = [*loss_cases.square_presets(loss_cases.columns(4)), *loss_cases.rectangular_presets(
    loss_cases.columns(4), loss_cases.columns(4))]  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_equals_the_reference_in_float64(name, monkeypatch):
    n, own, other = 640, loss_cases.columns(640), loss_cases.columns(640, seed=1)
    z, pool = loss_cases.unit(n, 32), loss_cases.unit(n, 32, seed=2)

    def loss_and_gradients(own, other, rows, candidates, backend):
        square = loss_cases.square_presets(own)
        preset = square[name] if name in square else loss_cases.rectangular_presets(own, other)[name]
        inputs = [rows.clone().requires_grad_()]
        inputs += [] if name in square else [candidates.clone().requires_grad_()]
        pair = (inputs[0], None) if name in square else inputs
        loss = weighted_supcon(*pair, **preset, backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    expected = loss_and_gradients(own, other, z, pool, "dense")
    monkeypatch.setattr(loss_cases, "TABLE", loss_cases.TABLE.to(DEVICE, torch.float32))
    tables, rows = (on_device(own), on_device(other)), (z.float().to(DEVICE), pool.float().to(DEVICE))
    for backend, tolerance in (("dense", 1e-4), ("tiled", 1e-4), ("auto", 5e-3)):
        found = loss_and_gradients(*tables, *rows, backend)
        for want, got in zip(expected, found, strict=True):
            assert float((want - got.cpu()).abs().max()) <= tolerance * float(want.abs().max()), backend


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


CHAINS = [
    "image/simclr", "image/simclr-tf", "image/supcon-autoaugment", "image/stacked-randaugment-talk",
    "image/stacked-randaugment-infomin", "image/dino", "image/cmc", "image/warp",
]  # fmt: skip


@needs_kernels
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", CHAINS)
def test_the_host_does_not_wait_for_views(name):
    view = mmcon.create_view(name, **({"p": 1.0} if name == "image/warp" else {"size": 96}))
    photos = torch.randint(0, 256, (16, 3, 128, 112), dtype=torch.uint8, device=DEVICE)
    params = view.draw(mmcon.keys(seed=0, sample=range(16), view=0, step=0), meta_of(photos, "image"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        view.apply(photos, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    _, (drawn, *_) = next(iter(loader._work_items()))
    assert drawn.samples.is_pinned()
    assert next(iter(loader)).views["image"][0].is_cuda


def test_gradient_caching_on_the_device(tmp_path):
    losses, _ = trained(tmp_path / "chunks", chunk_size=16)
    assert len(losses) == 6
    assert torch.isfinite(torch.tensor(losses)).all()


@needs_kernels
def test_a_run_in_fp16_scales_its_gradients(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # which has the precision of the runs before
    losses, _ = trained(tmp_path / "fp16", precision="fp16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_that_is_not_finite_changes_nothing_and_no_step_waits_for_its_check(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # which has the precision of the runs before
    accelerator, layer = Accelerator(cpu=DEVICE.type == "cpu"), torch.nn.Linear(64, 64).to(DEVICE)
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True))
    stepper = Stepper(accelerator, optimizer, None, RunSettings(clip_norm=1.0), checks_late=True)
    x = unit(16, 64)

    def step(number, factor=1.0):
        stepper.backward(layer(x).square().sum() * factor)
        stepper.optimizer_step(1, StepLocation(tmp_path, 0, number, 0, None))

    step(0)
    if_waiting = torch.cuda.set_sync_debug_mode if DEVICE.type == "cuda" else lambda mode: None
    if_waiting("error")
    try:
        step(1)
        step(2)
    finally:
        if_waiting("default")
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    step(3, float("nan"))
    with pytest.raises(NonFiniteError, match="step 4: "):
        step(4)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def one_rank():
    """A process group of one rank, of NCCL on a GPU."""
    store = distributed.HashStore()
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    options = {"device_id": torch.device("cuda", 0)} if DEVICE.type == "cuda" else {}
    distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=60), **options)
    yield
    distributed.destroy_process_group()


def weights_after_a_step(wrap):
    """The weights of a small network after one step of the loss, by name."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(32, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 64)).to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    wrapped = wrap(network, optimizer)
    rows = torch.nn.functional.normalize(wrapped(unit(64, 32)), dim=1)
    weighted_supcon(rows, None, SameLabel(torch.arange(64, device=DEVICE) % 4), temperature=0.1).backward()
    optimizer.step()
    return {name: value.cpu() for name, value in full_state(network.state_dict()).items()}


def sharded(network, optimizer):
    shard(network, optimizer, DEVICE, 1)
    return network


@pytest.mark.parametrize("wrap", [sharded, lambda network, _: DistributedDataParallel(network)], ids=["FSDP2", "DDP"])
def test_one_rank_steps_as_a_single_process(one_rank, wrap):
    expected, found = weights_after_a_step(lambda network, _: network), weights_after_a_step(wrap)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_synchronized_batch_norm_on_one_rank(one_rank):
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(8)).to(DEVICE)
    x = torch.randn(16, 8, 5, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = norm(x).detach()
    synchronized = synchronize_batch_norm(copy.deepcopy(norm), DEVICE)
    assert type(synchronized[0]) is not torch.nn.BatchNorm2d
    torch.testing.assert_close(synchronized(x).detach(), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_memory_does_not_grow_over_steps():
    view = mmcon.create_view("image/simclr", size=64)
    photos = torch.randint(0, 256, (64, 3, 96, 96), dtype=torch.uint8, device=DEVICE)
    z, labels = unit(1024).requires_grad_(), torch.arange(1024, device=DEVICE) % 10
    allocated = []
    for step in range(40):
        view(photos, mmcon.keys(seed=0, epoch=step, sample=range(64)))
        for backend in ("triton", "tiled", "dense"):
            z.grad = None
            weighted_supcon(z, None, SameLabel(labels), temperature=0.1, backend=backend).backward()
        allocated.append(torch.cuda.memory_allocated())
    assert max(allocated[20:]) <= max(allocated[10:20])
