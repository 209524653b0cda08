"""Sweeps over hyper-parameters of contrastive and supervised training: how stable is each method? Resumable, parallel.

    uv run python recipes/stability.py                                          # all studies on the bundled images
    uv run python recipes/stability.py --data photos --studies temperature batch-size --methods supcon simclr
    uv run python recipes/stability.py --processes 2 --resume --output-dir runs/stability

Every run is one of the reference recipe, and its flags are those of this one (`--encoder`, `--epochs`, `--batch-size`,
…). Each method gets the same search: the learning rates of `--rates`, tried once with each optimizer on a fifth of the
training images that is held out; all others run on the test images with the rate so chosen. The folder gets a JSON line
for each run, and a table and a picture for each study, while the sweep goes on.

After Khosla et al. 2020, "Supervised Contrastive Learning", sections 4.3 and 4.4.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import mmcon
from mmcon.errors import ConfigError, nearest
from mmcon.evaluation.statistics import t_interval
from mmcon.files import append_line, read_lines, replace_file
from mmcon.sources.base import Source, Subset
from mmcon.sources.splits import held_out
from mmcon.training.config import SAFE_CHANGES, as_plain, from_mapping
from mmcon.training.default_rates import default_rates
from mmcon.training.process_calls import calls_in_processes
from mmcon.training.run_folder import unused_folder
from mmcon.training.run_lock import RunLock

HELD_OUT = 0.2
#: Between two reports while the sweep goes on.
REPORT_SECONDS = 20.0


def _reference() -> Any:
    """The reference recipe: the file beside this one, or that of the package if this one is a copy."""
    file = Path(__file__).with_name("imagenet_supcon.py")
    if not file.exists():
        from mmcon.cli.recipe import recipes

        file = recipes()["imagenet_supcon"]
    spec = importlib.util.spec_from_file_location("imagenet_supcon", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("imagenet_supcon", module)
    spec.loader.exec_module(module)
    return module


reference = _reference()

OBJECTIVES = typing.get_args(typing.get_type_hints(reference.Config)["objective"])
METHODS: dict[str, dict[str, Any]] = {name: {"objective": name} for name in OBJECTIVES} | {
    "supcon-in": {"objective": "supcon", "form": "in"},
    "cross-entropy-mixup": {"objective": "cross-entropy", "mix": "mixup"},
    "cross-entropy-cutmix": {"objective": "cross-entropy", "mix": "cutmix"},
}
WITHOUT_TEMPERATURE = ("triplet", "cross-entropy", "max-margin")
VIEWS = {
    "none": "image/plain", "crop-flip": "image/crop-flip", "AutoAugment": "image/supcon-autoaugment",
    "RandAugment": "stability/randaugment", "SimAugment": "image/simclr", "stacked": "image/stacked-randaugment-talk",
}  # fmt: skip


def randaugment(*, size: int = 224, area: tuple[float, float] = (0.08, 1.0)) -> mmcon.ViewGenerator:
    """RandAugment after a random crop and flip."""
    crop = mmcon.create_view("image/crop-flip", size=size, area=area)
    return mmcon.Chain(crop, mmcon.create_view("image/randaugment"))


if "stability/randaugment" not in mmcon.list_views("image"):
    mmcon.register_view("stability/randaugment", modality="image")(randaugment)

SHARES = (0.01, 0.05, 0.1, 0.25, 1.0)
# By study and by the name of a point: flags of the reference recipe. `rate_factor` multiplies the chosen rate.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "methods": {"defaults": {}},
    "temperature": {f"{value:g}": {"temperature": value} for value in (0.02, 0.05, 0.07, 0.1, 0.2)},
    "batch-size": {str(value): {"batch_size": value} for value in (32, 64, 128, 256, 512)},
    "augmentation": {name: {"view": view} for name, view in VIEWS.items()},
    "augmentation-of-stage-two": {n: {"linear_stage": "published", "linear_view": v} for n, v in VIEWS.items()},
    "optimizer": {name: {"optimizer": name} for name in ("sgd", "lars", "adamw")},
    "learning-rate": {f"× {value:g}": {"rate_factor": value} for value in (0.1, 0.3, 1.0, 3.0, 10.0)},
    "label-fraction": {f"{100 * share:g} %": {"label_fraction": share if share < 1 else None} for share in SHARES},
    "width-and-strength": {
        f"{width} × {strength:g}": {"encoder": f"mmcon/resnet-tiny{suffix}", "pretrained": False, "strength": strength}
        for (width, suffix), strength in product(((16, "-16"), (32, ""), (64, "-64")), (0.25, 0.5, 1.0))
    },
    "order": {name: {"sampler": sampler} for name, sampler in (("shuffled", "uniform"), ("fixed", "fixed-order"))},
}


class Searched(reference.Config):
    """The settings of a run of the search: a fifth of the training images takes the place of the test images."""

    def open_splits(self, quarantine: Path, *, tiny_step: int = 1) -> tuple[Source, Source]:
        """The other training images, and those that are held out."""
        train, _ = super().open_splits(quarantine, tiny_step=tiny_step)
        out = held_out(train.ids, HELD_OUT)
        return Subset(train, (~out).nonzero()[:, 0]), Subset(train, out.nonzero()[:, 0])


@dataclass(frozen=True, kw_only=True)
class Config(reference.Config):
    """What to vary, over which methods and seeds; all other flags are those of the reference recipe, for every run."""

    studies: tuple[str, ...] = tuple(STUDIES)
    """names of studies"""
    methods: tuple[str, ...] = tuple(METHODS)
    """names of methods"""
    points: int | None = None
    """only so many points of each study"""
    repeats: int = 3
    """seeds of each point, from --seed on"""
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    """learning rates that are tried for each method and optimizer, in default rates; one is taken without a search"""
    processes: int = 1
    """runs at a time"""
    keep_runs: bool = False
    """keep checkpoints, features and models of all runs"""
    own: ClassVar[tuple[str, ...]] = ("studies", "methods", "points", "repeats", "rates", "processes", "keep_runs")


def main(config: Config) -> None:
    """Search the rates, run the studies, and write what is known after each run."""
    check(config)
    if config.tiny:
        few = {"studies": config.studies[:1] if config.studies != Config.studies else ("temperature",), "points": 2}
        two = config.methods[:2] if config.methods != Config.methods else ("supcon", "simclr")
        config = replace(config, **few, methods=two, repeats=1, rates=config.rates[:1], max_steps=config.max_steps or 3)
    folder = config.output_dir or unused_folder(Path("runs") / "stability", resume=config.resume)
    if (folder / "runs.jsonl").exists() and not config.resume:
        raise ConfigError("--output-dir", expected="a new folder", got=str(folder), fix="--resume to go on")
    RunLock(folder)
    replace_file(folder / "config.json", json.dumps(as_plain(config), indent=1) + "\n")
    sweep = Sweep(config, folder)
    sweep.run({sweep.key(job): job for job in sweep.search_jobs()})
    sweep.run({sweep.key(job): job for job in sweep.study_jobs()})
    failed = sum("error" in line for line in sweep.done.values())
    print(sweep.report() + (f"\n{failed} runs failed; --resume tries them again" if failed else ""), flush=True)


def check(config: Config) -> None:
    """Check the names, and that there is one process, before any work."""
    for flag, names, known in (("--studies", config.studies, STUDIES), ("--methods", config.methods, METHODS)):
        for name in names:
            if name not in known:
                raise ConfigError(flag, expected=f"names among {[*known]}", got=repr(name), fix=nearest(name, [*known]))
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("stability", expected="one process", got="several", fix="--processes N runs N at a time")
    if min(config.repeats, config.processes, len(config.rates)) < 1 or min(config.rates) <= 0:
        raise ConfigError("stability", expected="repeats, processes and rates of 1 or more", got=str(config.rates))


@functools.cache
def encoder_of(name: str, pretrained: bool, side: int) -> nn.Module:
    """An encoder whose default rate is asked for at each point."""
    return mmcon.create_encoder(name, pretrained=pretrained, image_size=side)


class Sweep:
    """The runs of a sweep: which there are, which are done, and what they show."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        lines, damaged = read_lines(folder / "runs.jsonl")
        if damaged:
            print(f"runs.jsonl has {len(damaged)} damaged line(s), whose runs are made again", flush=True)
        self.done: dict[str, dict[str, Any]] = {line["run"]: line for line in lines}
        self.base = {name: value for name, value in as_plain(config).items() if name not in Config.own}
        self.base |= {"output_dir": None, "resume": True, "seeds": []}
        self._next_report = time.monotonic()

    def job(self, method: str, flags: Mapping[str, Any], seed: int, *, factor: float, search: bool) -> dict[str, Any]:
        """A run: the settings of the reference recipe, with the learning rate as a number."""
        flags = {**METHODS[method], **flags, "seed": seed}
        factor *= flags.pop("rate_factor", 1.0)
        settings = {**self.base, **flags}
        settings["learning_rate"] = factor * (settings["learning_rate"] or self._default_rate(settings))
        return {"method": method, "flags": settings, "search": search}

    def _default_rate(self, settings: Mapping[str, Any]) -> float:
        config = from_mapping(reference.Config, dict(settings))
        encoder = encoder_of(config.encoder, config.pretrained, config.side)
        return max(rate for rate, _ in default_rates(config, [nn.ModuleDict({"image": encoder})]).values())

    def key(self, job: Mapping[str, Any]) -> str:
        """The name of a run: a hash of what changes its result."""
        flags = {name: value for name, value in job["flags"].items() if name not in SAFE_CHANGES or name == "max_steps"}
        text = json.dumps([flags, job["search"]], sort_keys=True, default=str)
        return f"{job['method']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def search_jobs(self) -> Iterator[dict[str, Any]]:
        """The runs of the search: each rate with each optimizer that a study has."""
        for method, optimizer, factor in product(self.config.methods, self._optimizers(), self.config.rates):
            if len(self.config.rates) > 1:
                yield self._search_job(method, optimizer, factor)

    def _search_job(self, method: str, optimizer: str, factor: float) -> dict[str, Any]:
        return self.job(method, {"optimizer": optimizer}, self.config.seed, factor=factor, search=True)

    def _optimizers(self) -> list[str]:
        return list(STUDIES["optimizer"]) if "optimizer" in self.config.studies else [self.config.optimizer]

    def factor(self, method: str, optimizer: str) -> float:
        """The rate with the best linear probe on the held-out training images; of equal ones the lowest."""
        if len(self.config.rates) == 1:
            return self.config.rates[0]
        keys = {factor: self.key(self._search_job(method, optimizer, factor)) for factor in sorted(self.config.rates)}
        lines = {factor: self.done.get(key, {"error": "no run"}) for factor, key in keys.items()}
        found = {factor: line["linear_probe"] for factor, line in lines.items() if "error" not in line}
        if not found:
            why, where = str(next(iter(lines.values()))["error"]), f"search of {method} with {optimizer}"
            raise ConfigError(where, expected="a run that ends", got=why, fix="mend the cause, then --resume")
        return max(found, key=lambda factor: found[factor])

    def points(self) -> Iterator[tuple[str, str, str, int, dict[str, Any]]]:
        """Study, point, method and seed of each run of the studies, and the run."""
        for study, method in product(self.config.studies, self.config.methods):
            if study == "temperature" and METHODS[method]["objective"] in WITHOUT_TEMPERATURE:
                continue
            for name, flags in list(STUDIES[study].items())[: self.config.points]:
                factor = self.factor(method, flags.get("optimizer", self.config.optimizer))
                for seed in range(self.config.seed, self.config.seed + self.config.repeats):
                    yield study, name, method, seed, self.job(method, flags, seed, factor=factor, search=False)

    def study_jobs(self) -> Iterator[dict[str, Any]]:
        """The runs of all studies, seed by seed, so that a sweep that is ended early has every point; each run once."""
        return (job for *_, job in sorted(self.points(), key=lambda point: point[3]))

    def run(self, jobs: Mapping[str, dict[str, Any]]) -> None:
        """Make the runs that are not done, several at a time, and write what is known after each."""
        waiting = {key: job for key, job in jobs.items() if "error" in self.done.get(key, {"error": ""})}
        print(f"{len(jobs)} runs, {len(waiting)} of them to do", flush=True)
        options = {key: (job, self.folder / "runs" / key, self.config.keep_runs) for key, job in waiting.items()}
        lines = ((key, train(*arguments)) for key, arguments in options.items())
        if self.config.processes > 1:
            lines = calls_in_processes(train, options, processes=self.config.processes)
        for key, line in lines:
            self._finished(key, {**waiting[key], "error": repr(line)} if isinstance(line, Exception) else line)

    def _finished(self, key: str, line: dict[str, Any]) -> None:
        self.done[key] = {"run": key, **line}
        append_line(self.folder / "runs.jsonl", self.done[key])
        shown = line.get("error") or f"linear probe {line['linear_probe']:.3f} in {line['seconds']:.0f} s"
        print(f"{key}: {shown}", flush=True)
        if not line["search"] and time.monotonic() > self._next_report:
            self.report()
            self._next_report = time.monotonic() + REPORT_SECONDS

    def report(self) -> str:
        """Write results.json, table.txt and the pictures of what is known; the text of the table."""
        found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
        for study, point, method, seed, job in self.points():
            metric = "linear_stage" if study == "augmentation-of-stage-two" else "linear_probe"
            value = self.done.get(self.key(job), {}).get(metric)
            if value is not None:
                found.setdefault(study, {}).setdefault(method, {}).setdefault(point, {})[seed] = value
        rates = {f"{method}, {optimizer}": self.factor(method, optimizer)
                 for method, optimizer in product(self.config.methods, self._optimizers())}  # fmt: skip
        budget = f"{len(self.config.rates)} learning rates a method and optimizer, seed {self.config.seed}, on "
        budget += f"{HELD_OUT:.0%} of the training images; then {self.config.repeats} seeds a point"
        results = {"search": budget, "rates": rates, "studies": found}
        replace_file(self.folder / "results.json", json.dumps(results) + "\n")
        text = f"top-1, mean [95 % over seeds]; search: {budget}\n" + "\n".join(map(table, found.items()))
        replace_file(self.folder / "table.txt", text + "\n")
        for study, of_study in found.items():
            figure = plot(study, of_study, list(STUDIES[study]))
            replace_file(self.folder / f"{study}.png", lambda file, f=figure: f.savefig(file, dpi=120, format="png"))
        return text


