"""The loss on a GPU, forward and backward: time by size against the floor of its matrix products, and by form.

    uv run python benchmarks/gpu/loss.py
    uv run python benchmarks/gpu/loss.py --sizes 4096 16384 --device cpu     # to try the script

The floor of n rows of width d is 4 n² d operations (each pair once in the forward pass; in the backward pass each pair
once again, and the product of the gradient with the rows) at the rate of a large bfloat16 product, measured here.
Errors are relative to float64. Peers: the naive form under torch.compile, and a loop over chunks of rows whose products
run in cuBLAS and whose other operations are compiled, all with bfloat16 products.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmcon.affinity import SameLabel
from mmcon.losses import weighted_supcon
from mmcon.losses.backends.selection import compute
from mmcon.losses.loss_inputs import prepare
from mmcon.losses.settings import LossSettings

WIDTH, CLASSES, TEMPERATURE = 128, 1000, 0.07
CHUNK = 2048
FORMS = {
    "out": {}, "in": {"form": "in"}, "out, negatives": {"denominator": "negatives"},
    "in, negatives": {"form": "in", "denominator": "negatives"}, "one": {"denominator": "one"},
}  # fmt: skip

DEVICE = torch.device("cuda")


def unit_rows(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return functional.normalize(torch.randn(n, WIDTH, generator=generator, device=DEVICE), dim=1)


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """The median time of a call, after two calls to warm up."""
    spent = []
    for number in range(rounds + 2):
        wait()
        began = time.perf_counter()
        run()
        wait()
        if number >= 2:
            spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def extra_mib(run: Callable[[], object]) -> float:
    """The peak of memory that a call adds, in MiB; NaN where there is no GPU."""
    if DEVICE.type != "cuda":
        return float("nan")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- the losses ------------------------------------------------------------------------------------------------------


def step_of(z: Tensor, labels: Tensor, backend: str, **settings: str) -> Callable[[], object]:
    """A forward and a backward pass of the weighted loss."""

    def run() -> None:
        z.grad = None
        loss = weighted_supcon(z, None, SameLabel(labels), temperature=TEMPERATURE, backend=backend, **settings)
        loss.backward()

    z.requires_grad_()
    return run


def clip_step_of(z: Tensor, other: Tensor, backend: str) -> Callable[[], object]:
    """Both directions of CLIP's loss."""
    samples = torch.arange(len(z), device=DEVICE)

    def run() -> None:
        z.grad = other.grad = None
        for a, c in ((z, other), (other, z)):
            weighted_supcon(a, c, SameLabel(samples, samples), temperature=TEMPERATURE, backend=backend).backward()

    z.requires_grad_()
    other.requires_grad_()
    return run


def naive(z: Tensor, labels: Tensor) -> Tensor:
    """The out form over the full matrix."""
    rows = z.bfloat16()
    s = (rows @ rows.T).float() / TEMPERATURE
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~own
    log_sum = s.masked_fill(own, float("-inf")).logsumexp(1)
    return (log_sum - (positive * s).sum(1) / positive.sum(1).clamp_min(1)).mean()


def naive_step_of(z: Tensor, labels: Tensor, mode: str | None = None) -> Callable[[], object]:
    compiled = torch.compile(naive, mode=mode)

    def run() -> None:
        z.grad = None
        compiled(z, labels).backward()

    z.requires_grad_()
    return run


def chunk_log_sum(rows: Tensor, all_rows: Tensor, first: Tensor) -> Tensor:
    s = (rows @ all_rows.T).float() / TEMPERATURE
    own = (
        torch.arange(len(all_rows), device=rows.device)
        == (first + torch.arange(len(rows), device=rows.device))[:, None]
    )
    return s.masked_fill(own, float("-inf")).logsumexp(1)


