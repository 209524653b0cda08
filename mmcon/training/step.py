"""A training step: backward, NaN/inf check, clipping, optimizer and schedule, over one or several batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import any_rank
from mmcon.distributed.fsdp import clip_gradients, gradient_norm
from mmcon.errors import ConfigError, NonFiniteError
from mmcon.training.config import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Optimizers of torch whose fused kernel changes neither weights nor state where `found_inf` is 1.
STOPPABLE_OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


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

    def without_views(self) -> StepLocation:
        """The same step, whose batch has its index alone: views take memory."""
        return replace(self, batch=ViewBatch({}, self.batch.index, step=self.batch.step) if self.batch else None)


def first_ids(samples: list[int], shown: int = 4) -> str:
    """The first of many ids, and how many more there are."""
    listed = ", ".join(map(str, samples[:shown]))
    return f"[{listed}]" if len(samples) <= shown else f"[{listed}, and {len(samples) - shown:,} more]"


class PendingCheck(NamedTuple):
    """The check of a step whose result the host has not read.

    Attributes:
        failed: 1 if the loss or a gradient is not finite, else 0; in the memory of the host once `copied` is over.
        copied: the event after the copy to the host; None on a CPU.
        loss: the loss of the step.
        norm: the norm of its gradients.
        location: the step.
    """

    failed: Float[Tensor, ""]
    copied: torch.cuda.Event | None
    loss: Float[Tensor, ""]
    norm: Float[Tensor, ""]
    location: StepLocation


class Stepper:
    """Executes the steps of a run.

    On one GPU the host does not wait for the check of loss and gradients: the device leaves out the update of a step
    that fails, and the host reads the check with the next step, log line or checkpoint. Otherwise the launches of the
    update would begin only when the device has nothing left to do.

    Args:
        accelerator: runs the backward pass and scales gradients.
        optimizer: the optimizer that Accelerate prepared.
        schedule: advances with the optimizer, or None.
        settings: of accumulation, clipping, and the NaN/inf check.
        log: receives messages.
        checks_late: read a check with the next step, where the optimizer allows it; by default on one GPU.

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
        *,
        checks_late: bool | None = None,
    ) -> None:
        self.accelerator, self.optimizer, self.schedule = accelerator, optimizer, schedule
        self.settings, self.log = settings, log
        if checks_late is None:
            checks_late = accelerator.device.type == "cuda" and accelerator.num_processes == 1
        self.checks_late = checks_late
        self.loss: Float[Tensor, ""] = torch.tensor(float("nan"))
        self.gradient_norm: Float[Tensor, ""] | None = None
        self.skipped = 0
        self._pending: PendingCheck | None = None

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of a batch, divided by the number of accumulated batches."""
        batches = self.settings.accumulate
        self.accelerator.backward(loss / batches if batches > 1 else loss)
        self.loss = loss.detach()

    def optimizer_step(self, batches: int, location: StepLocation) -> None:
        """Step the optimizer by the gradients of `batches` batches, unless the loss or a gradient is not finite.

        The schedule counts batches, so it advances by as many steps.

        Raises:
            NonFiniteError: the loss or a gradient is not finite on some rank, in this step or in the one before; the
                update of that step has changed neither weights nor states of the optimizer. The schedule has advanced
                after a late check, in memory only: no checkpoint follows.
        """
        self.finish_check()
        self.gradient_norm = self._clip()
        if self._can_check_late():
            self._update_if_finite(self.gradient_norm, location)
            self._advance_schedule(batches)
        elif any_rank(not self._is_finite(self.gradient_norm), self.accelerator.device):
            self._skip_or_raise(location)
        else:
            self.skipped = 0
            self.optimizer.step()
            self._advance_schedule(batches)
        self.optimizer.zero_grad(set_to_none=True)

    def finish_check(self) -> None:
        """Read the check of the last step, if the host has not read it.

        Raises:
            NonFiniteError: the loss or a gradient was not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.copied is not None:
            pending.copied.synchronize()
        if bool(pending.failed):
            raise _non_finite_error(pending.location, pending.loss, pending.norm)

    def checked_loss(self) -> Float[Tensor, ""]:
        """The loss of the last batch, whose check is over."""
        self.finish_check()
        return self.loss

    def pass_over(self, batches: int, location: StepLocation) -> None:
        """End a group of batches whose last one has no rows: step by the gradients of the others, if there are any."""
        if self._parameters():
            self.optimizer_step(batches, location)
        elif self.schedule is not None:
            for _ in range(batches):
                self.schedule.step()

    def _parameters(self) -> list[Shaped[Tensor, "..."]]:
        """The parameters that have gradients."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _clip(self) -> Float[Tensor, ""]:
        """Clip the unscaled gradients, and return their norm before clipping."""
        parameters = self._parameters()
        # The norm and the limit are those of gradients without the scale of fp16.
        self.accelerator.unscale_gradients(self.optimizer)
        norm = gradient_norm(parameters)
        if self.settings.clip_norm is not None:
            clip_gradients(parameters, norm, self.settings.clip_norm)
        return norm

    def _advance_schedule(self, batches: int) -> None:
        if self.schedule is not None and not self.optimizer.step_was_skipped:
            for _ in range(batches):
                self.schedule.step()

    # --- the check of loss and gradients ---

    def _both_finite(self, norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the loss and the gradients are finite, by one comparison on the device."""
        return torch.isfinite(norm) & torch.isfinite(self.loss)

    def _is_finite(self, norm: Float[Tensor, ""]) -> bool:
        """Whether the loss and, unless a gradient scaler checks them, the gradients are finite.

        In fp16 scaled gradients overflow from time to time: the scaler skips such steps and lowers its scale. Gradients
        that overflow at a scale below 1 are an error.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() >= 1:
            return bool(torch.isfinite(self.loss))
        return bool(self._both_finite(norm))

    def _can_check_late(self) -> bool:
        """Whether the device can leave out the update by itself, so that nothing else depends on the check.

        A skipped step leaves the schedule as it is, and a gradient scaler decides by itself. A fused kernel of SGD
        leaves a momentum that the step creates without a value, so that all states must be there.
        """
        optimizer = self.optimizer.optimizer
        return (
            self.checks_late
            and self.settings.on_nonfinite == "stop"
            and self.accelerator.scaler is None
            and type(optimizer) in STOPPABLE_OPTIMIZERS
            and all(group.get("fused") for group in optimizer.param_groups)
            and all(parameter in optimizer.state for parameter in self._parameters())
        )

    def _update_if_finite(self, norm: Float[Tensor, ""], location: StepLocation) -> None:
        """Enqueue the check and an update that depends on it; `finish_check` reads the check."""
        failed, on_gpu = (~self._both_finite(norm)).float(), self.accelerator.device.type == "cuda"
        in_host_memory, copied = failed.to("cpu", non_blocking=True), torch.cuda.Event() if on_gpu else None
        if copied is not None:
            copied.record()
        self._pending = PendingCheck(in_host_memory, copied, self.loss, norm, location.without_views())
        optimizer = self.optimizer.optimizer
        optimizer.found_inf = failed
        try:
            self.optimizer.step()
        finally:
            del optimizer.found_inf

    def _skip_or_raise(self, location: StepLocation) -> None:
        """Skip a step with NaN or inf, or raise an error with the keys that reproduce its batch."""
        self.skipped += 1
        norm = torch.tensor(float("nan")) if self.gradient_norm is None else self.gradient_norm
        if self.settings.on_nonfinite == "skip" and self.skipped <= self.settings.max_skips:
            got = _loss_and_norm(self.loss, norm)
            self.log(f"step {location.step}: {got}; skipped ({self.skipped} in a row)")
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()
            return
        raise _non_finite_error(location, self.loss, norm)


def _loss_and_norm(loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> str:
    return f"loss {float(loss)}, gradient norm {float(norm)}"


def _non_finite_error(location: StepLocation, loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> NonFiniteError:
    """The error of a step, with the keys that reproduce its batch."""
    return NonFiniteError(
        f"step {location.step + 1}",
        expected="a finite loss and finite gradients on every rank",
        got=_loss_and_norm(loss, norm),
        fix="lower the learning rate, raise the temperature, clip gradients, or pass --on-nonfinite skip;"
        f" `{location.replay_command}` writes the inputs of the model",
        key=f"seed={location.seed}, step={location.step}, rank={location.rank}, sample={first_ids(location.samples)}",
    )
