"""A step: backward, finite guard, clip, optimizer, schedule; by one batch or by a group of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import any_rank
from mmcon.distributed.fsdp import clip_gradients, gradient_norm
from mmcon.errors import ConfigError, NonFiniteError
from mmcon.training.config import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Groups:
    """Which batches share a step of the optimizer.

    Attributes:
        size: batches in a group.
        last: the run's last batch, counted from 1, which ends a group whatever its size.
    """

    size: int = 1
    last: int = -1

    @staticmethod
    def of(settings: RunSettings, batches: int) -> Groups:
        """The groups of a run that has so many batches in all, of which `max_steps` may leave some to a later run.

        Raises:
            ConfigError: `max_steps` ends within a group, whose gradients no checkpoint would hold.
        """
        size, last = settings.accumulate, batches
        if settings.max_steps is not None and settings.max_steps < batches:
            last = settings.max_steps
            if last % size:
                near = [n for n in (last - last % size, last - last % size + size) if n]
                raise ConfigError(
                    "--max-steps",
                    expected=f"a multiple of --accumulate {size}, since gradients of a cut group are in no checkpoint",
                    got=str(last),
                    fix=f"--max-steps {' or '.join(map(str, near))}",
                )
        return Groups(size, last)

    def end(self, step: int) -> bool:
        """Whether the optimizer moves at the end of a step, counted from 1."""
        return step % self.size == 0 or step == self.last

    def batches(self, step: int) -> int:
        """Of how many batches there are gradients at the end of a step."""
        return (step - 1) % self.size + 1


class Stepper:
    """Makes the steps of a run.

    Args:
        accelerator: for its backward pass and its gradient scaler.
        optimizer: as Accelerate prepared it.
        schedule: moves with the optimizer, or None.
        settings: how gradients are gathered, clipped and guarded.
        tell: prints.

    Attributes:
        loss: of the last batch.
        norm: of the last gradients that were whole, before clipping; None before the first.
        skipped: steps that were left out, in a row.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Any,
        schedule: Any,
        settings: RunSettings,
        tell: Callable[[str], Any] = print,
    ) -> None:
        self.accelerator, self.optimizer, self.schedule = accelerator, optimizer, schedule
        self.settings, self.tell = settings, tell
        self.loss: Tensor = torch.tensor(float("nan"))
        self.norm: Tensor | None = None
        self.skipped = 0

    def backward(self, loss: Tensor) -> None:
        """Add a batch's gradients, by its share of a group."""
        together = self.settings.accumulate
        self.accelerator.backward(loss / together if together > 1 else loss)
        self.loss = loss.detach()

    def move(self, batches: int, place: Place) -> None:
        """The optimizer's step by the gradients of so many batches, unless a number is not finite.

        The schedule moves with the optimizer, as many steps as there were batches, for it is made for batches.

        Raises:
            NonFiniteError: the loss or a gradient is not finite on any process; weights and optimizer are as before.
        """
        self.norm = self._gradient_norm()
        if any_rank(not self._sound(self.norm), self.accelerator.device):
            self._refuse(place)
        else:
            self.skipped = 0
            self.optimizer.step()
            if self.schedule is not None and not self.optimizer.step_was_skipped:
                for _ in range(batches):
                    self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _gradient_norm(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.accelerator.unscale_gradients(self.optimizer)
        norm = gradient_norm(parameters)
        if self.settings.clip_norm is not None:
            clip_gradients(parameters, norm, self.settings.clip_norm)
        return norm

    def _sound(self, norm: Tensor) -> bool:
        """Whether loss and gradients are finite, as far as a gradient scaler does not see to it.

        In fp16 gradients overflow now and then: the scaler leaves such steps out and lowers its scale, and only where
        they do so unscaled is there something wrong.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() >= 1:
            return bool(torch.isfinite(self.loss))
        return bool(torch.isfinite(norm) & torch.isfinite(self.loss))

    def _refuse(self, place: Place) -> None:
        """Leave out a step that is not finite, or stop with the keys that make its batch again."""
        self.skipped += 1
        got = f"loss {float(self.loss)}, gradient norm {float('nan') if self.norm is None else float(self.norm)}"
        if self.settings.on_nonfinite == "skip" and self.skipped <= self.settings.max_skips:
            self.tell(f"step {place.step}: {got}; skipped ({self.skipped} in a row)")
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()
            return
        raise NonFiniteError(
            f"step {place.step + 1}",
            expected="a finite loss and finite gradients on every process",
            got=got,
            fix="lower the learning rate, raise the temperature, clip gradients, or pass --on-nonfinite skip;"
            f" `{place.replay}` shows what the model saw",
            key=f"seed={place.seed}, step={place.step}, process={place.rank}, sample={place.samples}",
        )


@dataclass(frozen=True)
class Place:
    """Where a run stands, for a message.

    Attributes:
        folder: of the run.
        seed: of the run.
        step: how many steps are done.
        rank: which one tells.
        batch: what the step saw.
    """

    folder: Path
    seed: int
    step: int
    rank: int
    batch: ViewBatch | None

    @property
    def samples(self) -> list[int]:
        """The batch's samples in this process."""
        return next(iter(self.batch.index.values()))["sample"].unique().tolist() if self.batch else []

    @property
    def replay(self) -> str:
        """The command that shows the step again."""
        first = self.samples[0] if self.samples else "ID"
        return f"mmcon replay {self.folder} --step {self.step + 1} --sample {first}"
