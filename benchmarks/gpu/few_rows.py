"""What could compute the loss of few rows on a GPU, where launches take longer than products.

    uv run python benchmarks/gpu/few_rows.py
    uv run python benchmarks/gpu/few_rows.py --sizes 512 --device cpu     # to try the script

Forward and backward pass by the kernels, by full matrices, and by the naive form that is compiled, the latter two also
as CUDA graphs; then a layer and the loss under torch.compile, in whose CUDA graphs the loss is no part. What fails is
named below its table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import loss as measured
import torch
from loss import CLASSES, TEMPERATURE, WIDTH, attempted, milliseconds, naive_step_of, step_of, unit_rows
from torch import Tensor
from torch.nn import functional

from mmcon.affinity import SameLabel
from mmcon.losses import weighted_supcon


def recorded(run: Callable[[], object]) -> Callable[[], object]:
    """A call as a CUDA graph; on a CPU the call itself."""
    if measured.DEVICE.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def by_choice(sizes: list[int], backend: str) -> None:
    """What could compute few rows, where launches take longer than the kernels."""
    print(f"| n | {backend}, ms | dense | dense, one CUDA graph | naive form, torch.compile | the same, CUDA graphs |")
    print("|---|---|---|---|---|---|")
    failures = []
    for n in sizes:
        z, labels = unit_rows(n), torch.arange(n, device=measured.DEVICE) % CLASSES
        makes: list[Callable[[], Callable[[], object]]] = [
            lambda z=z, labels=labels: step_of(z, labels, backend),
            lambda z=z, labels=labels: step_of(z, labels, "dense"),
            lambda z=z, labels=labels: recorded(step_of(z, labels, "dense")),
            lambda z=z, labels=labels: naive_step_of(z, labels),
            lambda z=z, labels=labels: naive_step_of(z, labels, mode="reduce-overhead"),
        ]
        cells = []
        for make in makes:
            try:
                cells.append(f"{attempted(make, 20):.3f}")
            except (RuntimeError, AssertionError) as reason:
                cells.append("failed")
                failures.append(f"n = {n:,}: {str(reason).splitlines()[0]}")
        print(f"| {n:,} | {' | '.join(cells)} |", flush=True)
    print(*failures, sep="\n")


def in_compiled_steps(n: int) -> None:
    """A layer and the loss: a node of a compiled graph, alone and between CUDA graphs."""
    print(f"\nA layer and the loss, n = {n:,}:\n\n| | ms | difference of the loss |\n|---|---|---|")
    x, labels = unit_rows(n), torch.arange(n, device=measured.DEVICE) % CLASSES
    weight = torch.eye(WIDTH, device=measured.DEVICE).requires_grad_()

    def layer_and_loss(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        rows = functional.normalize(x @ weight, dim=1)
        return weighted_supcon(rows, None, SameLabel(labels), temperature=TEMPERATURE)

    compiled = torch.compile(layer_and_loss), torch.compile(layer_and_loss, mode="reduce-overhead")
    expected = float(layer_and_loss(x, weight, labels).detach())
    for name, function in zip(("as it is", "torch.compile", "CUDA graphs"), (layer_and_loss, *compiled), strict=True):

        def run(function: Callable[..., Tensor] = function) -> Tensor:
            weight.grad = None
            loss = function(x, weight, labels)
            loss.backward()
            return loss.detach()

        try:
            spent = milliseconds(run, 20)
            print(f"| {name} | {spent:.3f} | {abs(float(run()) - expected):.1e} |", flush=True)
        except (RuntimeError, AssertionError) as reason:
            print(f"| {name} | failed: {str(reason).splitlines()[0]} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 4096, 16384], help="of rows")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    measured.DEVICE = torch.device(options.device)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{name}, d = {WIDTH}, {CLASSES} classes, T = {TEMPERATURE}\n")
    by_choice(options.sizes, "triton" if on_gpu else "tiled")
    in_compiled_steps(options.sizes[min(1, len(options.sizes) - 1)])


if __name__ == "__main__":
    main()
