"""A training run: the step, what guards it, what it leaves behind, and how it goes on.

The loop stays in the recipe, where it can be read:

    for batch in run.batches(loader):
        loss = objective(model(batch), batch)
        run.step(loss)

The run does what every loop needs and none should repeat: processes and precision through Accelerate, a finite guard
before the optimizer moves, logs, checkpoints that resume in the middle of an epoch, and an orderly stop on a signal.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn

from mmcon.batch import ViewBatch, tree_map
from mmcon.data.loading import ViewLoader
from mmcon.errors import ConfigError, NonFiniteError
from mmcon.models.batch_norm import synchronised
from mmcon.models.momentum import inside
from mmcon.random import keys
from mmcon.training.checkpoint import Checkpoints, load
from mmcon.training.config import as_plain, check_changes
from mmcon.training.engine import (
    check_sharding,
    clip_gradients,
    gradient_norm,
    is_sharded,
    load_model,
    load_optimizer,
    shard,
    synchronise_gradients,
    whole_state,
)
from mmcon.training.journal import Clock, Journal
from mmcon.training.profiling import Profile
from mmcon.training.progress import Progress
from mmcon.training.replay import Replay, describe_run
from mmcon.training.settings import (
    Settings,
    check_batch,
    check_devices,
    check_precision,
    unused_folder,
    use_all_threads,
)
from mmcon.training.signals import STOPPED, Signals

__all__ = ["QUARANTINE", "Run", "Settings", "seed_model", "unused_folder"]

M = TypeVar("M", bound=nn.Module)

#: The file in a run folder that names what could not be read, a line of JSON each.
QUARANTINE = "quarantine.jsonl"
#: The share of time spent waiting for data from which on the run says so.
SLOW = 0.5


class Run:
    """A training run in a folder of its own.

    Args:
        output_dir: the run folder: config.yaml, metrics.jsonl, checkpoints/, results.json.
        config: what the recipe was asked to do: a dataclass or a mapping; written down, and compared on resume.
        seed: the run's seed.
        settings: see `Settings`.
        resume: go on from the newest whole checkpoint, or start where there is none.
        mixed_precision: "no", "bf16" or "fp16".
        cpu: stay on the CPU although there is a GPU.
        find_unused_parameters: for models of which a step may leave parts unused (missing modalities), with
            several processes.

    Raises:
        ConfigError: the precision is not to be had here, the folder holds another run, or a resumed run's settings
            changed.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        config: Any = None,
        seed: int = 0,
        settings: Settings | None = None,
        resume: bool = False,
        mixed_precision: str = "no",
        cpu: bool = False,
        find_unused_parameters: bool = False,
    ) -> None:
        check_precision(mixed_precision, cpu)
        self._replay = Replay.asked()
        self.folder = Path(self._replay.folder if self._replay else output_dir)
        self.seed = seed
        self.settings = settings or Settings()
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            cpu=cpu,
            project_dir=str(self.folder),
            log_with=list(self.settings.trackers) or None,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)],
        )
        if self.processes > 1:
            check_devices(gather_object([f"{self.device.type}, precision {mixed_precision}"]))
        self.threads = use_all_threads(int(os.environ.get("LOCAL_WORLD_SIZE") or self.processes))
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=self.settings.keep)
        self.journal = Journal(self.folder / "metrics.jsonl")
        self.global_step = 0
        self.skipped = 0
        self._tracked: dict[str, Any] = {}
        self._spaces: dict[str, list[str]] | None = None
        self._failures: dict[int, str] = {}
        self._loader: ViewLoader | None = None
        self._score: Callable[[], float] | None = None
        self._closed = False
        self._batch: ViewBatch | None = None
        self._loss = self._norm = torch.tensor(float("nan"))
        self._notes: dict[str, Any] = {}
        self._clock = Clock(self.device)
        self._whole: nn.Module | None = None
        self._last = -1
        self._saved = self._open_folder(as_plain(config) if config is not None else {}, resume)
        seed_model(seed, "weights")

    # --- who and where ---

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def process(self) -> int:
        """The number of this process."""
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs, checkpoints and results."""
        return self.accelerator.is_main_process

    def print(self, text: str) -> None:
        """Print on the main process."""
        self.accelerator.print(text, flush=True)

    # --- setting up ---

    def _open_folder(self, config: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """Begin the folder, or read the newest checkpoint in it where one is asked for."""
        if self._replay:
            return self._replay.begin(self.checkpoints)
        if not resume and self.checkpoints.all():
            raise ConfigError(
                "--output-dir",
                expected="a new folder, or --resume",
                got=f"{self.folder}, which holds the checkpoints of another run",
                fix="add --resume to go on from the newest, or choose another folder",
            )
        newest = self.checkpoints.newest() if resume else None
        written = self.folder / "config.yaml"
        if newest and config and written.exists():
            changed = check_changes(yaml.safe_load(written.read_text()) or {}, config, force=self.settings.force)
            for name, (before, now) in changed.items():
                self.print(f"resume: {name} was {before!r} and is {now!r}")
        saved = load(newest) if newest else None
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            written.write_text(yaml.safe_dump(config, sort_keys=False))
            self.journal.cut(after=saved["step"] if saved else 0)
        if self.settings.trackers:
            self.accelerator.init_trackers(self.folder.name, config={k: str(v) for k, v in config.items()})
        start = f"from {newest.name}" if newest else "from the beginning"
        self.print(
            f"run {self.folder}: {start}, {self.processes} process(es) with {self.threads} thread(s) on {self.device}"
        )
        if self.settings.accumulate > 1:
            self.print(
                f"gradients of {self.settings.accumulate} batches are averaged before each step of the optimizer;"
                " negatives stay those of one batch (gradient caching, --chunk-size, enlarges them too)"
            )
        return saved

    def prepare(self, model: nn.Module, optimizer: Any, schedule: Any = None, **tracked: Any) -> nn.Module:
        """Take what is trained, and put everything back to where the checkpoint left it.

        Args:
            model: on any device; the returned one is on this process's, wrapped for several processes.
            optimizer: over the parameters of the model (and of the objective).
            schedule: a torch schedule; it advances after every optimizer step.
            tracked: whatever else has `state_dict` and `load_state_dict` and belongs to the state: the objective, a
                queue, a momentum encoder. Modules among them are moved to the device.

        Returns:
            The model to call in the loop.
        """
        for part in tracked.values():
            if isinstance(part, nn.Module):
                part.to(self.device)
        if self.settings.sync_batch_norm:
            for part in filter(lambda part: isinstance(part, nn.Module), (model, *tracked.values())):
                synchronised(part, self.device)
        self._tracked = tracked
        self._spaces = model.modalities_by_space() if hasattr(model, "modalities_by_space") else None  # type: ignore[operator]
        self._check_blocks()
        if self.settings.compile:
            _compile(model)
        wrapped = self._distribute(model, optimizer)
        self._optimizer = self.accelerator.prepare_optimizer(optimizer)
        self._model, self._schedule = wrapped, schedule
        if self._saved is not None:
            self._restore(self._saved)
        return wrapped

    @property
    def sharded(self) -> bool:
        """Whether several processes hold a part of the weights each, as flags or Accelerate's launcher asked for."""
        asked = self.settings.engine == "fsdp2" or self.accelerator.is_fsdp2
        return asked and self.processes > 1

    def _distribute(self, model: nn.Module, optimizer: Any) -> nn.Module:
        """The model on this process's device, wrapped for several processes, or left in parts on each."""
        if not self.sharded:
            return self.accelerator.prepare_model(model)
        check_sharding(optimizer, self._tracked)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        told = {"reshard_after_forward": plugin.reshard_after_forward} if plugin is not None else {}
        if plugin is not None and plugin.cpu_offload:
            told["offload_policy"] = plugin.cpu_offload
        model.to(self.device)
        self._whole = copy.deepcopy(model).cpu()
        shard(model, optimizer, self.device, self.processes, **told)
        # For its autocast; what it would wrap is sharded already.
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def whole(self, model: M) -> M:
        """The trained model with all of its weights in this process, for what comes after the loop.

        Args:
            model: what `prepare` was given or returned. Unless weights are in parts, it is returned itself, without
                its wrapper; else a copy, gathered from all processes, all of which must ask.
        """
        if self._whole is None or not is_sharded(model):
            return cast(M, inside(model))
        self._whole.load_state_dict(whole_state(model.state_dict()))
        return cast(M, self._whole.to(self.device))

    def _check_blocks(self, loader: ViewLoader | None = None) -> None:
        """Whether the objective's blocks can be filled by the model, and by the data once they are known."""
        objective = self._tracked.get("objective")
        if self._spaces is not None and hasattr(objective, "check"):
            data = () if loader is None else (loader.source, loader.views)
            objective.check(self._spaces, *data)  # type: ignore[union-attr]

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.global_step,
            "seed": self.seed,
            "model": whole_state(inside(self._model).state_dict()),
            "optimizer": whole_state(self._optimizer.state_dict()),
            "schedule": self._schedule.state_dict() if self._schedule is not None else {},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "tracked": {name: part.state_dict() for name, part in self._tracked.items()},
            "memories": self._memories(),
        }

    def _memories(self) -> list[dict[str, Any]]:
        """By process, what its loader remembers of earlier batches."""
        parts = self._loader.memories() if self._loader is not None else {}
        own = {name: tree_map(lambda x: x.detach().cpu(), part.state_dict()) for name, part in parts.items()}
        return gather_object([own]) if parts and self.processes > 1 else [own]

    def _remember(self, loader: ViewLoader, saved: list[dict[str, Any]]) -> None:
        """Give the loader its memories back; of another number of processes, each takes one of theirs."""
        parts = loader.memories()
        if parts and len(saved) != self.processes:
            self.print(f"resume: memories of {len(saved)} process(es) go on in {self.processes}")
        for name, part in parts.items():
            part.load_state_dict(saved[self.process % len(saved)].get(name, {}))

    def _restore(self, saved: Mapping[str, Any]) -> None:
        load_model(inside(self._model), saved["model"])
        load_optimizer(self._optimizer, saved["optimizer"])
        if self._schedule is not None:
            self._schedule.load_state_dict(saved["schedule"])
        if self.accelerator.scaler is not None and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        for name, part in self._tracked.items():
            part.load_state_dict(saved["tracked"][name])
        self.global_step = int(saved["step"])

    # --- the loop ---

    def batches(self, loader: ViewLoader, *, score: Callable[[], float] | None = None) -> Iterator[ViewBatch]:
        """The batches that are still to be trained on, from where the run stands to its last epoch or step.

        Args:
            loader: makes them; goes to where the run stands.
            score: a figure of merit, higher being better, asked for at each checkpoint, by which the best one is kept:
                of a part of the training set, never of the test set.

        Raises:
            ConfigError: the processes do not divide the global batch.
            SystemExit: a signal asked the run to stop; a checkpoint was written, and the status is `STOPPED`.
        """
        self._check_blocks(loader)
        check_batch(loader.sampler.batch_size, self.processes)
        if self.sharded:
            check_sharding(self._optimizer, self._tracked, score)
        loader.load_state_dict({"step": self.global_step})
        self._loader, self._failures, self._score = loader, loader.failures, score
        if self._saved is not None and self._saved.get("memories"):
            self._remember(loader, self._saved["memories"])
        if self._replay:
            yield from self._again(loader, self._replay)
        if self.is_main:
            (self.folder / "run.json").write_text(describe_run(loader, self.seed, self.processes))
        last = self.settings.epochs * len(loader)
        if self.settings.max_steps is not None:
            last = min(last, self.settings.max_steps)
        self._last = last
        every = self.settings.checkpoint_every or len(loader)
        due, profile = False, Profile(self.folder, on=self.settings.profile and self.is_main, tell=self.print)
        with Signals() as signals, Progress(last, self.global_step, shown=self.is_main) as progress, profile:
            while self.global_step < last:
                for batch in self._clock.timed(iter(loader)):
                    yield from self._one(batch)
                    self._record(loader)
                    profile.advance()
                    progress.advance(self.global_step, self._loss)
                    stopping = self._any_process(bool(signals.received))
                    due = due or self.global_step % every == 0
                    # Gradients are in no checkpoint, so that one waits until the optimizer has moved.
                    if not self._moves(self.global_step):
                        continue
                    if stopping or due or self.global_step == last:
                        self.save()
                        due = False
                    if stopping:
                        self.print(f"stopped by a signal after step {self.global_step}; --resume goes on from there")
                        self.close()
                        sys.exit(STOPPED)
                    if self.global_step == last:
                        break

    def _one(self, batch: ViewBatch) -> Iterator[ViewBatch]:
        """Hand out a batch, and see that it became a step."""
        step, self._batch = self.global_step, batch
        seed_model(self.seed, "step", step, self.process)
        if self.settings.accumulate > 1:
            synchronise_gradients(self._model, self._moves(step + 1))
        yield batch
        if self.global_step != step + 1:
            raise RuntimeError("the loop over run.batches(...) calls run.step(loss) once a batch")

    def _again(self, loader: ViewLoader, replay: Replay) -> Iterator[ViewBatch]:
        """Steps of this run once more, up to the one that is replayed; nothing of the run folder changes."""
        replay.place(loader)
        while True:
            for batch in loader:
                if batch.step + 1 == replay.step:
                    replay.show(loader, batch)
                yield from self._one(batch)
                if batch.step + 1 == replay.step:
                    replay.tell(float(self._loss))
                    self.close()
                    sys.exit(0)

    def _moves(self, step: int) -> bool:
        """Whether the optimizer moves at the end of a step, counted from 1, or gradients are gathered for a later."""
        return step % self.settings.accumulate == 0 or step == self._last

    def step(self, loss: Tensor) -> None:
        """Backward, finite guard, clip, optimizer, schedule.

        Under `accumulate` the optimizer moves after so many calls, by the mean of their gradients, and the schedule as
        many steps at once; a last, incomplete group counts by its share.

        Raises:
            NonFiniteError: the loss or a gradient is not finite on any process; weights and optimizer are as before.
        """
        self._clock.mark("forward")
        together = self.settings.accumulate
        self.accelerator.backward(loss / together if together > 1 else loss)
        self._clock.mark("backward")
        self._loss = loss.detach()
        if self._moves(self.global_step + 1):
            self._move()
        self._clock.mark("optimizer")
        self.global_step += 1

    def _move(self) -> None:
        """The optimizer's step, unless a gradient is not finite."""
        self._norm = self._gradient_norm()
        # In fp16 the gradient scaler itself leaves out steps with infinite gradients, and lowers its scale.
        guarded = self.accelerator.scaler is None
        if guarded and self._any_process(not bool(torch.isfinite(self._norm) & torch.isfinite(self._loss))):
            self._refuse()
        else:
            self.skipped = 0
            self._optimizer.step()
            if self._schedule is not None:
                for _ in range((self.global_step % self.settings.accumulate) + 1):
                    self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _gradient_norm(self) -> Tensor:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.settings.clip_norm is not None:
            self.accelerator.unscale_gradients(self._optimizer)
        norm = gradient_norm(parameters)
        if self.settings.clip_norm is not None:
            clip_gradients(parameters, norm, self.settings.clip_norm)
        return norm

    def _refuse(self) -> None:
        """Leave out a step that is not finite, or stop with the keys that make its batch again."""
        self.skipped += 1
        got = f"loss {float(self._loss)}, gradient norm {float(self._norm)}"
        if self.settings.on_nonfinite == "skip" and self.skipped <= self.settings.max_skips:
            self.print(f"step {self.global_step}: {got}; skipped ({self.skipped} in a row)")
            return
        table = next(iter(self._batch.index.values())) if self._batch else None
        samples = table["sample"].unique().tolist() if table is not None else []
        replay = f"mmcon replay {self.folder} --step {self.global_step + 1} --sample {samples[0] if samples else 'ID'}"
        raise NonFiniteError(
            f"step {self.global_step + 1}",
            expected="a finite loss and finite gradients on every process",
            got=got,
            fix="lower the learning rate, raise the temperature, clip gradients, or pass --on-nonfinite skip;"
            f" `{replay}` shows what the model saw",
            key=f"seed={self.seed}, step={self.global_step}, process={self.process}, sample={samples}",
        )

    def _any_process(self, here: bool) -> bool:
        """Whether it holds on any process, so that all of them act after the same step."""
        if self.processes == 1:
            return here
        flag = torch.tensor([int(here)], device=self.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())  # type: ignore[union-attr]

    # --- what is written ---

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        state = self._state()
        if score is None and self._score is not None:
            score = self._score()
            self.print(f"checkpoint at step {self.global_step}: score {score:.4f}")
        if self.is_main:
            self.checkpoints.save(self.global_step, state, score=score)
        self.accelerator.wait_for_everyone()

    def log(self, values: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl and to the trackers: numbers and short texts."""
        if not self.is_main:
            return
        line = self.journal.write(self.global_step, values)
        if self.settings.trackers:
            self.accelerator.log({k: v for k, v in line.items() if isinstance(v, int | float)}, step=self.global_step)

    def note(self, **values: Any) -> None:
        """Put values, such as diagnostics, beside the loss in the log line of this step, if it will have one."""
        self._notes |= values

    def _record(self, loader: ViewLoader) -> None:
        assert self._batch is not None
        self._clock.rows += self.processes * max(table.n for table in self._batch.index.values())
        notes, self._notes = self._notes, {}
        if self.global_step % self.settings.log_every and self.global_step != 1:
            return
        figures = self._clock.read()
        if figures["waiting_for_data"] > SLOW and self.global_step > 1:
            told = f"step {self.global_step}: {figures['waiting_for_data']:.0%} of the time went by waiting for data"
            self.print(f"{told}; more --workers, or a faster place for the data, would help")
        self.log(
            {
                "epoch": (self.global_step - 1) // len(loader),
                "loss": self._loss,
                "gradient_norm": self._norm,
                "learning_rate": max(group["lr"] for group in self._optimizer.param_groups),
                "unreadable_samples": len(loader.failures),
                **figures,
                **notes,
            }
        )

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, name the samples that could not be read, and say where the run folder is."""
        if self.is_main:
            (self.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
            if self._failures:
                with (self.folder / QUARANTINE).open("a") as file:
                    for sample, reason in self._failures.items():
                        file.write(json.dumps({"file": str(sample), "reason": reason}) + "\n")
            self.print(f"run folder: {self.folder}")
        self.close()

    def close(self) -> None:
        """End the trackers and the process group, after every process has come this far; once is enough."""
        if self._closed:
            return
        self._closed = True
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        self.accelerator.end_training()


def seed_model(seed: int, *names: str | int) -> None:
    """Seed the randomness inside models (initial weights, dropout) from the run's seed and what it is for."""
    table = keys(seed=seed)
    for name in names:
        table = table.child(str(name))
    torch.manual_seed(int(table.state[0]))


def _compile(model: nn.Module) -> None:
    """Compile a model's encoders in place, or the model where it has none; names in its state dict stay."""
    encoders = getattr(model, "encoders", None)
    for part in encoders.values() if isinstance(encoders, nn.ModuleDict) else (model,):
        part.compile()
