"""The log of a run: lines of metrics.jsonl, trackers, results.json, and the samples that could not be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import gather_objects
from mmcon.errors import ConfigError
from mmcon.files import append_line, read_lines, replace_file
from mmcon.loading.loader import ViewLoader
from mmcon.objective.objective import Objective
from mmcon.report.run_page import LivePage
from mmcon.samplers.uniform import UniformSampler
from mmcon.training.collapse import CHECKED_STEPS, CollapseMonitor
from mmcon.training.config import RunConfig, RunSettings
from mmcon.training.range_test import range_test_report
from mmcon.training.shown_views import show_views
from mmcon.training.step import Stepper
from mmcon.training.step_timer import StepTimer

if TYPE_CHECKING:
    from accelerate import Accelerator

#: The file in a run folder that lists the samples that could not be read, a line of JSON each.
QUARANTINE = "quarantine.jsonl"
#: The file beside metrics.jsonl with the lines that a resumed run repeats, or that were cut off.
REMOVED = "metrics-removed.jsonl"
#: What a line of it says of a file that was found unreadable during the steps of the run.
IN_TRAINING = "in training"
#: How many unreadable files are printed at the end of a run.
NAMED_FILES = 20
#: The fraction of the time spent before steps above which the logger advises more workers, once.
SLOW_DATA_FRACTION = 0.5


@dataclass(frozen=True)
class MetricsLog:
    """metrics.jsonl: a line of JSON per logged step.

    Attributes:
        path: the file; the first line creates it.
    """

    path: Path

    def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line and return its content, tensors as numbers."""
        line = {"step": step, **{name: float(v) if isinstance(v, Tensor) else v for name, v in values.items()}}
        append_line(self.path, line)
        return line

    def lines(self) -> list[dict[str, Any]]:
        """All lines, without one that a crash cut off."""
        return [line for line in read_lines(self.path)[0] if "step" in line]

    def truncate(self, after: int, *, log: Callable[[str], Any] = print) -> None:
        """Move the lines of steps above `after`, which a resumed run repeats, to a file beside it, and log that."""
        lines, damaged = read_lines(self.path)
        kept = [line for line in lines if _step_of(line) <= after and after > 0]
        removed = [line for line in lines if not (_step_of(line) <= after and after > 0)]
        if not removed and not damaged:
            return
        for line in [*removed, *({"damaged": text} for text in damaged)]:
            append_line(self.path.with_name(REMOVED), line)
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        cut = f", and {len(damaged)} that were cut off" if damaged else ""
        log(f"{self.path.name}: {len(removed)} line(s) of steps after {after}{cut} are now in {REMOVED}")


