"""The result files: one for each run, by group, name and seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {
    "supcon": "SupCon (out)",
    "supcon-in": "SupCon (in)",
    "simclr": "SimCLR",
    "cross-entropy": "cross-entropy",
    "max-margin": "max-margin",
}
#: The method whose claim is tested, and the three that most studies have.
OWN, THREE = "supcon", ("supcon", "simclr", "cross-entropy")

#: The runs of one name by seed.
Runs = Mapping[int, Mapping[str, Any]]
Results = Mapping[str, Mapping[str, Runs]]
#: From a run to a number.
NumberOf = Callable[[Mapping[str, Any]], float]


def read(folder: Path = RESULTS) -> Results:
    """The runs by group, name and seed."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for file in sorted(folder.glob("*/*-seed-*.json")):
        name, _, seed = file.stem.rpartition("-seed-")
        found.setdefault(file.parent.name, {}).setdefault(name, {})[int(seed)] = json.loads(file.read_text())
    return found


def runs_of(results: Results, group: str, name: str) -> Runs:
    return results.get(group, {}).get(name, {})


def common_seeds(*of: Mapping[int, Any]) -> list[int]:
    return sorted(set.intersection(*map(set, of)))


def is_correct(run: Mapping[str, Any]) -> torch.Tensor:
    """Whether the linear probe is correct, by test image."""
    packed = np.frombuffer(bytes.fromhex(run["correct"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=run["test_images"])).double()


def linear_probe(run: Mapping[str, Any]) -> float:
    return run["linear_probe"]


def k_nn(run: Mapping[str, Any]) -> float:
    return run["knn"]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
