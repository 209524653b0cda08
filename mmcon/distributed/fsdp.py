"""DDP and FSDP2 behind one interface, so that tests on a CPU run the same code as GPUs.

Sharding calls PyTorch's `fully_shard` directly, since Accelerate has no FSDP on CPUs. The FSDP settings of
Accelerate's launcher (resharding, offloading) are respected. Checkpoints hold full tensors under the names of the model
with either engine, so that a run can resume under the other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mmcon.batch import ViewBatch, tree_map
from mmcon.distributed.collectives import broadcast, full_tensor, gather_objects
from mmcon.errors import ConfigError, InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Modules with at least so many parameters are gathered and freed one by one; the rest belongs to the root.
MIN_SHARDED_PARAMETERS = 1_000_000


def wrap(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, *, sharded: bool) -> nn.Module:
    """The model on the device of this rank, wrapped by DDP, or sharded over ranks by FSDP2."""
    if not sharded:
        return accelerator.prepare_model(model)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    options = {"reshard_after_forward": plugin.reshard_after_forward} if plugin is not None else {}
    if plugin is not None and plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    shard(model.to(accelerator.device), optimizer, accelerator.device, accelerator.num_processes, **options)
    # Accelerate adds its autocast; in evaluation mode it does not wrap the model again.
    return accelerator.prepare_model(model, evaluation_mode=True)


def compile_encoders(model: nn.Module) -> None:
    """Compile the encoders of a model in place, or the whole model if it has none. The state dict keeps its names."""
    encoders = getattr(model, "encoders", None)
    for module in encoders.values() if isinstance(encoders, nn.ModuleDict) else (model,):
        module.compile()


def shard(model: nn.Module, optimizer: Optimizer, device: torch.device, world_size: int, **options: Any) -> None:
    """Shard the parameters of a model over ranks, in place, and give the optimizer the sharded parameters.

    Args:
        model: with full weights, on the device; all ranks start from the weights of rank 0.
        optimizer: over parameters of the model; parameters of other modules (an objective) stay full.
        device: of this rank.
        world_size: the number of ranks.
        options: for `fully_shard`.
    """
    broadcast([*model.parameters(), *model.buffers()])
    full = dict(model.named_parameters())
    for parameter in full.values():
        parameter.data = parameter.data.contiguous()  # FSDP2 rejects channels-last weights; images may keep that layout
    mesh = init_device_mesh(device.type, (world_size,))
    for module in _sharded_modules(model):
        fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    shards = dict(model.named_parameters())
    shard_of = {id(parameter): shards[name] for name, parameter in full.items()}
    for group in optimizer.param_groups:
        group["params"] = [shard_of.get(id(parameter), parameter) for parameter in group["params"]]
        if len({isinstance(parameter, DTensor) for parameter in group["params"]}) > 1:
            group["foreach"] = False  # PyTorch's foreach kernels reject a mix of DTensors and plain tensors


def _sharded_modules(module: nn.Module) -> Iterable[nn.Module]:
    """The submodules that are sharded on their own, inner ones first."""
    for child in module.children():
        yield from _sharded_modules(child)
        callable_module = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        unsharded = sum(p.numel() for p in child.parameters() if not isinstance(p, DTensor))
        if callable_module and unsharded >= MIN_SHARDED_PARAMETERS:
            yield child


def check_sharding(tracked: Mapping[str, Any], score: Any = None) -> None:
    """Check, before the first step, that no feature needs full weights on each rank.

    Raises:
        ConfigError: an average of weights, a score of each checkpoint, which one rank computes, or cross-entropy, whose
            encoder is evaluated without its classifier.
    """
    found = None
    if any(isinstance(item, AveragedModel) for item in tracked.values()):
        found = "an average of weights (--ema-decay)"
    elif score is not None:
        found = "a score of each checkpoint (--keep-best)"
    elif not getattr(tracked.get("objective"), "supports_sharding", True):
        found = type(tracked["objective"]).__name__
    if found:
        raise ConfigError(
            "--engine fsdp2",
            expected="a contrastive objective, no average of weights, no --keep-best",
            got=found,
            fix="choose --engine ddp, which keeps full copies of the weights",
        )


def modalities_may_differ(model: nn.Module, source: Any) -> bool:
    """Whether ranks may run different submodules: some are sharded on their own, and samples may lack a modality."""
    inner = any(isinstance(module, FSDPModule) for module in model.modules() if module is not model)
    if not inner or not hasattr(source, "ids"):
        return inner
    masks = (member.present(torch.arange(len(source))) for member in source.members.values())
    return any(mask is not None and not bool(mask.all()) for mask in masks)


def check_same_modalities(batch: ViewBatch) -> None:
    """Check that all ranks have the same modalities; otherwise they would wait for one another without end.

    Raises:
        InputError: ranks have samples of different modalities.
    """
    found = gather_objects(tuple(sorted(batch.modalities)))
    if len(set(found)) > 1:
        raise InputError(
            "--engine fsdp2",
            expected="samples of the same modalities on every rank, since all gather the weights of each encoder",
            got=f"{found} by rank",
            fix="raise --batch-size, or choose --engine ddp with find_unused_parameters",
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded over ranks (FSDP2)."""
    return isinstance(model, FSDPModule)


