"""Momentum encoder: an exponential moving average (EMA) of a model (MoCo, BYOL).

It embeds candidates during training. The EMA of weights for evaluation is `mmcon.training.optim.weight_average`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmcon.distributed.collectives import full_tensor
from mmcon.errors import InputError


class MomentumEncoder(nn.Module):
    """An exponential moving average of the parameters and buffers of a model; its forward pass has no gradient.

    Integer buffers (the batch counter of batch norm) are copied. With `total_steps`, the momentum rises to 1 along a
    cosine, as in BYOL: `1 - (1 - momentum) (cos(π step / total_steps) + 1) / 2`. The state dict holds the step.

    Args:
        model: the model to average, with or without a data-parallel wrapper. It is copied here; the copy stays
            unsharded if the model is sharded over ranks later.
        momentum: weight of the old average in an update, in [0, 1).
        total_steps: steps over which the momentum rises; None: it is constant.

    >>> momentum_encoder = MomentumEncoder(nn.Linear(4, 2), momentum=0.99)
    >>> momentum_encoder(torch.zeros(1, 4)).requires_grad
    False
    """

    step: Int[Tensor, ""]

    def __init__(self, model: nn.Module, *, momentum: float, total_steps: int | None = None) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise InputError("MomentumEncoder", expected="momentum in [0, 1)", got=str(momentum))
        self.model = copy.deepcopy(unwrap(model)).requires_grad_(False)
        self.momentum, self.total_steps = momentum, total_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The output of the averaged model, without gradient."""
        return self.model(*inputs, **named)

    def current_momentum(self) -> float:
        """The momentum of the next update."""
        if self.total_steps is None:
            return self.momentum
        progress = min(int(self.step) / self.total_steps, 1.0)
        return 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average; call after each step of the optimizer."""
        keep = self.current_momentum()
        source = unwrap(model)
        averages = [*self.model.parameters(), *self.model.buffers()]
        for average, current in zip(averages, [*source.parameters(), *source.buffers()], strict=True):
            if average.is_floating_point():
                average.lerp_(full_tensor(current).to(average), 1 - keep)
            else:
                average.copy_(full_tensor(current))
        self.step += 1


def unwrap(model: nn.Module) -> nn.Module:
    """The model without its data-parallel wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