class RunLogger:
    """Writes the log of a run, and its page, on the main rank.

    Args:
        folder: the run folder.
        accelerator: has the trackers and the rank.
        settings: `log_every` and `trackers`.

    Attributes:
        timer: measures the phases of steps.
        metrics: metrics.jsonl.
        timing: of the steps before the last log line.
        monitor: measures the embeddings at log lines and at a few early steps, if it is set.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, settings: RunSettings) -> None:
        self.folder, self.accelerator, self.settings = folder, accelerator, settings
        self.timer = StepTimer(accelerator.device)
        self.metrics = MetricsLog(folder / "metrics.jsonl")
        self.monitor: CollapseMonitor | None = None
        self.timing: dict[str, float] = {}
        self._objective: Any = None
        self._notes: dict[str, Any] = {}
        self._has_warned = False
        self._page: LivePage | None = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and pass its numbers to the trackers."""
        if not self.accelerator.is_main_process:
            return
        line = self.metrics.write(step, values)
        self._page = self._page or LivePage(self.folder)
        self._page.refresh()
        if self.settings.trackers:
            self.accelerator.log({k: v for k, v in line.items() if isinstance(v, int | float)}, step=step)

    def note(self, values: Mapping[str, Any]) -> None:
        """Add values to the line of the current step, if it gets one."""
        self._notes |= values

    def log_step(self, step: int, batch: ViewBatch, stepper: Stepper, loader: ViewLoader) -> None:
        """Log a finished step, once in `log_every` steps; a step without rows has no line."""
        if not batch.modalities:
            return
        self.timer.rows += self.accelerator.num_processes * max(table.n for table in batch.index.values())
        notes, self._notes = self._notes, {}
        is_logged = step == 1 or step % self.settings.log_every == 0
        if is_logged or step in CHECKED_STEPS:
            stepper.finish_check()  # a step that fails has no line
        if is_logged and isinstance(self._objective, Objective):
            notes |= self._objective.log_values(independent_negatives=isinstance(loader.sampler, UniformSampler))
        if self.monitor is not None and (is_logged or step in CHECKED_STEPS):
            notes |= self.monitor.measure(step, stepper.loss, stepper.gradient_norm)
        if not is_logged:
            return
        timing = self.timing = self.timer.read()
        if self._page is None and self.accelerator.is_main_process:
            show_views(self.folder, loader, batch)
            self.timer.read()  # the time that this took is no step's
        self._warn_if_slow(step, timing["waiting_for_data"], timing["views"])
        norm = {} if stepper.gradient_norm is None else {"gradient_norm": stepper.gradient_norm}
        rate = max(group["lr"] for group in stepper.optimizer.param_groups)
        line = {"epoch": (step - 1) // len(loader), "loss": stepper.loss, **norm, "learning_rate": rate}
        self.log(step, {**line, "unreadable_samples": len(loader.failures), **timing, **notes})

    def watch(self, objective: Any, optimizer: Any) -> None:
        """Measure the embeddings of the objective on the main rank, and warn if they collapse.

        Raises:
            ConfigError: `diagnostics` of an objective that is not contrastive.
        """
        self._objective = objective
        if self.settings.diagnostics:
            if not isinstance(objective, Objective):
                got = type(objective).__name__
                raise ConfigError("--diagnostics", expected="a contrastive objective", got=got)
            objective.records = {}
        if self.accelerator.is_main_process:
            rate = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
            self.monitor = CollapseMonitor(objective, learning_rate=rate, log=self.accelerator.print)

    def report_range_test(self) -> bool:
        """Whether the run is a range test of the learning rate; if so, print it."""
        if not (isinstance(self.settings, RunConfig) and self.settings.find_learning_rate):
            return False
        if self.accelerator.is_main_process:
            print(range_test_report(self.metrics.lines()), flush=True)
        return True

    def truncate(self, after: int) -> None:
        """Go back to a step: the log ends there, and quarantine.jsonl lists only what was found before the first step.

        What was found during the steps is in the checkpoint. Otherwise a resumed run would have fewer samples.
        """
        self.metrics.truncate(after=after, log=self.accelerator.print)
        lines, damaged = read_lines(self.folder / QUARANTINE)  # its reader tells of damaged lines, which stay
        kept = [json.dumps(line) for line in lines if line.get("found") != IN_TRAINING]
        if len(kept) < len(lines):
            replace_file(self.folder / QUARANTINE, "".join(f"{text}\n" for text in [*kept, *damaged]))

    def write_results(self, results: Mapping[str, Any], failures: Mapping[str, str]) -> None:
        """Write results.json, and append the files that could not be read to quarantine.jsonl."""
        warnings = [*results.get("warnings", ()), *(self.monitor.warnings if self.monitor is not None else ())]
        results = {**results, "warnings": warnings}
        if warnings:
            self.accelerator.print("\n".join(f"warning: {text}" for text in warnings), flush=True)
        replace_file(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        self._page = self._page or LivePage(self.folder)
        if failures:
            listed = self.folder / QUARANTINE
            for file, reason in failures.items():
                append_line(listed, {"file": file, "reason": reason, "found": IN_TRAINING})
            names = "\n  ".join([*islice(failures, NAMED_FILES), *(["…"] if len(failures) > NAMED_FILES else [])])
            self.accelerator.print(
                f"{len(failures):,} unreadable samples were left out, listed in {listed}:\n  {names}"
            )

    def close(self) -> None:
        """Write the page for the last time, if the run has logged anything."""
        if self._page is not None:
            self._page.close()

    def _warn_if_slow(self, step: int, waiting: float, views: float) -> None:
        if waiting + views > SLOW_DATA_FRACTION and step > 1 and not self._has_warned:
            self._has_warned = True
            spent = f"step {step}: {waiting:.0%} of the time is spent waiting for data, {views:.0%} making views"
            self.accelerator.print(f"{spent}; raise --workers, or move the data to a faster disk", flush=True)


def gather_failures(loader: ViewLoader | None) -> dict[str, str]:
    """The files that any rank could not read, with reasons. Every rank must call this."""
    own = {loader.files[sample]: reason for sample, reason in loader.failures.items()} if loader else {}
    return {file: reason for failures in gather_objects(own) for file, reason in failures.items()}


def _step_of(line: Mapping[str, Any]) -> float:
    """The step of a line; infinite for a line without one."""
    step = line.get("step")
    return float(step) if isinstance(step, int | float) else float("inf")
