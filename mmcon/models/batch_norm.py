"""Batch norm whose statistics are those of the global batch, on any number of processes and any device."""

from __future__ import annotations

from typing import TypeVar, final

import torch
from torch import Tensor, nn

from mmcon.distributed.collectives import all_reduce_sum_with_gradient, get_world_size
from mmcon.errors import ConfigError, InputError

M = TypeVar("M", bound=nn.Module)


@final
class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all processes where torch's SyncBatchNorm cannot be had: on CPUs.

    Two sums over processes give the statistics of all rows, mean `μ = Σ x / n` and variance `Σ (x - μ)² / n`, and
    gradients flow through both. Names and running statistics are those of torch's batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise InputError("batch norm", expected="`n c` or `n c *`", got=str(tuple(input.shape)))

    def forward(self, input: Tensor) -> Tensor:
        """From `n c *` to the same shape; processes may hold different numbers of rows."""
        if not self.training or get_world_size() == 1:
            return super().forward(input)
        axes = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        given, input = input.dtype, input.to(torch.promote_types(input.dtype, torch.float32))  # sums need the digits
        here = input.new_tensor([input.numel() / input.shape[1]])
        sums = all_reduce_sum_with_gradient(torch.cat([input.sum(axes), here]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        centred = input - mean.view(shape)
        variance = all_reduce_sum_with_gradient(centred.square().sum(axes)) / n
        self._remember(mean.detach(), variance.detach() * n / (n - 1), n)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(given)

    def _remember(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        """Move the running statistics; the running variance is the unbiased one, as in torch."""
        if n < 2:
            raise InputError("batch norm", expected="two values a channel at least", got=f"{int(n)}")
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def synchronize_batch_norm(model: M, device: torch.device | str = "cpu") -> M:
    """Make every batch norm inside a model look at the rows of all processes, in place.

    Parameters and state-dict names stay. On a GPU the batch norms become torch's SyncBatchNorm, else `GlobalBatchNorm`.

    Raises:
        ConfigError: a batch norm of a library's own, which does more than batch norm, stands in the model.
    """
    for name, part in model.named_children():
        if isinstance(part, GlobalBatchNorm | nn.SyncBatchNorm):
            continue
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(model, name, _replaced(part, device))  # type: ignore[arg-type]
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                "--sync-batch-norm",
                expected="torch's batch norms",
                got=f"{type(part).__name__} at {name!r}",
                fix="use that library's own conversion before the run prepares the model",
            )
        else:
            synchronize_batch_norm(part, device)
    return model


def _replaced(old: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, device: torch.device | str) -> nn.Module:
    kind = nn.SyncBatchNorm if torch.device(device).type == "cuda" else GlobalBatchNorm
    new = kind(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(old, name))
    return new.train(old.training)
