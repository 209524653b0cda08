"""The loss on a GPU: time relative to the minimum for its matrix products, and memory by size.

uv run python benchmarks/gpu/loss.py
"""

from __future__ import annotations

import statistics

import torch

from mmcon.affinity import SameLabel
from mmcon.losses import weighted_supcon

FLOPS_BF16 = {"H100": 800e12, "H200": 800e12}


def unit_rows(n: int, d: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator, device="cuda"), dim=1)


def milliseconds(n: int, d: int, backend: str, rounds: int) -> tuple[float, float]:
    """The median time of a step, and the peak of extra memory in MiB."""
    z, labels = unit_rows(n, d), torch.arange(n, device="cuda") % 1000
    spent = []
    for _ in range(rounds + 2):
        z = z.detach().requires_grad_()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        weighted_supcon(z, None, SameLabel(labels), temperature=0.1, backend=backend).backward()
        end.record()
        torch.cuda.synchronize()
        spent.append(start.elapsed_time(end))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return statistics.median(spent[2:]), peak


def agreement(n: int = 4096, d: int = 128) -> float:
    """The largest difference between the gradients of kernels and tiles, relative to the largest gradient."""
    labels, gradients = torch.arange(n, device="cuda") % 100, []
    for backend in ("tiled", "triton"):
        z = unit_rows(n, d).requires_grad_()
        weighted_supcon(z, None, SameLabel(labels), temperature=0.1, backend=backend).backward()
        gradients.append(z.grad)
    tiled, triton = gradients
    return float((tiled - triton).abs().max() / tiled.abs().max())


def table(sizes: tuple[int, ...] = (4096, 16384, 65536, 262144, 1048576), d: int = 128) -> None:
    """Print for each size the time, its multiple of the minimum for 4 n² d operations, and memory."""
    name = torch.cuda.get_device_name()
    rate = next((rate for model, rate in FLOPS_BF16.items() if model in name), None)
    print(f"{name}, d = {d}, float32 rows, bfloat16 products; gradient within {agreement():.1e} of the tiles'\n")
    print("| n | ms | times the matmul floor | extra MiB |\n|---|---|---|---|")
    for n in sizes:
        ms, memory = milliseconds(n, d, "triton", rounds=3 if n > 100_000 else 20)
        floor = None if rate is None else 4 * n * n * d / rate * 1e3
        print(f"| {n} | {ms:.2f} | {'?' if floor is None else f'{ms / floor:.2f}'} | {memory:.0f} |")


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    table()


if __name__ == "__main__":
    main()