def chunk_gradient(rows: Tensor, all_rows: Tensor, first: Tensor, log_sum: Tensor, all_log_sums: Tensor) -> Tensor:
    s = (rows @ all_rows.T).float() / TEMPERATURE
    own = (
        torch.arange(len(all_rows), device=rows.device)
        == (first + torch.arange(len(rows), device=rows.device))[:, None]
    )
    g = (s - log_sum[:, None]).exp() + (s - all_log_sums).exp()
    return g.masked_fill(own, 0).bfloat16() @ all_rows


def chunked_step_of(z: Tensor) -> Callable[[], object]:
    """The denominators of the loss and their gradient, without the class sums, by compiled chunks of rows."""
    log_sums, gradients = torch.compile(chunk_log_sum), torch.compile(chunk_gradient)
    firsts = [torch.tensor(first, device=DEVICE) for first in range(0, len(z), CHUNK)]

    def run() -> Tensor:
        rows = z.detach().bfloat16()
        parts = rows.split(CHUNK)
        sums = torch.cat([log_sums(part, rows, first) for part, first in zip(parts, firsts, strict=True)])
        each = zip(parts, firsts, sums.split(CHUNK), strict=True)
        return torch.cat([gradients(part, rows, first, own, sums) for part, first, own in each])

    return run


# --- tables ----------------------------------------------------------------------------------------------------------


def products_per_second(n: int = 8192) -> float:
    """Operations a second of a large bfloat16 product."""
    n = n if DEVICE.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / (milliseconds(lambda: a @ b, 10) / 1e3)


def attempted(make: Callable[[], Callable[[], object]], rounds: int) -> float:
    """The time of a peer, or NaN where its memory does not suffice."""
    try:
        return milliseconds(make(), rounds)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return float("nan")


def by_size(sizes: list[int], rate: float, backend: str, *, peers: bool) -> None:
    print(
        "| n | ms | times the floor | extra MiB | compiled naive form, ms | times ours | chunks by cuBLAS, compiled, ms"
        " | times ours |\n|---|---|---|---|---|---|---|---|"
    )
    for n in sizes:
        z, labels = unit_rows(n), torch.arange(n, device=DEVICE) % CLASSES
        rounds, nan = (2 if n > 500_000 else 10 if n > 30_000 else 30), float("nan")
        run = step_of(z, labels, backend)
        ours, memory = milliseconds(run, rounds), extra_mib(run)
        floor = 4 * n * n * WIDTH / rate * 1e3
        beside = peers and n < 100_000
        full = attempted(lambda z=z, labels=labels: naive_step_of(z, labels), rounds) if beside else nan
        chunks = attempted(lambda z=z: chunked_step_of(z), rounds) if beside else nan
        print(
            f"| {n:,} | {ours:.3f} | {ours / floor:.2f} | {memory:.0f} | {full:.2f} | {full / ours:.1f}"
            f" | {chunks:.2f} | {chunks / ours:.1f} |",
            flush=True,
        )


def by_form(n: int, backend: str) -> None:
    print(f"\nn = {n:,}, by form:\n\n| form | {backend}, ms | tiled, ms |\n|---|---|---|")
    labels = torch.arange(n, device=DEVICE) % CLASSES
    for name, settings in FORMS.items():
        ours, tiled = (milliseconds(step_of(unit_rows(n), labels, b, **settings), 5) for b in (backend, "tiled"))
        print(f"| {name} | {ours:.3f} | {tiled:.1f} |", flush=True)
    ours, tiled = (milliseconds(clip_step_of(unit_rows(n), unit_rows(n, 1), b), 5) for b in (backend, "tiled"))
    print(f"| CLIP, two directions | {ours:.3f} | {tiled:.1f} |", flush=True)


