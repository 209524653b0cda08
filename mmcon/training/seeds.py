"""Seeds of a run: the random state inside models, and one run per seed with means and intervals of all figures."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmcon.errors import ConfigError, InputError
from mmcon.files import read_json, replace_file
from mmcon.random import keys
from mmcon.training.config import SAFE_CHANGES, as_plain, differences
from mmcon.training.run_folder import restarted_folder

#: The file in the folder of a seed with the settings under which it has ended.
FINISHED = "finished.json"

C = TypeVar("C")


def seed_model(seed: int, *names: str | int) -> None:
    """Seed the randomness inside models (initial weights, dropout) from the seed of the run and names of its use."""
    table = keys(seed=seed)
    for name in names:
        table = table.child(str(name))
    torch.manual_seed(int(table.state[0]))


def run_over_seeds(main: Callable[[C], Any], config: C) -> dict[str, dict[str, Any]]:
    """Call a recipe's `main` once or, if the configuration has `seeds`, once per seed in a folder of its own.

    The folders are `seed-0`, `seed-1`, … in the output folder; `seeds.json` beside them has every metric of all
    results.json. No seed is selected. With `resume`, a seed that has ended under the same settings is not run again;
    all others go on, and refuse settings that change what a step computes.

    Args:
        main: trains and evaluates, and writes results.json to `config.output_dir`.
        config: a frozen dataclass with `seed`, `seeds`, `output_dir`, `resume` and `restart`.

    Returns:
        The content of seeds.json; empty without seeds.

    Raises:
        ConfigError: a seed is given twice, there is no output folder, or there are several ranks.
    """
    base: Any = config
    seeds = tuple(base.seeds)
    if not seeds:
        main(config)
        return {}
    if len(set(seeds)) < len(seeds) or base.output_dir is None:
        expected = "different seeds and an --output-dir"
        raise ConfigError("--seeds", expected=expected, got=f"{seeds}, --output-dir {base.output_dir}")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "--seeds", expected="one process", got="several", fix="launch once per seed, with --seed, in a shell loop"
        )
    folder, results = Path(base.output_dir), {}
    for seed in seeds:
        own: Any = dataclasses.replace(base, seed=seed, seeds=(), output_dir=folder / f"seed-{seed}")
        if not (base.resume and _is_finished(own)):
            # Else a run under other settings that is killed between its results and this file would count as this one.
            (_folder_of(own) / FINISHED).unlink(missing_ok=True)
            main(own)
            replace_file(_folder_of(own) / FINISHED, json.dumps(as_plain(own), indent=1) + "\n")
        results[seed] = json.loads((_folder_of(own) / "results.json").read_text())
    summary = summarize(results)
    replace_file(folder / "seeds.json", json.dumps(summary, indent=2) + "\n")
    print(_table(summary))
    return summary


def _folder_of(config: Any) -> Path:
    """The folder of the run of one seed: with `restart`, the one beside damaged checkpoints."""
    return restarted_folder(config.output_dir) if config.resume and config.restart else config.output_dir


def _is_finished(config: Any) -> bool:
    """Whether the run of one seed has left results, under settings that would lead to the same ones now."""
    folder = _folder_of(config)
    before = read_json(folder / FINISHED)
    changed = differences(before, as_plain(config)).keys() - (SAFE_CHANGES - {"max_steps"})
    return bool(before) and not changed and bool(read_json(folder / "results.json"))


def summarize(results: Mapping[int, Mapping[str, Any]], *, level: float = 0.95) -> dict[str, dict[str, Any]]:
    """Every number that all results have, by its path: the value of each seed, the mean, and Student's t interval.

    Args:
        results: by seed, nested mappings.
        level: confidence level of the interval, which needs two seeds (and is wide with fewer than five).
    """
    if not results:
        raise InputError("summarize", expected="results of at least one seed", got="none")
    flat = {seed: _numbers(values) for seed, values in results.items()}
    shared = [name for name in next(iter(flat.values())) if all(name in values for values in flat.values())]
    return {name: _summary_of({seed: values[name] for seed, values in flat.items()}, level) for name in shared}


def _table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as text, one line per metric."""
    width = max(map(len, summary), default=0)
    lines = []
    for name, metric in summary.items():
        each = "  ".join(f"{seed}: {value:.4g}" for seed, value in metric["by_seed"].items())
        interval = f" [{metric['low']:.4g}, {metric['high']:.4g}]" if "low" in metric else ""
        lines.append(f"{name:{width}}  {metric['mean']:.4g}{interval}  ({each})")
    return "\n".join(lines)


def _summary_of(by_seed: dict[int, float], level: float) -> dict[str, Any]:
    values = torch.tensor(list(by_seed.values()), dtype=torch.float64)
    metric: dict[str, Any] = {"by_seed": {str(seed): v for seed, v in by_seed.items()}, "mean": float(values.mean())}
    if len(values) > 1:
        from scipy import stats  # imported late: it takes as long as half of torch

        half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * float(values.std()) / len(values) ** 0.5
        metric |= {"low": metric["mean"] - half, "high": metric["mean"] + half, "interval": f"Student's t, {level:.0%}"}
    return metric


def _numbers(values: Mapping[str, Any] | Sequence[Any], path: str = "") -> dict[str, float]:
    """The numbers of nested mappings, by path; lists, texts and booleans are skipped."""
    found: dict[str, float] = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        here = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            found |= _numbers(value, here)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[here] = float(value)
    return found
