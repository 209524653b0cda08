"""What a run tells as it goes: lines of the log, trackers, where the time went, and at the end its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import gather_objects
from mmcon.loading.loader import ViewLoader
from mmcon.training.config import RunSettings
from mmcon.training.metrics_log import Clock, Journal
from mmcon.training.step import Stepper

if TYPE_CHECKING:
    from accelerate import Accelerator

#: The file in a run folder that names what could not be read, a line of JSON each.
QUARANTINE = "quarantine.jsonl"
#: The share of time spent before steps from which on the run says so, once.
SLOW = 0.5


class Logbook:
    """The log of a run.

    Args:
        folder: of the run.
        accelerator: for its trackers, and to know which process writes.
        settings: how often, and to which trackers.

    Attributes:
        clock: measures the parts of steps.
        journal: metrics.jsonl.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, settings: RunSettings) -> None:
        self.folder, self.accelerator, self.settings = folder, accelerator, settings
        self.clock = Clock(accelerator.device)
        self.journal = Journal(folder / "metrics.jsonl")
        self._notes: dict[str, Any] = {}
        self._told = False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl and to the trackers, on the main process."""
        if not self.accelerator.is_main_process:
            return
        line = self.journal.write(step, values)
        if self.settings.trackers:
            self.accelerator.log({k: v for k, v in line.items() if isinstance(v, int | float)}, step=step)

    def note(self, values: Mapping[str, Any]) -> None:
        """Values to stand in the line of this step, if it will have one."""
        self._notes |= values

    def record(self, step: int, batch: ViewBatch, stepper: Stepper, loader: ViewLoader) -> None:
        """A step is done: write its line, if it has one."""
        self.clock.rows += self.accelerator.num_processes * max(table.n for table in batch.index.values())
        notes, self._notes = self._notes, {}
        if step % self.settings.log_every and step != 1:
            return
        figures = self.clock.read()
        waiting, views = figures["waiting_for_data"], figures["views"]
        if waiting + views > SLOW and step > 1 and not self._told:
            self._told = True
            told = f"step {step}: {waiting:.0%} of the time went by waiting for data, {views:.0%} by making views here"
            self.accelerator.print(f"{told}; more --workers, or a faster place for the data, would help", flush=True)
        norm = {} if stepper.norm is None else {"gradient_norm": stepper.norm}
        rate = max(group["lr"] for group in stepper.optimizer.param_groups)
        line = {"epoch": (step - 1) // len(loader), "loss": stepper.loss, **norm, "learning_rate": rate}
        self.log(step, {**line, "unreadable_samples": len(loader.failures), **figures, **notes})

    def results(self, results: Mapping[str, Any], failures: Mapping[int, str]) -> None:
        """Write results.json, and name the samples that could not be read."""
        (self.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        if failures:
            with (self.folder / QUARANTINE).open("a") as file:
                for sample, reason in failures.items():
                    file.write(json.dumps({"file": str(sample), "reason": reason}) + "\n")


def failures_of_all(loader: ViewLoader | None) -> dict[int, str]:
    """The samples that any process could not read, with reasons; every process must ask."""
    return {sample: why for own in gather_objects(loader.failures if loader else {}) for sample, why in own.items()}
