"""A training run: the loop, and everything around it that each recipe would otherwise repeat.

The loop stays in the recipe, where it can be read:

    for batch in run.batches(loader):
        loss = objective(model(batch), batch)
        run.step(loss)

What the run does is told by story: how it begins (`opening`), how weights lie on the processes (`engine`), what a step
does (`step`), what a checkpoint holds (`trained`, `checkpoint`), and what is written down (`logbook`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import any_rank, barrier, broadcast, gather_objects, group_without_timeout
from mmcon.distributed.fsdp import (
    check_same_modalities,
    check_sharding,
    compile_encoders,
    full_state,
    is_sharded,
    modalities_may_differ,
    set_gradient_sync,
    wrap,
)
from mmcon.loading.loader import ViewLoader, Views
from mmcon.models.batch_norm import synchronize_batch_norm
from mmcon.models.ema import unwrap
from mmcon.samplers.base import BatchSampler
from mmcon.sources.base import Source
from mmcon.training.checkpoint import Checkpoints
from mmcon.training.config import RunConfig, RunSettings, as_plain
from mmcon.training.environment import (
    check_batch_size,
    check_devices,
    check_precision,
    resolve_precision,
    use_all_threads,
)
from mmcon.training.logging import QUARANTINE, Logbook, failures_of_all
from mmcon.training.metrics_log import Journal
from mmcon.training.profiling import Profile
from mmcon.training.progress import Progress
from mmcon.training.replay import Replay, describe_run
from mmcon.training.run_folder import open_folder, unused_folder
from mmcon.training.seeds import seed_model
from mmcon.training.signals import STOPPED, Signals
from mmcon.training.state import Trained, memories_of, remember
from mmcon.training.step import Groups, Place, Stepper

__all__ = ["QUARANTINE", "Run", "RunSettings", "seed_model", "unused_folder"]

M = TypeVar("M", bound=nn.Module)


class Run:
    """A training run in a folder of its own.

    Args:
        output_dir: the run folder: config.yaml, metrics.jsonl, checkpoints/, results.json. Of several processes, the
            first one's counts.
        config: what the recipe was asked to do: a dataclass or a mapping; written down, and compared on resume.
        seed: the run's seed.
        settings: see `RunSettings`.
        resume: go on from the newest whole checkpoint, or start where there is none.
        mixed_precision: "bf16", "fp16", or "no", which leaves it to Accelerate's launcher.
        cpu: stay on the CPU although there is a GPU.
        find_unused_parameters: for models of which a step may leave parts unused (missing modalities), with
            several processes.

    Raises:
        ConfigError: the precision is not to be had here, the folder holds another run or is not the same for all
            processes, or a resumed run's settings changed.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        config: Any = None,
        seed: int = 0,
        settings: RunSettings | None = None,
        resume: bool = False,
        mixed_precision: str = "no",
        cpu: bool = False,
        find_unused_parameters: bool = False,
    ) -> None:
        precision = resolve_precision(mixed_precision)
        check_precision(precision, cpu)
        self._replay = Replay.asked()
        self.seed = seed
        self.settings = settings or RunSettings()
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=list(self.settings.trackers) or None,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)],
        )
        check_devices(gather_objects(f"{self.device.type}, precision {precision}"))
        self.folder = Path(gather_objects(self._replay.folder if self._replay else str(output_dir))[0])
        self.accelerator.project_configuration.set_directories(str(self.folder))
        self.threads = use_all_threads()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=self.settings.keep)
        self.global_step = 0
        self._logbook = Logbook(self.folder, self.accelerator, self.settings)
        self._end = group_without_timeout()
        self._loader: ViewLoader | None = None
        self._score: Callable[[], float] | None = None
        self._failures: dict[int, str] = {}
        self._batch: ViewBatch | None = None
        self._groups = Groups()
        self._whole: nn.Module | None = None
        self._spaces: dict[str, list[str]] | None = None
        self._objective: Any = None
        self._closed = self._may_differ = False
        asked = as_plain(config) if config is not None else {}
        self._saved = self._open(asked | ({"mixed_precision": precision} if "mixed_precision" in asked else {}), resume)
        seed_model(seed, "weights")

    @classmethod
    def from_config(cls, config: RunConfig, *, name: str, find_unused_parameters: bool = False, **settings: Any) -> Run:
        """The run of a recipe's configuration, in `config.output_dir` or a new folder `runs/NAME`.

        Args:
            config: the flags of the recipe.
            name: of the folder under runs/.
            find_unused_parameters: see `Run`.
            settings: fields of `RunSettings` that replace those of the configuration.
        """
        return cls(
            config.output_dir or unused_folder(Path("runs") / name, resume=config.resume),
            config=config,
            seed=config.seed,
            settings=replace(config, **settings),
            resume=config.resume,
            mixed_precision=config.mixed_precision,
            cpu=config.cpu,
            find_unused_parameters=find_unused_parameters,
        )

    def loader(self, source: Source, views: Views, sampler: BatchSampler) -> ViewLoader:
        """A loader of this rank's shard of each global batch, on the run's device, keyed by the run's seed."""
        return ViewLoader(
            source,
            views,
            sampler,
            seed=self.seed,
            workers=self.settings.workers,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
        )

    # --- who and where ---

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs, checkpoints and results."""
        return self.accelerator.is_main_process

    @property
    def sharded(self) -> bool:
        """Whether several processes hold a part of the weights each, as flags or Accelerate's launcher asked for."""
        asked = self.settings.engine == "fsdp2" or self.accelerator.is_fsdp2
        return asked and self.world_size > 1

    @property
    def journal(self) -> Journal:
        """metrics.jsonl."""
        return self._logbook.journal

    @property
    def skipped(self) -> int:
        """Steps that were left out, in a row, since they were not finite."""
        return self._stepper.skipped

    def print(self, text: str) -> None:
        """Print on the main process."""
        self.accelerator.print(text, flush=True)

    # --- setting up ---

    def _open(self, config: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """Begin the folder, or read the newest checkpoint in it, and say what this run is."""
        if self._replay:
            return self._replay.begin(self.checkpoints)
        name, saved = open_folder(
            self.checkpoints, config, main=self.is_main, resume=resume, force=self.settings.force, tell=self.print
        )
        if self.is_main:
            self.journal.cut(after=saved["step"] if saved else 0)
        if self.settings.trackers:
            self.accelerator.init_trackers(self.folder.name, config={k: str(v) for k, v in config.items()})
        start = f"from {name}" if name else "from the beginning"
        precision = self.accelerator.mixed_precision
        self.print(
            f"run {self.folder}: {start}, {self.world_size} process(es) with {self.threads} thread(s) on {self.device}"
            + (f" in {precision}" if precision != "no" else "")
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
        beside = [part for part in tracked.values() if isinstance(part, nn.Module)]
        for part in beside:
            part.to(self.device)
            broadcast([*part.parameters(), *part.buffers()])
        if self.settings.sync_batch_norm:
            for part in (model, *beside):
                synchronize_batch_norm(part, self.device)
        self._spaces = model.modalities_by_space() if hasattr(model, "modalities_by_space") else None  # type: ignore[operator]
        self._objective = tracked.get("objective")
        self._check_blocks()
        if self.settings.compile:
            compile_encoders(model)
        if self.sharded:
            check_sharding(tracked)
            self._whole = copy.deepcopy(model).cpu()
        wrapped = wrap(self.accelerator, model, optimizer, sharded=self.sharded)
        prepared = self.accelerator.prepare_optimizer(optimizer)
        self._stepper = Stepper(self.accelerator, prepared, schedule, self.settings, self.print)
        self._trained = Trained(wrapped, prepared, schedule, self.accelerator.scaler, tracked)
        if self._saved is not None:
            self._trained.restore(self._saved, self.device)
            self.global_step = int(self._saved["step"])
        return wrapped

    def full_model(self, model: M) -> M:
        """The trained model with all of its weights in this process, for what comes after the loop.

        Args:
            model: what `prepare` was given or returned. Unless weights are in parts, it is returned itself, without
                its wrapper; else a copy, gathered from all processes, all of which must ask.
        """
        if self._whole is None or not is_sharded(model):
            return cast(M, unwrap(model))
        self._whole.load_state_dict(full_state(model.state_dict()))
        return cast(M, self._whole.to(self.device))

    def _check_blocks(self, loader: ViewLoader | None = None) -> None:
        """Whether the objective's blocks can be filled by the model, and by the data once they are known."""
        if self._spaces is not None and hasattr(self._objective, "check"):
            data = () if loader is None else (loader.source, loader.views)
            self._objective.check(self._spaces, *data)

    # --- the loop ---

    def batches(self, loader: ViewLoader, *, score: Callable[[], float] | None = None) -> Iterator[ViewBatch]:
        """The batches that are still to be trained on, from where the run stands to its last epoch or step.

        Args:
            loader: makes them; goes to where the run stands.
            score: a figure of merit, higher being better, asked for at each checkpoint, by which the best one is kept:
                of a part of the training set, never of the test set.

        Raises:
            ConfigError: the processes do not divide the global batch, or `max_steps` cuts a group of batches.
            SystemExit: a signal asked the run to stop; a checkpoint was written, and the status is `STOPPED`.
        """
        self._begin(loader, score)
        if self._replay:
            yield from self._again(loader, self._replay)
        if self.is_main:
            (self.folder / "run.json").write_text(describe_run(loader, self.seed, self.world_size))
        last, every = self._groups.last, self.settings.checkpoint_every or len(loader)
        due, profile = False, Profile(self.folder, on=self.settings.profile and self.is_main, tell=self.print)
        with Signals() as signals, Progress(last, self.global_step, shown=self.is_main) as progress, profile:
            while self.global_step < last:
                for batch in self._logbook.clock.timed(loader):
                    yield from self._one(batch)
                    self._logbook.record(self.global_step, batch, self._stepper, loader)
                    profile.advance()
                    progress.advance(self.global_step, self._stepper.loss)
                    stopping = any_rank(bool(signals.received), self.device)
                    due = due or self.global_step % every == 0
                    # Gradients are in no checkpoint, so that one waits until the optimizer has moved.
                    if not self._groups.end(self.global_step):
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
        self._failures = failures_of_all(loader)

    def _begin(self, loader: ViewLoader, score: Callable[[], float] | None) -> None:
        """Refuse what cannot be trained on, and bring the loader to where the run stands."""
        self._check_blocks(loader)
        check_batch_size(loader.sampler.batch_size, self.world_size)
        self._groups = Groups.of(self.settings, self.settings.epochs * len(loader))
        if self.sharded:
            check_sharding(self._trained.tracked, score)
            self._may_differ = modalities_may_differ(self._trained.model, loader.source)
        loader.load_state_dict({"step": self.global_step})
        self._loader, self._score = loader, score
        if self._saved is not None and self._saved.get("memories"):
            remember(loader, self._saved["memories"], rank=self.rank, world_size=self.world_size, tell=self.print)

    def _one(self, batch: ViewBatch) -> Iterator[ViewBatch]:
        """Hand out a batch, and see that it became a step."""
        step, self._batch = self.global_step, batch
        seed_model(self.seed, "step", step, self.rank)
        if self.settings.accumulate > 1:
            set_gradient_sync(self._trained.model, self._groups.end(step + 1))
        if self._may_differ:
            check_same_modalities(batch)
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
                    replay.tell(float(self._stepper.loss))
                    self.close()
                    sys.exit(0)

    def step(self, loss: Tensor) -> None:
        """Backward, finite guard, clip, optimizer, schedule.

        Under `accumulate` the optimizer moves after so many calls, by the mean of their gradients, and the schedule as
        many steps at once; a last, incomplete group counts by its share.

        Raises:
            NonFiniteError: the loss or a gradient is not finite on any process; weights and optimizer are as before.
        """
        clock, number = self._logbook.clock, self.global_step + 1
        clock.mark("forward")
        self._stepper.backward(loss)
        clock.mark("backward")
        if self._groups.end(number):
            place = Place(self.folder, self.seed, self.global_step, self.rank, self._batch)
            self._stepper.move(self._groups.batches(number), place)
        clock.mark("optimizer")
        self.global_step = number

    # --- what is written ---

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        position = {"step": self.global_step, "seed": self.seed, "memories": memories_of(self._loader)}
        state = {**position, **self._trained.state(keep=self.is_main)}
        if score is None and self._score is not None:
            score = self._score()
            self.print(f"checkpoint at step {self.global_step}: score {score:.4f}")
        if self.is_main:
            self.checkpoints.save(self.global_step, state, score=score)
        self.accelerator.wait_for_everyone()

    def log(self, values: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl and to the trackers: numbers and short texts."""
        self._logbook.log(self.global_step, values)

    def note(self, **values: Any) -> None:
        """Put values, such as diagnostics, beside the loss in the log line of this step, if it will have one."""
        self._logbook.note(values)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, name the samples that could not be read, and say where the run folder is."""
        if self.is_main:
            self._logbook.results(results, self._failures)
            self.print(f"run folder: {self.folder}")
        self.close()

    def close(self) -> None:
        """End the trackers and the process group, after every process has come this far; once is enough.

        The others may wait for as long as the main process evaluates.
        """
        if self._closed:
            return
        self._closed = True
        barrier(self._end)
        self.accelerator.free_memory()
        self.accelerator.end_training()
