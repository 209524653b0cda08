"""Time and memory to order an epoch: the class-aware sampler compared with those of two libraries.

    OMP_NUM_THREADS=1 uv run python benchmarks/samplers.py [SAMPLES]

Each runs in a separate process. `resident_mib` is its memory after imports and labels, `peak_mib` its peak memory.
"""

from __future__ import annotations

import json
import subprocess
import sys

COMMON = r"""
import pathlib, re, sys, time, torch
torch.set_num_threads(1)
samples, classes = int(sys.argv[1]), int(sys.argv[2])
labels = torch.arange(samples) * 7919 % classes
def mib(what):  # Linux only; ru_maxrss would include the parent process
    return int(re.search(what + r":\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
"""
OURS = """
from mmcon.samplers.class_balanced import ClassAwareSampler
before, t = mib('VmRSS'), time.perf_counter()
sampler = ClassAwareSampler(labels, batch_size=256, samples_per_class=4, seed=0)
built = time.perf_counter()
indices, _ = sampler.epoch_order(0)
whole, seen, peak = time.perf_counter(), len(indices), mib("VmHWM")
unseen = 1 - len(indices.unique()) / samples
del sampler, indices, _
again = ClassAwareSampler(labels, batch_size=256, samples_per_class=4, seed=0)
t2 = time.perf_counter()
again.batch(again.steps_per_epoch * 3 + again.steps_per_epoch // 2)
middle = time.perf_counter() - t2
"""
PML = """
from pytorch_metric_learning.samplers import MPerClassSampler
names = labels.tolist()
before, t = mib('VmRSS'), time.perf_counter()
sampler = MPerClassSampler(names, m=4, batch_size=256, length_before_new_iter=samples)
built = time.perf_counter()
indices = torch.tensor(list(sampler))
whole, seen, middle, peak = time.perf_counter(), len(indices), None, mib("VmHWM")
unseen = 1 - len(indices.unique()) / samples
"""
ST = """
from datasets import Dataset
from sentence_transformers.sampler import GroupByLabelBatchSampler
data = Dataset.from_dict({"label": labels.tolist()})
before, t = mib('VmRSS'), time.perf_counter()
generator = torch.Generator().manual_seed(0)
sampler = GroupByLabelBatchSampler(data, batch_size=256, drop_last=True, valid_label_columns=["label"],
                                   generator=generator)
built = time.perf_counter()
indices = torch.tensor([i for batch in sampler for i in batch])
whole, seen, middle, peak = time.perf_counter(), len(indices), None, mib("VmHWM")
unseen = 1 - len(indices.unique()) / samples
"""
REPORT = """
import json
print(json.dumps({"build_s": round(built - t, 2), "epoch_s": round(whole - built, 2), "start_in_the_middle_s":
      middle and round(middle, 2), "resident_mib": before, "peak_mib": peak, "samples": seen,
      "unseen": round(unseen, 3)}))
"""


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for name, code in {"mmcon": OURS, "pytorch-metric-learning": PML, "sentence-transformers": ST}.items():
        command = [sys.executable, "-c", COMMON + code + REPORT, str(samples), str(max(100, samples // 1000))]
        done = subprocess.run(command, capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
        print(json.dumps({"sampler": name, "result": json.loads(last) if done.returncode == 0 else last}), flush=True)


if __name__ == "__main__":
    main()
