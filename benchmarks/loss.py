"""Time and memory of the loss and of other implementations, in one run.

    uv run python benchmarks/loss.py                 # peers: about five minutes on two cores
    uv run python benchmarks/loss.py --floor         # every form beside its floor
    uv run python benchmarks/loss.py --floor --quick --n 16384      # the same once: three to five minutes, estimated
    uv run python benchmarks/loss.py --size          # growth with n, up to 65,536 rows
    uv run python benchmarks/loss.py --cpu-time --threads 1 --rounds 5 --floor      # on a busy machine

Times are forward + backward of one loss on `n d` float32 unit rows. The implementations alternate in rounds. The table
has the median over rounds, and the median of the ratios *within* rounds: other load on the machine affects all of them.
Extra memory is the peak of bytes allocated by torch beyond those allocated before the call. Peers that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from loss_forms import TEMPERATURE, cases, clip, floor, unit_rows
from torch import Tensor

from mmcon.affinity import Dense, SameLabel, TimeKernel
from mmcon.losses import weighted_supcon
from mmcon.operations.memory_budget import peak_bytes

Clock = Callable[[], float]
Losses = dict[str, Callable[..., Tensor]]


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


def step(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], trained: int) -> None:
    leaves = [x.detach().requires_grad_(i < trained) for i, x in enumerate(inputs)]
    value = loss(*leaves)
    if value.requires_grad:  # a peer that goes backward by itself returns a number
        value.backward()


def seconds(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def extra_mib(run: Callable[[], object]) -> float:
    """Peak of allocated bytes during a step by one thread, in MiB: the profiler does not see those of other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return peak_bytes(run) / 2**20
    finally:
        torch.set_num_threads(threads)


