"""Batch norm with the statistics of the global batch, on any device and world size."""

from __future__ import annotations

from typing import TypeVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmcon.distributed.collectives import all_reduce_sum_with_gradient, get_world_size
from mmcon.errors import ConfigError, InputError

M = TypeVar("M", bound=nn.Module)


@final
class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all ranks, for CPUs: torch's SyncBatchNorm supports only GPUs.

    Two all-reduced sums give the mean `μ = Σ x / n` and the variance `Σ (x - μ)² / n` over all rows; gradients flow
    through both. Parameter names and running statistics are those of torch's batch norm.
    """

    def _check_input_dim(self, input: Shaped[Tensor, "..."]) -> None:
        if input.dim() < 2:
            raise InputError("batch norm", expected="`n c` or `n c *`", got=str(tuple(input.shape)))

    def forward(self, input: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c *space"]:
        """Normalize the input; ranks may have different numbers of rows."""
        if not self.training or get_world_size() == 1:
            return super().forward(input)
        axes = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        # Statistics in float32: sums over many rows lose precision in bfloat16.
        dtype, input = input.dtype, input.to(torch.promote_types(input.dtype, torch.float32))
        local_n = input.new_tensor([input.numel() / input.shape[1]])
        # The count travels with the sums, so that the mean costs one collective.
        sums = all_reduce_sum_with_gradient(torch.cat([input.sum(axes), local_n]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        # Two passes: the difference E[x²] - μ² loses precision for a large mean.
        centered = input - mean.view(shape)
        variance = all_reduce_sum_with_gradient(centered.square().sum(axes)) / n
        self._update_running_statistics(mean.detach(), variance.detach() * n / (n - 1), n)
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(dtype)

    def _update_running_statistics(
        self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"], n: Float[Tensor, ""]
    ) -> None:
        """Update the running mean and the running unbiased variance, as torch does."""
        if n < 2:
            raise InputError("batch norm", expected="at least two values a channel", got=f"{int(n)}")
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(variance.to(self.running_var), weight)


def synchronize_batch_norm(model: M, device: torch.device | str = "cpu") -> M:
    """Replace every batch norm of a model, in place, by one with statistics over all ranks.

    Parameters and state-dict names are kept. On a GPU the replacement is torch's SyncBatchNorm, else `GlobalBatchNorm`.

    Raises:
        ConfigError: the model has another library's subclass of batch norm, which may compute more than batch norm.
    """
    for name, module in model.named_children():
        if isinstance(module, GlobalBatchNorm | nn.SyncBatchNorm):
            continue
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(model, name, _synchronized(module, device))  # type: ignore[arg-type]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                "--sync-batch-norm",
                expected="torch's batch norms",
                got=f"{type(module).__name__} at {name!r}",
                fix="use that library's own conversion before the run prepares the model",
            )
        else:
            synchronize_batch_norm(module, device)
    return model


def _synchronized(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, device: torch.device | str) -> nn.Module:
    kind = nn.SyncBatchNorm if torch.device(device).type == "cuda" else GlobalBatchNorm
    replacement = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(replacement, name, getattr(norm, name))
    return replacement.train(norm.training)
