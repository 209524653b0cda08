"""A training step: backward, NaN/inf check, clipping, optimizer and schedule, over one or several batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import any_rank
from mmcon.distributed.fsdp import clip_gradients, gradient_norm
from mmcon.errors import ConfigError, NonFiniteError
from mmcon.training.config import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class AccumulationSchedule:
    """Which batches share an optimizer step.

    Attributes:
        size: batches per optimizer step.
        last: the last batch of the run, counted from 1; it ends a group of any size.
    """

    size: int = 1
    last: int = -1

    @staticmethod
    def from_settings(settings: RunSettings, batches: int) -> AccumulationSchedule:
        """The schedule of a run of `batches` batches in total; `max_steps` may end it earlier.

        Raises:
            ConfigError: `max_steps` is inside a group; checkpoints do not hold the gradients of an incomplete group.
        """
        size, last = settings.accumulate, batches
        if settings.max_steps is not None and settings.max_steps < batches:
            last = settings.max_steps
            if last % size:
                near = [n for n in (last - last % size, last - last % size + size) if n]
                raise ConfigError(
                    "--max-steps",
                    expected=f"a multiple of --accumulate {size}, since checkpoints hold no gradients of a group",
                    got=str(last),
                    fix=f"--max-steps {' or '.join(map(str, near))}",
                )
        return AccumulationSchedule(size, last)

    def ends_group(self, batch: int) -> bool:
        """Whether the optimizer steps after a batch, counted from 1."""
        return batch % self.size == 0 or batch == self.last

    def accumulated(self, batch: int) -> int:
        """The number of batches whose gradients are summed after a batch."""
        return (batch - 1) % self.size + 1


@dataclass(frozen=True)
class StepLocation:
    """The step and the samples of an error message.

    Attributes:
        folder: the run folder.
        seed: the seed of the run.
        step: the number of finished steps.
        rank: the rank of this process.
        batch: the batch of the step.
    """

    folder: Path
    seed: int
    step: int
    rank: int
    batch: ViewBatch | None

    @property
    def samples(self) -> list[int]:
        """The ids of the batch's samples on this rank."""
        return next(iter(self.batch.index.values()))["sample"].unique().tolist() if self.batch else []

    @property
    def replay_command(self) -> str:
        """The command that replays the step."""
        first = self.samples[0] if self.samples else "ID"
        return f"mmcon replay {self.folder} --step {self.step + 1} --sample {first}"


def first_ids(samples: list[int], shown: int = 4) -> str:
    """The first of many ids, and how many more there are."""
    listed = ", ".join(map(str, samples[:shown]))
    return f"[{listed}]" if len(samples) <= shown else f"[{listed}, and {len(samples) - shown:,} more]"


class Stepper:
    """Executes the steps of a run.

    Args:
        accelerator: runs the backward pass and scales gradients.
        optimizer: the optimizer that Accelerate prepared.
        schedule: advances with the optimizer, or None.
        settings: of accumulation, clipping, and the NaN/inf check.
        log: receives messages.

    Attributes:
        loss: the loss of the last batch.
        gradient_norm: the norm at the last optimizer step, before clipping; None before the first.
        skipped: the number of consecutive skipped steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Any,
        schedule: Any,
        settings: RunSettings,
        log: Callable[[str], Any] = print,
    ) -> None:
        self.accelerator, self.optimizer, self.schedule = accelerator, optimizer, schedule
        self.settings, self.log = settings, log
        self.loss: Float[Tensor, ""] = torch.tensor(float("nan"))
        self.gradient_norm: Float[Tensor, ""] | None = None
        self.skipped = 0

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of a batch, divided by the number of accumulated batches."""
        batches = self.settings.accumulate
        self.accelerator.backward(loss / batches if batches > 1 else loss)
        self.loss = loss.detach()

    def optimizer_step(self, batches: int, location: StepLocation) -> None:
        """Step the optimizer by the gradients of `batches` batches, unless the loss or a gradient is not finite.

        The schedule counts batches, so it advances by as many steps.

        Raises:
            NonFiniteError: the loss or a gradient is not finite on some rank; weights and optimizer are unchanged.
        """
        self.gradient_norm = self._clip()
        if any_rank(not self._is_finite(self.gradient_norm), self.accelerator.device):
            self._skip_or_raise(location)
        else:
            self.skipped = 0
            self.optimizer.step()
            if self.schedule is not None and not self.optimizer.step_was_skipped:
                for _ in range(batches):
                    self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def pass_over(self, batches: int, location: StepLocation) -> None:
        """End a group of batches whose last one has no rows: step by the gradients of the others, if there are any."""
        if any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"]):
            self.optimizer_step(batches, location)
        elif self.schedule is not None:
            for _ in range(batches):
                self.schedule.step()

    def _clip(self) -> Float[Tensor, ""]:
        """Clip the unscaled gradients, and return their norm before clipping."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The norm and the limit are those of gradients without the scale of fp16.
        self.accelerator.unscale_gradients(self.optimizer)
        norm = gradient_norm(parameters)
        if self.settings.clip_norm is not None:
            clip_gradients(parameters, norm, self.settings.clip_norm)
        return norm

    def _is_finite(self, norm: Float[Tensor, ""]) -> bool:
        """Whether the loss and, unless a gradient scaler checks them, the gradients are finite.

        In fp16 scaled gradients overflow from time to time: the scaler skips such steps and lowers its scale. Gradients
        that overflow at a scale below 1 are an error.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() >= 1:
            return bool(torch.isfinite(self.loss))
        # One comparison on the device, so that the step waits for it once.
        return bool(torch.isfinite(norm) & torch.isfinite(self.loss))

    def _skip_or_raise(self, location: StepLocation) -> None:
        """Skip a step with NaN or inf, or raise an error with the keys that reproduce its batch."""
        self.skipped += 1
        norm = float("nan") if self.gradient_norm is None else float(self.gradient_norm)
        got = f"loss {float(self.loss)}, gradient norm {norm}"
        if self.settings.on_nonfinite == "skip" and self.skipped <= self.settings.max_skips:
            self.log(f"step {location.step}: {got}; skipped ({self.skipped} in a row)")
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()
            return
        raise NonFiniteError(
            f"step {location.step + 1}",
            expected="a finite loss and finite gradients on every rank",
            got=got,
            fix="lower the learning rate, raise the temperature, clip gradients, or pass --on-nonfinite skip;"
            f" `{location.replay_command}` writes the inputs of the model",
            key=f"seed={location.seed}, step={location.step}, rank={location.rank},"
            f" sample={first_ids(location.samples)}",
        )
