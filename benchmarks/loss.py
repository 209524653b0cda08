"""Time and memory of the loss and of other implementations, in one run.

    uv run python benchmarks/loss.py            # about three minutes on two cores
    uv run python benchmarks/loss.py --size     # growth with n, up to 65,536 rows

Times are forward + backward of one loss on `n d` float32 unit rows. The implementations alternate in rounds. The table
has the median over rounds, and the median of the ratios *within* rounds: other load on the machine affects all of them.
Extra memory is the peak of bytes allocated by torch beyond those allocated before the call.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mmcon.affinity import Dense, SameLabel, TimeKernel
from mmcon.losses import weighted_supcon
from mmcon.operations.memory_budget import peak_bytes

TEMPERATURE = 0.1


def naive(z: Tensor, weights: Tensor) -> Tensor:
    """The weighted loss by full matrices."""
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    s = (z @ z.T) / TEMPERATURE
    log_p = s - s.masked_fill(own, float("-inf")).logsumexp(1, keepdim=True)
    weights = weights.masked_fill(own, 0)
    sums = weights.sum(1)
    losses = -(weights * log_p).sum(1) / torch.where(sums > 0, sums, 1)
    return losses.sum() / (sums > 0).sum()


def naive_labels(z: Tensor, labels: Tensor) -> Tensor:
    return naive(z, (labels[:, None] == labels).to(z.dtype))


def naive_times(z: Tensor, times: Tensor, groups: Tensor) -> Tensor:
    distance = (times[:, None] - times).abs()
    return naive(z, torch.exp(-0.5 * distance.square()) * (groups[:, None] == groups))


def as_published(z: Tensor, labels: Tensor) -> Tensor:
    """SupContrast's SupConLoss: row maximum subtracted, mask without self, mean over all anchors."""
    mask = (labels[:, None] == labels).float()
    logits = torch.div(z @ z.T, TEMPERATURE)
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = torch.ones_like(mask).scatter(1, torch.arange(len(z)).view(-1, 1), 0)
    mask = mask * others
    log_p = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    pairs = mask.sum(1)
    pairs = torch.where(pairs < 1e-6, 1, pairs)
    return -((mask * log_p).sum(1) / pairs).mean()


def unit_rows(n: int, d: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)), dim=1)


def step(loss: Callable[[Tensor], Tensor], z: Tensor) -> None:
    z = z.detach().requires_grad_()
    loss(z).backward()


def seconds(loss: Callable[[Tensor], Tensor], z: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    step(loss, z)
    return clock() - start


def extra_mib(loss: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """Peak of allocated bytes during a step, in MiB, counted by torch's profiler."""
    return peak_bytes(lambda: step(loss, z)) / 2**20


def side_by_side(
    title: str, losses: dict[str, Callable[[Tensor], Tensor]], z: Tensor, rounds: int, clock: Callable[[], float]
) -> None:
    """Print a table, with ratios to the first implementation within rounds."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    for loss in losses.values():
        step(loss, z)
        step(loss, z)
    for _ in range(rounds):
        for name, loss in losses.items():
            times[name].append(seconds(loss, z, clock))
    ours, *_ = losses
    print(f"\n{title}, {torch.get_num_threads()} threads, medians of {rounds} rounds\n")
    print("| | ms | times ours | extra MiB | memory of ours |\n|---|---|---|---|---|")
    memory = {name: extra_mib(loss, z) for name, loss in losses.items()}
    for name in losses:
        ratio = statistics.median(t / o for t, o in zip(times[name], times[ours], strict=True))
        share = memory[ours] / memory[name]
        print(
            f"| {name} | {statistics.median(times[name]) * 1e3:.0f} | {ratio:.2f} | {memory[name]:.1f} | {share:.2f} |"
        )


def class_labels(n: int, d: int, rounds: int, clock: Callable[[], float]) -> None:
    z, labels = unit_rows(n, d), torch.randint(0, 100, (n,), generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(naive_labels)
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "mmcon, tiled": lambda z: weighted_supcon(z, None, SameLabel(labels), temperature=TEMPERATURE, backend="tiled"),
        "torch.compile of the naive form": lambda z: compiled(z, labels),
        "the naive form": lambda z: naive_labels(z, labels),
        "SupContrast's formula": lambda z: as_published(z, labels),
        **pytorch_metric_learning(labels),
        **lightly(n),
    }
    side_by_side(f"Class labels, n = {n}, d = {d}", losses, z, rounds, clock)


def pytorch_metric_learning(labels: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError:
        return {}
    loss = SupConLoss(temperature=TEMPERATURE)
    return {"pytorch-metric-learning SupConLoss": lambda z: loss(z, labels)}


def lightly(n: int) -> dict[str, Callable[[Tensor], Tensor]]:
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return {}
    loss = NTXentLoss(temperature=TEMPERATURE)
    return {"lightly NTXentLoss (two views, no labels)": lambda z: loss(z[: n // 2], z[n // 2 :])}


def graded(n: int, d: int, rounds: int, clock: Callable[[], float]) -> None:
    g = torch.Generator().manual_seed(1)
    z, times = unit_rows(n, d), torch.rand(n, generator=g) * 10
    groups = torch.randint(0, n // 16, (n,), generator=g)
    dense = torch.rand(n, n, generator=g)
    compiled_times, compiled = torch.compile(naive_times), torch.compile(naive)
    kernel = TimeKernel(times, group=groups, width_seconds=1.0)
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "mmcon, tiled": lambda z: weighted_supcon(z, None, kernel, temperature=TEMPERATURE, backend="tiled"),
        "torch.compile of the naive form": lambda z: compiled_times(z, times, groups),
    }
    side_by_side(f"Time kernel within groups of 16, n = {n}, d = {d}", losses, z, rounds, clock)
    losses = {
        "mmcon, tiled": lambda z: weighted_supcon(z, None, Dense(dense), temperature=TEMPERATURE, backend="tiled"),
        "torch.compile of the naive form": lambda z: compiled(z, dense),
    }
    side_by_side(f"Dense weights, n = {n}, d = {d}", losses, z, rounds, clock)


def growth(d: int) -> None:
    """Memory and time for three sizes, each four times the previous."""
    print("\n| n | s | extra MiB | bytes a row |\n|---|---|---|---|")
    for n in (4096, 16384, 65536):
        z, labels = unit_rows(n, d), torch.arange(n) % 1000
        loss = lambda z, y=labels: weighted_supcon(z, None, SameLabel(y), temperature=TEMPERATURE, backend="tiled")  # noqa: E731
        spent, memory = seconds(loss, z), extra_mib(loss, z)
        print(f"| {n} | {spent:.2f} | {memory:.1f} | {memory * 2**20 / n:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", action="store_true", help="growth with n instead of the comparison")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time, for one thread on a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    if options.size:
        growth(options.d)
        return
    class_labels(options.n, options.d, options.rounds, clock)
    graded(options.n, options.d, options.rounds, clock)


if __name__ == "__main__":
    main()