def side_by_side(title: str, losses: Losses, inputs: tuple[Tensor, ...], rounds: int, clock: Clock) -> None:
    """Print a table, with ratios to the first implementation within rounds."""
    steps = {name: (lambda loss=loss: step(loss, inputs, len(inputs))) for name, loss in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for run in steps.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in steps.items():
            times[name].append(seconds(run, clock))
    ours, *_ = losses
    print(f"\n{title}, {torch.get_num_threads()} threads, medians of {rounds} rounds\n")
    print("| | ms | times ours | extra MiB | memory of ours |\n|---|---|---|---|---|", flush=True)
    memory = {name: extra_mib(run) for name, run in steps.items()}
    for name in losses:
        ratio = statistics.median(t / o for t, o in zip(times[name], times[ours], strict=True))
        share = memory[ours] / memory[name]
        print(
            f"| {name} | {statistics.median(times[name]) * 1e3:.0f} | {ratio:.2f} | {memory[name]:.1f} | {share:.2f} |",
            flush=True,
        )


def floors(n: int, d: int, rounds: int, clock: Clock, only: list[str], *, warm_up: bool = True) -> None:
    """Print each form beside its floor, call by call."""
    print(f"\nForms and their floors, n = {n}, d = {d}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print("| | ms | floor, ms | times the floor | extra MiB |\n|---|---|---|---|---|", flush=True)
    for case in cases(n, d):
        if not any(word in case.name for word in only):
            continue
        run = lambda case=case: step(case.loss, case.inputs, case.trained)  # noqa: E731
        anchors, candidates = case.inputs[0], case.inputs[1] if len(case.inputs) == 2 else None
        bare = lambda a=anchors, c=candidates, case=case: floor(a, c, case.trained)  # noqa: E731
        if warm_up:
            run()
            bare()
        times = [(seconds(run, clock), seconds(bare, clock)) for _ in range(rounds)]
        ours, least = (statistics.median(side) * 1e3 for side in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(f"| {case.name} | {ours:.0f} | {least:.0f} | {ratio:.2f} | {extra_mib(run):.1f} |", flush=True)


def class_labels(n: int, d: int, rounds: int, clock: Clock) -> None:
    z, labels = unit_rows(n, d), torch.randint(0, 100, (n,), generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(naive_labels)
    losses: Losses = {
        "mmcon, tiled": lambda z: weighted_supcon(z, None, SameLabel(labels), temperature=TEMPERATURE, backend="tiled"),
        "torch.compile of the naive form": lambda z: compiled(z, labels),
        "the naive form": lambda z: naive_labels(z, labels),
        "SupContrast's formula": lambda z: as_published(z, labels),
        **pytorch_metric_learning(labels),
        **lightly(n),
    }
    side_by_side(f"Class labels, n = {n}, d = {d}", losses, (z,), rounds, clock)


def pytorch_metric_learning(labels: Tensor) -> Losses:
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError:
        return {}
    loss = SupConLoss(temperature=TEMPERATURE)
    return {"pytorch-metric-learning SupConLoss": lambda z: loss(z, labels)}


def lightly(n: int) -> Losses:
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return {}
    loss = NTXentLoss(temperature=TEMPERATURE)
    return {"lightly NTXentLoss (two views, no labels)": lambda z: loss(z[: n // 2], z[n // 2 :])}


def cross_modal(n: int, d: int, rounds: int, clock: Clock) -> None:
    inputs = unit_rows(n, d), unit_rows(n, d, 1)
    compiled = torch.compile(naive_clip)
    losses: Losses = {
        "mmcon, tiled": clip,
        "torch.compile of the naive form": compiled,
        "the naive form": naive_clip,
        **open_clip(),
        **sentence_transformers(),
    }
    side_by_side(f"CLIP, both directions, n = {n}, d = {d}", losses, inputs, rounds, clock)


def naive_clip(image: Tensor, text: Tensor) -> Tensor:
    s, partner = image @ text.T / TEMPERATURE, torch.arange(len(image))
    return sum((torch.nn.functional.cross_entropy(x, partner) for x in (s, s.T)), torch.zeros(())) / 2


def open_clip() -> Losses:
    try:
        from open_clip.loss import ClipLoss
    except ImportError:
        return {}
    loss = ClipLoss()
    return {"open_clip ClipLoss": lambda image, text: loss(image, text, torch.tensor(1 / TEMPERATURE))}


def sentence_transformers() -> Losses:
    """The cached loss from embeddings on, whose backward pass is part of it."""
    try:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
        from sentence_transformers.util import dot_score
    except ImportError:
        return {}
    loss = CachedMultipleNegativesRankingLoss(
        torch.nn.Sequential(torch.nn.Identity()),  # pyright: ignore
        scale=1 / TEMPERATURE,
        similarity_fct=dot_score,
        mini_batch_size=512,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    name = "sentence-transformers cached multiple negatives, chunks of 512"
    return {name: lambda image, text: loss.calculate_loss([[image], [text]], with_backward=True)}


def graded(n: int, d: int, rounds: int, clock: Clock) -> None:
    g = torch.Generator().manual_seed(1)
    z, times = unit_rows(n, d), torch.rand(n, generator=g) * 10
    groups = torch.randint(0, n // 16, (n,), generator=g)
    dense = torch.rand(n, n, generator=g)
    compiled_times, compiled = torch.compile(naive_times), torch.compile(naive)
    kernel = TimeKernel(times, group=groups, width_seconds=1.0)
    losses: Losses = {
        "mmcon, tiled": lambda z: weighted_supcon(z, None, kernel, temperature=TEMPERATURE, backend="tiled"),
        "torch.compile of the naive form": lambda z: compiled_times(z, times, groups),
    }
    side_by_side(f"Time kernel within groups of 16, n = {n}, d = {d}", losses, (z,), rounds, clock)
    losses = {
        "mmcon, tiled": lambda z: weighted_supcon(z, None, Dense(dense), temperature=TEMPERATURE, backend="tiled"),
        "torch.compile of the naive form": lambda z: compiled(z, dense),
    }
    side_by_side(f"Dense weights, n = {n}, d = {d}", losses, (z,), rounds, clock)


def growth(d: int) -> None:
    """Memory and time for three sizes, each four times the previous."""
    print("\n| n | s | extra MiB | bytes a row |\n|---|---|---|---|", flush=True)
    for n in (4096, 16384, 65536):
        z, labels = unit_rows(n, d), torch.arange(n) % 1000
        loss = lambda z, y=labels: weighted_supcon(z, None, SameLabel(y), temperature=TEMPERATURE, backend="tiled")  # noqa: E731
        run = lambda loss=loss, z=z: step(loss, (z,), 1)  # noqa: E731
        spent, memory = seconds(run), extra_mib(run)
        print(f"| {n} | {spent:.2f} | {memory:.1f} | {memory * 2**20 / n:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--floor", action="store_true", help="every form beside its floor instead of the comparison")
    parser.add_argument(
        "--only", nargs="*", default=[""], help="of `--floor`, the cases whose name contains one of these"
    )
    parser.add_argument("--quick", action="store_true", help="of `--floor`, one round without a call to warm up")
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
    if options.floor:
        rounds = 1 if options.quick else options.rounds
        floors(options.n, options.d, rounds, clock, options.only, warm_up=not options.quick)
        return
    cross_modal(options.n, options.d, options.rounds, clock)
    class_labels(options.n, options.d, options.rounds, clock)
    graded(options.n, options.d, options.rounds, clock)


if __name__ == "__main__":
    main()