def train(job: Mapping[str, Any], folder: Path, keep: bool) -> dict[str, Any]:
    """Make a run of the reference recipe, and return its figures, or why it failed."""
    kind = Searched if job["search"] else reference.Config
    begun = time.perf_counter()
    try:
        config = from_mapping(kind, dict(job["flags"]))
        reference.main(replace(config, output_dir=folder))
        results = json.loads((folder / "results.json").read_text())
    except Exception as error:  # whatever ends a run is the result of that run alone
        return {**job, "error": f"{type(error).__name__}: {error}"}
    figures = {name: results[name]["top1"] for name in ("linear_probe", "knn", "linear_stage") if name in results}
    for name in () if keep else ("checkpoints", "features", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {**job, **figures, "seconds": round(time.perf_counter() - begun, 1)}


def table(study: tuple[str, Mapping[str, Mapping[str, Mapping[int, float]]]]) -> str:
    """The figures of a study as text: points in rows, methods in columns."""
    name, by_method = study
    points = list(dict.fromkeys(point for of in by_method.values() for point in of))
    lines = [f"\n{name:20}  " + "  ".join(f"{method:20}" for method in by_method)]
    for point in points:
        cells = (interval(list(of[point].values())) if point in of else "–" for of in by_method.values())
        lines.append(f"{point:20}  " + "  ".join(f"{cell:20}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def interval(values: list[float]) -> str:
    """The mean, with Student's interval of several seeds."""
    return str(t_interval(values, shares=True)) if len(values) > 1 else f"{values[0]:.3f}"


def plot(study: str, by_method: Mapping[str, Mapping[str, Mapping[int, float]]], points: list[str]) -> Any:
    """The figures of a study as a picture: a line for each method, every seed as a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.9 * len(points), 4), layout="constrained")
    axes = figure.subplots()
    for number, (method, of) in enumerate(by_method.items()):
        x = [points.index(point) for point in of]
        axes.plot(x, [sum(v.values()) / len(v) for v in of.values()], color=f"C{number}", marker="o", label=method)
        for at, values in zip(x, of.values(), strict=True):
            axes.scatter([at] * len(values), [*values.values()], color=f"C{number}", s=8, alpha=0.5)
    axes.set(xticks=range(len(points)), xticklabels=points, ylabel="top-1", title=study)
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
