"""Time and memory to plan an epoch: the class-aware sampler beside two libraries' own.

    OMP_NUM_THREADS=1 uv run python benchmarks/samplers.py [ROWS]

Each runs in a process of its own; `resident_mib` is what it holds after imports and labels, `peak_mib` its most ever.
"""

from __future__ import annotations

import json
import subprocess
import sys

COMMON = r"""
import pathlib, re, sys, time, torch
torch.set_num_threads(1)
rows, classes = int(sys.argv[1]), int(sys.argv[2])
labels = torch.arange(rows) * 7919 % classes
def mib(what):  # of Linux; ru_maxrss would include the process that started this one
    return int(re.search(what + r":\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
"""
OURS = """
from mmcon.samplers.class_balanced import ClassAwareSampler
before, t = mib('VmRSS'), time.perf_counter()
sampler = ClassAwareSampler(labels, batch_size=256, samples_per_class=4, seed=0)
built = time.perf_counter()
positions, _ = sampler.epoch_order(0)
whole, seen, peak = time.perf_counter(), len(positions), mib("VmHWM")
unseen = 1 - len(positions.unique()) / rows
del sampler, positions, _
again = ClassAwareSampler(labels, batch_size=256, samples_per_class=4, seed=0)
t2 = time.perf_counter()
again.batch(again.steps_per_epoch * 3 + again.steps_per_epoch // 2)
middle = time.perf_counter() - t2
"""
PML = """
from pytorch_metric_learning.samplers import MPerClassSampler
names = labels.tolist()
before, t = mib('VmRSS'), time.perf_counter()
sampler = MPerClassSampler(names, m=4, batch_size=256, length_before_new_iter=rows)
built = time.perf_counter()
positions = torch.tensor(list(sampler))
whole, seen, middle, peak = time.perf_counter(), len(positions), None, mib("VmHWM")
unseen = 1 - len(positions.unique()) / rows
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
positions = torch.tensor([i for batch in sampler for i in batch])
whole, seen, middle, peak = time.perf_counter(), len(positions), None, mib("VmHWM")
unseen = 1 - len(positions.unique()) / rows
"""
REPORT = """
import json
print(json.dumps({"build_s": round(built - t, 2), "epoch_s": round(whole - built, 2), "start_in_the_middle_s":
      middle and round(middle, 2), "resident_mib": before, "peak_mib": peak, "rows": seen, "unseen": round(unseen, 3)}))
"""


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for name, code in {"mmcon": OURS, "pytorch-metric-learning": PML, "sentence-transformers": ST}.items():
        command = [sys.executable, "-c", COMMON + code + REPORT, str(rows), str(max(100, rows // 1000))]
        done = subprocess.run(command, capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
        print(json.dumps({"sampler": name, "result": json.loads(last) if done.returncode == 0 else last}), flush=True)


if __name__ == "__main__":
    main()
