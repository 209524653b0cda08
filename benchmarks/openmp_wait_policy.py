"""How long torch's threads should spin at a barrier before they sleep: a training step, quiet and beside busy programs.

    python benchmarks/openmp_wait_policy.py                   # no other program, and a busy one for each core
    python benchmarks/openmp_wait_policy.py --arms as-it-is   # on a machine that is busy already

libgomp, which torch's wheels for Linux bring, reads `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT` when it is loaded. So each
policy runs in a process of its own: forward, loss, backward and optimizer of the small encoder of the bundled images,
with as many threads as cores. Processes of all policies take turns; the medians of wall and processor time count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from files import busy_programs

POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    "ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
}


def steps(seconds: float, batch: int) -> dict[str, float]:
    """Medians in ms of the steps that end within so many seconds, of at least five."""
    import torch

    from mmcon.affinity import SameLabel
    from mmcon.losses import weighted_supcon
    from mmcon.models.encoders import create_encoder

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    generator = torch.Generator().manual_seed(0)
    encoder = create_encoder("mmcon/resnet-tiny", in_channels=1)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    images = torch.rand(batch, 1, 28, 28, generator=generator)
    labels = torch.arange(batch) % 10
    wall, processor, end = [], [], time.perf_counter() + seconds
    while len(wall) < 6 or time.perf_counter() < end:
        began = time.perf_counter(), time.process_time()
        rows = torch.nn.functional.normalize(encoder(images), dim=1)
        weighted_supcon(rows, None, SameLabel(labels), temperature=0.1).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wall.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    return {name: 1e3 * statistics.median(ms[1:]) for name, ms in (("wall", wall), ("processor", processor))}


def run_alone(policy: dict[str, str], options: argparse.Namespace) -> dict[str, float]:
    """The medians of a process with this policy."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    words = [
        sys.executable,
        __file__,
        "--child",
        "--seconds",
        str(options.seconds),
        "--batch-size",
        str(options.batch_size),
    ]
    done = subprocess.run(words, env=environment | policy, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["quiet", "busy"], choices=["quiet", "busy", "as-it-is"])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(steps(options.seconds, options.batch_size)))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, batches of {options.batch_size}, medians of {options.rounds} processes")
    print("| machine | policy | ms a step | processor ms a step |\n|---|---|---|---|", flush=True)
    for arm in options.arms:
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in options.policies}
        with busy_programs(cores if arm == "busy" else 0):
            for _ in range(options.rounds):
                for name in options.policies:
                    seen[name].append(run_alone(POLICIES[name], options))
        for name, runs in seen.items():
            wall, processor = (statistics.median(run[clock] for run in runs) for clock in ("wall", "processor"))
            print(f"| {arm} | {name} | {wall:.0f} | {processor:.0f} |", flush=True)


if __name__ == "__main__":
    main()
