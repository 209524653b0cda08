"""A training run: run folder, exact resume and NaN/inf checks for a training loop that is written in the recipe.

    for batch in run.batches(loader):
        loss = objective(model(batch), batch)
        run.step(loss)

Its pieces: `run_folder` opens or resumes the folder, `rank_model` wraps or shards the model, `step` executes a step,
`state` and `checkpoint` save and restore, `logging` writes metrics and results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from accelerate import Accelerator, DistributedDataParallelKwargs
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import any_rank, barrier, from_main_rank, gather_objects, group_without_timeout
from mmcon.distributed.fsdp import check_same_modalities, check_sharding, modalities_may_differ, set_gradient_sync
from mmcon.loading.loader import ViewLoader, Views
from mmcon.models.ema import unwrap
from mmcon.samplers.base import BatchSampler
from mmcon.sources.base import Source
from mmcon.training import environment
from mmcon.training.checkpoint import Checkpoints
from mmcon.training.config import RunConfig, RunSettings, as_plain
from mmcon.training.logging import RunLogger, gather_failures
from mmcon.training.profiling import StepProfiler
from mmcon.training.progress import Progress
from mmcon.training.rank_model import RankModel
from mmcon.training.replay import Replay, describe_run
from mmcon.training.run_folder import OpenedFolder, open_folder, restarted_folder, unused_folder
from mmcon.training.seeds import seed_model
from mmcon.training.signals import STOPPED, StopSignals, end_with_launcher
from mmcon.training.state import TrainingState, check_data, gather_loader_states, restore_loader_states
from mmcon.training.step import AccumulationSchedule, StepLocation, Stepper

__all__ = ["Run", "RunSettings"]

M = TypeVar("M", bound=nn.Module)


class Run:
    """A training run in a folder of its own.

    Args:
        output_dir: the run folder (config.yaml, metrics.jsonl, checkpoints/, results.json); the one of rank 0 is used.
        config: the settings of the recipe, a dataclass or a mapping; saved, and compared on resume.
        seed: the seed of the run.
        settings: see `RunSettings`.
        resume: continue from the newest valid checkpoint, or start if there is none.
        mixed_precision: "bf16", "fp16", or "no", which leaves the choice to Accelerate's launcher.
        cpu: use the CPU even if there is a GPU.
        find_unused_parameters: set it if a step on several ranks may leave parameters unused (missing modalities).

    Attributes:
        device: of this rank.
        rank: the number of this rank.
        world_size: the number of ranks.
        is_main: whether this rank writes logs, checkpoints and results.
        sharded: whether each rank keeps a shard of the weights, by `--engine` or by Accelerate's launcher.
        folder: the run folder.
        global_step: the number of finished steps.
        threads: the number of CPU threads of this rank.

    Raises:
        ConfigError: the device does not support the precision, the folder holds another run or is not shared by all
            ranks, or settings of a resumed run changed.
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
        precision = environment.resolve_precision(mixed_precision)
        environment.check_precision(precision, cpu)
        self._replay = Replay.from_environment()
        self.seed, self.settings = seed, settings or RunSettings()
        trackers: list[Any] | None = list(self.settings.trackers) or None
        ddp = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=cpu, log_with=trackers, kwargs_handlers=[ddp])
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.world_size, self.is_main = self.accelerator.num_processes, self.accelerator.is_main_process
        self.sharded = self.world_size > 1 and (self.settings.engine == "fsdp2" or self.accelerator.is_fsdp2)
        environment.check_devices(gather_objects(f"{self.device.type}, precision {precision}"))
        restart = resume and self.settings.restart
        output_dir = self._replay.folder if self._replay else output_dir
        self.folder = Path(from_main_rank(lambda: str(restarted_folder(output_dir) if restart else output_dir)))
        self.accelerator.project_configuration.set_directories(str(self.folder))
        self.threads = environment.use_all_threads()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=self.settings.keep, log=self.print)
        self.global_step = 0
        self._logger = RunLogger(self.folder, self.accelerator, self.settings)
        self._closing_group = group_without_timeout()
        self._loader: ViewLoader | None = None
        self._score: Callable[[], float] | None = None
        self._failures: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        self._launcher = end_with_launcher()
        self._batch: ViewBatch | None = None
        self._model: RankModel | None = None
        self._opened = OpenedFolder()
        self._accumulation = AccumulationSchedule()
        self._closed = self._check_modalities = False
        saved_config = as_plain(config) if config is not None else {}
        if "mixed_precision" in saved_config:
            saved_config["mixed_precision"] = precision
        self._saved = self._open(saved_config, resume)
        seed_model(seed, "weights")

    @classmethod
    def from_config(cls, config: RunConfig, *, name: str, find_unused_parameters: bool = False, **settings: Any) -> Run:
        """The run of a recipe's configuration, in `config.output_dir` or a new folder `runs/NAME`.

        Args:
            config: the flags of the recipe.
            name: the name of the folder under runs/.
            find_unused_parameters: see `Run`.
            settings: fields of `RunSettings` that replace those of the configuration.
        """
        folder = config.output_dir or unused_folder(Path("runs") / name, resume=config.resume)
        flags: dict[str, Any] = {key: getattr(config, key) for key in ("seed", "resume", "mixed_precision", "cpu")}
        flags |= {"settings": replace(config, **settings), "find_unused_parameters": find_unused_parameters}
        return cls(folder, config=config, **flags)

    def print(self, text: str) -> None:
        """Print on the main rank."""
        self.accelerator.print(text, flush=True)

    # --- setting up ---

    def _open(self, config: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """Create the folder, or read its newest checkpoint, and print ranks, threads and device."""
        if self._replay:
            return self._replay.load_state(self.checkpoints)
        self._opened = open_folder(
            self.checkpoints, config, is_main=self.is_main, resume=resume, force=self.settings.force, log=self.print
        )
        saved, name = self._opened.state, self._opened.checkpoint
        from_main_rank(lambda: self._logger.truncate(after=saved["step"] if saved else 0))
        if self.settings.trackers:
            self.accelerator.init_trackers(self.folder.name, config={k: str(v) for k, v in config.items()})
        precision, batches = self.accelerator.mixed_precision, self.settings.accumulate
        on = environment.describe_start(self.world_size, self.threads, self.device, precision, batches)
        self.print(f"run {self.folder}: from {name or 'the beginning'}, {on}")
        return saved

    def loader(self, source: Source, views: Views, sampler: BatchSampler) -> ViewLoader:
        """A loader of this rank's shard of each global batch, on the run's device, keyed by the run's seed."""
        shard: dict[str, Any] = {"device": self.device, "rank": self.rank, "world_size": self.world_size}
        size, log = sampler.batch_size, self.print
        workers = environment.choose_workers(self.settings.workers, source, views, size, self.device, self.threads, log)
        return ViewLoader(source, views, sampler, seed=self.seed, workers=workers, **shard)

    def prepare(self, model: nn.Module, optimizer: Any, schedule: Any = None, **tracked: Any) -> nn.Module:
        """Put the model and everything else that has a state on the device, and restore it from the checkpoint.

        Args:
            model: on any device.
            optimizer: over the parameters of the model (and of the objective).
            schedule: a torch schedule, which advances after every optimizer step.
            tracked: everything else with `state_dict` and `load_state_dict` that belongs to the state: the objective, a
                queue, a momentum encoder. Modules among them move to the device.

        Returns:
            The model to call in the loop, wrapped for several ranks.
        """
        self._model = RankModel(self.accelerator, model, optimizer, tracked, self.settings, sharded=self.sharded)
        wrapped, prepared = self._model.wrapped, self._model.optimizer
        self._stepper = Stepper(self.accelerator, prepared, schedule, self.settings, self.print)
        self._logger.watch(tracked.get("objective"), prepared)
        self._state = TrainingState(wrapped, prepared, schedule, self.accelerator.scaler, tracked)
        if self._saved is not None:
            self._state.load_state_dict(self._saved, self.device)
            self.global_step = int(self._saved["step"])
        return wrapped

    def full_model(self, model: M) -> M:
        """The model of `prepare` without wrapper; if sharded, a copy with full weights. Every rank must call this."""
        return cast(M, unwrap(model)) if self._model is None else self._model.full_model(model)

    # --- the loop ---

    def batches(self, loader: ViewLoader, *, score: Callable[[], float] | None = None) -> Iterator[ViewBatch]:
        """The remaining batches, from the current step to the last epoch or step.

        Args:
            loader: is moved to the current step.
            score: evaluated at each checkpoint, higher is better; the best checkpoint is kept. It must not depend on
                the test set.

        Raises:
            ConfigError: the world size does not divide the batch size, or `max_steps` is inside an accumulation group.
            SystemExit: a signal stopped the run after a checkpoint; the status is `STOPPED`.
        """
        self._start(loader, score)
        if self._replay:
            yield from self._replay.batches(loader, self._one_step, self._stepper.checked_loss)
            self._end(0)
        from_main_rank(lambda: describe_run(self.folder, loader, self.seed, self.world_size))
        last, every = self._accumulation.last, self.settings.checkpoint_every or len(loader)
        due, profiler = False, StepProfiler(self.folder, enabled=self.settings.profile and self.is_main, log=self.print)
        with (
            StopSignals(self._launcher) as signals,
            Progress("step", last, self.global_step, epoch_length=len(loader), enabled=self.is_main) as progress,
            profiler,
        ):
            while self.global_step < last:
                for batch in self._logger.timer.timed(loader, loader.each_step()):
                    yield from self._one_step(batch)
                    self._logger.log_step(self.global_step, batch, self._stepper, loader)
                    profiler.advance()
                    progress.advance(self.global_step, self._stepper.loss, self._logger.timing)
                    stopping = signals.finishing = any_rank(bool(signals.received), self.device)
                    due = due or self.global_step % every == 0
                    # A checkpoint holds no gradients, so it waits for the optimizer step.
                    if not self._accumulation.ends_group(self.global_step):
                        continue
                    if stopping or due or self.global_step == last:
                        self.save()
                        due = False
                    if stopping:
                        from_main_rank(lambda: signals.report(self.folder, self.global_step, self.print))
                        self._end(STOPPED)
                    if self.global_step == last:
                        break
        self._failures = gather_failures(loader)
        if self._logger.report_range_test():
            self._end(0)

    def _end(self, status: int) -> NoReturn:
        self.close()
        sys.exit(status)

    def _start(self, loader: ViewLoader, score: Callable[[], float] | None) -> None:
        """Check the loader against the model and the ranks, and move it to the current step."""
        if self._model is not None:
            self._model.check_blocks(loader)
        environment.check_batch_size(loader.sampler.batch_size, self.world_size)
        self._accumulation = AccumulationSchedule.from_settings(self.settings, self.settings.epochs * len(loader))
        if self.sharded:
            check_sharding(self._state.tracked, score)
            self._check_modalities = modalities_may_differ(self._state.model, loader.source)
        if not self._replay:
            self._data = check_data(loader, self._saved, force=self.settings.force, log=self.print)
        loader.load_state_dict({"step": self.global_step})
        self._loader, self._score = loader, score
        if self._saved is not None and (saved := self._saved.get("memories")):
            restore_loader_states(loader, saved, rank=self.rank, world_size=self.world_size, log=self.print)

    def _one_step(self, batch: ViewBatch) -> Iterator[ViewBatch]:
        """Yield a batch, and check that the loop called `step`."""
        step, self._batch = self.global_step, batch
        seed_model(self.seed, "step", step, self.rank)
        if self.settings.accumulate > 1:
            set_gradient_sync(self._state.model, self._accumulation.ends_group(step + 1))
        if self._check_modalities:
            check_same_modalities(batch)
        if not batch.modalities and self.world_size == 1:  # no sample can be read, which the loader has logged
            return self._count_batch(self._stepper.pass_over)
        yield batch
        if self.global_step != step + 1:
            raise RuntimeError("the loop over run.batches(...) calls run.step(loss) once a batch")

    def step(self, loss: Float[Tensor, ""]) -> bool:
        """Backward pass, NaN/inf check, clipping, optimizer step, and schedule.

        Under `accumulate` the optimizer steps after several calls, by the mean of their gradients, and the schedule
        advances by as many steps. An incomplete last group is divided by the full number of batches too.

        Returns:
            Whether the batch was the last of its group: averages of the weights are updated then.

        Raises:
            NonFiniteError: loss or gradient is not finite, on one GPU perhaps of the last step; weights are unchanged.
        """
        timer = self._logger.timer
        timer.mark("forward")
        self._stepper.backward(loss)
        timer.mark("backward")
        self._count_batch(self._stepper.optimizer_step)
        timer.mark("optimizer")
        return self._accumulation.ends_group(self.global_step)

    def _count_batch(self, end_group: Callable[[int, StepLocation], None]) -> None:
        number = self.global_step + 1
        if self._accumulation.ends_group(number):
            location = StepLocation(self.folder, self.seed, self.global_step, self.rank, self._batch)
            end_group(self._accumulation.accumulated(number), location)
        self.global_step = number

    # --- output ---

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        self._stepper.finish_check()
        state = {"step": self.global_step, "seed": self.seed, "data": self._data}
        state["memories"] = gather_loader_states(self._loader)
        state |= self._state.state_dict(keep=self.is_main)
        if score is None and self._score is not None:
            score = self._score()
            self.print(f"checkpoint at step {self.global_step}: score {score:.4f}")
        from_main_rank(lambda: self._opened.save(self.checkpoints, self.global_step, state, score))

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line of numbers and short texts to metrics.jsonl and to the trackers."""
        self._logger.log(self.global_step, values)

    def note(self, **values: Any) -> None:
        """Add values, such as diagnostics, to the log line of this step, if it gets one."""
        self._logger.note(values)

    def add_unreadable(self, failures: Mapping[str, str]) -> None:
        """List what another pass could not read, reasons by file, too. Every rank must call this."""
        for found in gather_objects(dict(failures)):
            self._failures |= found

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json and the unreadable samples, print the run folder, and close."""
        if self._model is not None:
            self._stepper.finish_check()
        if self.is_main:
            self._logger.write_results(results, self._failures)
            self.print(f"run folder: {self.folder}")
        self.close()

    def close(self) -> None:
        """End the trackers and the process group when all ranks have called this; they wait without a timeout."""
        if self._closed:
            return
        self._closed = True
        barrier(self._closing_group)
        self._logger.close()
        self.accelerator.free_memory()
        self.accelerator.end_training()
        self._opened.release()
