"""How the weights lie on the processes: whole copies of them (DDP), or a part on each (FSDP2), behind the same calls.

Sharding is PyTorch's `fully_shard`, called here rather than by Accelerate, which has no FSDP on CPUs: tests and GPUs go
the same way, and what Accelerate's launcher was told of FSDP (resharding, offloading) is respected. Checkpoints hold
whole tensors under the model's own names either way, so that a run may go on under the other engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mmcon.batch import tree_map
from mmcon.candidates.gather import whole
from mmcon.errors import ConfigError
from mmcon.training.baseline import CrossEntropy

#: Parts of a model with at least so many weights are gathered and freed by themselves; the rest goes with the root.
SHARD_WEIGHTS = 1_000_000


def shard(model: nn.Module, optimizer: Optimizer, device: torch.device, processes: int, **options: Any) -> None:
    """Leave each process its part of every parameter, in place, and point the optimizer at the parts.

    Args:
        model: whole, equal on all processes, on the device.
        optimizer: over parameters of the model, and perhaps of others (an objective's), which stay whole.
        device: of this process.
        processes: how many there are.
        options: for `fully_shard`.
    """
    before = dict(model.named_parameters())
    for parameter in before.values():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last weights; images may be so still
    mesh = init_device_mesh(device.type, (processes,))
    for part in _parts(model):
        fully_shard(part, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    after = dict(model.named_parameters())
    now = {id(parameter): after[name] for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [now.get(id(parameter), parameter) for parameter in group["params"]]
        if len({isinstance(parameter, DTensor) for parameter in group["params"]}) > 1:
            group["foreach"] = False  # PyTorch does not take parts and whole tensors into one call


def _parts(module: nn.Module) -> Iterable[nn.Module]:
    """The parts below a module that are sharded by themselves, inner ones first."""
    for child in module.children():
        yield from _parts(child)
        callable_part = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        own = sum(p.numel() for p in child.parameters() if not isinstance(p, DTensor))
        if callable_part and own >= SHARD_WEIGHTS:
            yield child


def check_sharding(optimizer: Optimizer, tracked: Mapping[str, Any], score: Any = None) -> None:
    """Refuse, before the first step, what works on whole copies only.

    Raises:
        ConfigError: LARS, an average of weights, a score that one process computes, or cross-entropy, whose encoder is
            judged without its classifier.
    """
    found = None
    if type(getattr(optimizer, "optimizer", optimizer)).__name__ == "Lars":
        found = "LARS, which needs norms of whole tensors"
    elif any(isinstance(part, AveragedModel) for part in tracked.values()):
        found = "an average of weights (--ema-decay)"
    elif score is not None:
        found = "a score of each checkpoint (--keep-best)"
    elif isinstance(tracked.get("objective"), CrossEntropy):
        found = "cross-entropy"
    if found:
        raise ConfigError(
            "--engine fsdp2",
            expected="a contrastive objective with adamw or sgd, no average of weights, no --keep-best",
            got=found,
            fix="choose --engine ddp, which keeps whole copies",
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights."""
    return isinstance(model, FSDPModule)


def synchronise_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass averages gradients over processes, or leaves them for a later one to do so."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        model.require_backward_grad_sync = now


# --- whole tensors ---------------------------------------------------------------------------------------------------


def whole_state(state: Any) -> Any:
    """Nested dicts and lists with whole tensors in the place of parts."""
    return tree_map(whole, state)


def like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor laid out as another is: this process's part of it, or as it is."""
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)


@torch.no_grad()
def load_model(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give a model, whole or in parts, the weights of a whole state dict."""
    if not is_sharded(model):
        model.load_state_dict(saved)
        return
    state = model.state_dict()
    missing = sorted(set(state) ^ set(saved))
    if missing:
        raise ConfigError("--resume", expected="a checkpoint of this model", got=f"names on one side only: {missing}")
    for name, tensor in state.items():
        tensor.copy_(like(saved[name], tensor))


def load_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Give an optimizer, over whole parameters or parts, a state of whole tensors."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [group.get("foreach") for group in optimizer.param_groups]
    state = {
        index: {
            name: like(value, parameters[index]) if isinstance(value, Tensor) else value for name, value in of.items()
        }
        for index, of in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
    for group, foreach in zip(optimizer.param_groups, kept, strict=True):
        group["foreach"] = foreach


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together, of whole tensors and of parts."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) is parts] for parts in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm(of)) for of in kinds if of]
    return norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0]) for norm in norms]).norm()


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], norm: Tensor, most: float) -> None:
    """Scale all gradients alike, so that their norm is at most `most`."""
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(float(scale) if isinstance(parameter.grad, DTensor) else scale.to(parameter.grad))