def set_gradient_sync(model: nn.Module, enabled: bool) -> None:
    """Set whether the next backward pass averages gradients over ranks, or leaves that to a later one."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        _SYNC_DISABLED.pop(model, None) if enabled else _SYNC_DISABLED.setdefault(model, True)
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        model.require_backward_grad_sync = enabled


def gradient_sync_enabled(model: nn.Module) -> bool:
    """Whether the next backward pass of a sharded model averages gradients over ranks."""
    return model not in _SYNC_DISABLED


#: Sharded models whose gradients are not averaged yet. FSDP2 has a setter for this, but no getter.
_SYNC_DISABLED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


# --- full tensors ----------------------------------------------------------------------------------------------------


def full_state(state: Any, *, keep: bool = True) -> Any:
    """Nested dicts and lists in which sharded tensors are replaced by full ones on the CPU.

    Tensors are gathered one at a time, and ranks without `keep` drop each at once, since the full state may not fit the
    memory of a device.
    """

    def gathered(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        if not isinstance(tensor, DTensor):
            return tensor
        full = full_tensor(tensor)
        return full.cpu() if keep else full.new_empty(0)

    return tree_map(gathered, state)


def distribute_like(tensor: Shaped[Tensor, "..."], example: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """A full tensor, sharded as `example` is; unchanged if `example` is full or has another shape."""
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)


@torch.no_grad()
def load_model(model: nn.Module, saved: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Load a full state dict into a model, sharded or not."""
    if not is_sharded(model):
        model.load_state_dict(saved)
        return
    state = model.state_dict()
    missing = sorted(set(state) ^ set(saved))
    if missing:
        raise ConfigError("--resume", expected="a checkpoint of this model", got=f"names on one side only: {missing}")
    for name, tensor in state.items():
        tensor.copy_(distribute_like(saved[name], tensor))


def load_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Load a state of full tensors into an optimizer over sharded or full parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreach_flags = [group.get("foreach") for group in optimizer.param_groups]
    state = {
        index: {
            name: distribute_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
    for group, foreach in zip(optimizer.param_groups, foreach_flags, strict=True):
        group["foreach"] = foreach


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient_norm(parameters: Iterable[Shaped[Tensor, "..."]]) -> Float[Tensor, ""]:
    """The norm of all gradients together, of sharded and of full parameters."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (False, True)]
    norms = [full_tensor(torch.nn.utils.get_total_norm(of_kind)) for of_kind in kinds if of_kind]
    return norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0]) for norm in norms]).norm()


@torch.no_grad()
def clip_gradients(parameters: Sequence[Shaped[Tensor, "..."]], norm: Float[Tensor, ""], max_norm: float) -> None:
    """Scale all gradients by one factor, so that their norm is at most `max_norm`."""
    full = [p for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    torch.nn.utils.clip_grads_with_norm_(full, max_norm, norm)
    shards = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    if shards:
        scale = min(1.0, max_norm / (float(norm) + 1e-6))
        for gradient in shards:
            gradient.mul_(scale)