def errors(n: int, operands: tuple[torch.dtype, ...]) -> None:
    """Relative errors of the mean loss, and in the norm of the gradient, of every form."""
    from mmcon.losses.backends.dense import dense_losses
    from mmcon.losses.backends.triton import supported_weights, triton_losses

    print(f"\nErrors against float64, n = {n:,}, T = {TEMPERATURE}:\n\n| form | operands | loss | gradient |")
    print("|---|---|---|---|")
    labels = torch.arange(n, device=DEVICE) % 100
    for name, settings in FORMS.items():
        found, tried = [], operands if name == "out" else operands[:1]
        for precision in (torch.float64, *tried):
            z = unit_rows(n).to(torch.float64 if precision == torch.float64 else torch.float32).requires_grad_()
            options = LossSettings(**settings)
            problem = prepare(z, None, SameLabel(labels), temperature=TEMPERATURE, self_index=None, settings=options)
            if precision == torch.float64:
                losses = dense_losses(problem).losses
            elif DEVICE.type == "cuda":
                weights = supported_weights(problem)
                assert not isinstance(weights, str)
                losses = triton_losses(problem, weights, precision).losses
            else:
                losses = compute(problem).losses
            losses.mean().backward()
            assert z.grad is not None
            found.append((losses.mean().double().detach(), z.grad.double()))
        (loss, gradient), *others = found
        for precision, (own, of_z) in zip(tried, others, strict=True):
            error = float((own - loss).abs() / loss.abs()), float((of_z - gradient).norm() / gradient.norm())
            print(f"| {name} | {str(precision).removeprefix('torch.')} | {error[0]:.1e} | {error[1]:.1e} |", flush=True)


def sweep() -> None:
    """Give the kernels more blocks to choose from: rows, columns, warps, stages."""
    from triton import Config

    from mmcon.losses.backends import triton_kernels

    sizes = {
        "_pair_sums": [
            (128, 64, 4, 3),
            (128, 64, 4, 2),
            (256, 64, 4, 2),
            (256, 32, 4, 3),
            (256, 64, 8, 3),
            (128, 64, 8, 3),
        ],
        "_weighted_rows": [(64, 128, 4, 2), (64, 128, 4, 3), (64, 64, 4, 3), (128, 128, 8, 3), (64, 32, 4, 3)],
    }
    for name, blocks in sizes.items():
        getattr(triton_kernels, name).configs = [
            Config({"BLOCK_M": rows, "BLOCK_N": columns}, num_warps=warps, num_stages=stages)
            for rows, columns, warps, stages in blocks
        ]


def tuning() -> None:
    """What the kernels' blocks were chosen from."""
    from mmcon.losses.backends import triton_kernels

    print("\nMilliseconds of the kernels by blocks (rows, columns, warps, stages, registers):\n")
    for name in ("_pair_sums", "_log_sums", "_weighted_rows"):
        kernel = getattr(triton_kernels, name)
        found = getattr(kernel, "configs_timings", None) or {}
        for configuration, spent in found.items():
            blocks = *configuration.kwargs.values(), configuration.num_warps, configuration.num_stages
            print(f"- {name} {blocks} {configuration.maxnreg}: {spent[0]:.3f}", flush=True)
        # The other forms take the blocks that were best here: compiling all of them for each takes minutes.
        kernel.configs = [kernel.best_config] if found else kernel.configs[:1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[65536, 16384, 4096, 1048576])
    parser.add_argument("--form-size", type=int, default=16384)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--alone", action="store_true", help="without peers, whose compilation takes most of the time")
    parser.add_argument("--sweep", action="store_true", help="try more blocks than the kernels do")
    options = parser.parse_args()
    global DEVICE
    DEVICE = torch.device(options.device)
    on_gpu = DEVICE.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    backend, rate = "triton" if on_gpu else "tiled", products_per_second()
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{name}, d = {WIDTH}, {CLASSES} classes, T = {TEMPERATURE}; bfloat16 products: {rate / 1e12:.0f} TFLOP/s\n")
    if options.sweep and on_gpu:
        sweep()
    by_size(options.sizes[:1], rate, backend, peers=not options.alone)
    if on_gpu:
        tuning()
    errors(4096 if on_gpu else 512, (torch.float16, torch.bfloat16) if on_gpu else (torch.float32,))
    by_form(options.form_size, backend)
    print()
    by_size(options.sizes[1:], rate, backend, peers=not options.alone)


if __name__ == "__main__":
    main()
