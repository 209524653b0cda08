"""How the weights lie on the processes: whole copies of them (DDP), or a part on each (FSDP2), behind the same calls.

Sharding is PyTorch's `fully_shard`, called here rather than by Accelerate, which has no FSDP on CPUs: tests and GPUs go
the same way, and what Accelerate's launcher was told of FSDP (resharding, offloading) is respected. Checkpoints hold
whole tensors under the model's own names either way, so that a run may go on under the other engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mmcon.batch import ViewBatch, tree_map
from mmcon.distributed.collectives import broadcast_from_first, gather_objects, whole
from mmcon.errors import ConfigError, InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Parts of a model with at least so many weights are gathered and freed by themselves; the rest goes with the root.
SHARD_WEIGHTS = 1_000_000


def wrap(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, *, parts: bool) -> nn.Module:
    """The model on this process's device, wrapped for several processes, or left in parts on each."""
    if not parts:
        return accelerator.prepare_model(model)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    told = {"reshard_after_forward": plugin.reshard_after_forward} if plugin is not None else {}
    if plugin is not None and plugin.cpu_offload:
        told["offload_policy"] = plugin.cpu_offload
    shard(model.to(accelerator.device), optimizer, accelerator.device, accelerator.num_processes, **told)
    # For its autocast; what it would wrap is sharded already.
    return accelerator.prepare_model(model, evaluation_mode=True)


def compile_encoders(model: nn.Module) -> None:
    """Compile a model's encoders in place, or the model where it has none; names in its state dict stay."""
    encoders = getattr(model, "encoders", None)
    for part in encoders.values() if isinstance(encoders, nn.ModuleDict) else (model,):
        part.compile()


def shard(model: nn.Module, optimizer: Optimizer, device: torch.device, world_size: int, **options: Any) -> None:
    """Leave each process its part of every parameter, in place, and point the optimizer at the parts.

    Args:
        model: whole, on the device; all processes begin with the weights of the first.
        optimizer: over parameters of the model, and perhaps of others (an objective's), which stay whole.
        device: of this process.
        world_size: how many there are.
        options: for `fully_shard`.
    """
    broadcast_from_first([*model.parameters(), *model.buffers()])
    before = dict(model.named_parameters())
    for parameter in before.values():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last weights; images may be so still
    mesh = init_device_mesh(device.type, (world_size,))
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


def check_sharding(tracked: Mapping[str, Any], score: Any = None) -> None:
    """Refuse, before the first step, what works on whole copies only.

    Raises:
        ConfigError: an average of weights, a score that one process computes, or cross-entropy, whose encoder is judged
            without its classifier.
    """
    found = None
    if any(isinstance(part, AveragedModel) for part in tracked.values()):
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
            fix="choose --engine ddp, which keeps whole copies",
        )


def may_differ(model: nn.Module, source: Any) -> bool:
    """Whether processes may come to use other parts of a model: parts gathered one by one, rows without a modality."""
    inner = any(isinstance(part, FSDPModule) for part in model.modules() if part is not model)
    if not inner or not hasattr(source, "ids"):
        return inner
    there = (member.present(torch.arange(len(source))) for member in source.members.values())
    return any(present is not None and not bool(present.all()) for present in there)


def check_alike(batch: ViewBatch) -> None:
    """Refuse a batch of which one process has a modality and another has not, where each would wait for the other.

    Raises:
        InputError: processes have rows of different modalities.
    """
    found = gather_objects(tuple(sorted(name for name in batch.modalities)))
    if len(set(found)) > 1:
        raise InputError(
            "--engine fsdp2",
            expected="rows of the same modalities in every process, since all gather the weights of each encoder",
            got=f"{found} by process",
            fix="raise --batch-size, or choose --engine ddp with find_unused_parameters",
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights."""
    return isinstance(model, FSDPModule)


def synchronise_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass averages gradients over processes, or leaves them for a later one to do so."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
        _WAITING.pop(model, None) if now else _WAITING.setdefault(model, True)
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        model.require_backward_grad_sync = now


def synchronises_gradients(model: nn.Module) -> bool:
    """Whether the next backward pass of a model in parts averages gradients over processes."""
    return model not in _WAITING


#: Models in parts whose gradients wait for a later pass: FSDP2 is told, and cannot be asked.
_WAITING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


# --- whole tensors ---------------------------------------------------------------------------------------------------


def whole_state(state: Any, *, keep: bool = True) -> Any:
    """Nested dicts and lists with whole tensors, on the CPU, in the place of parts.

    One tensor at a time is whole on the device, and the processes that do not `keep` it drop it at once: what is in
    parts because it does not fit is never there in full.
    """

    def gathered(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        full = whole(tensor)
        return full.cpu() if keep else full.new_empty(0)

    return tree_map(gathered, state)


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
    if not gradients:
        return torch.zeros(())
    kinds = [[g for g in gradients if isinstance(g, DTensor) is parts] for parts in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm(of)) for of in kinds if of]
    return norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0]) for norm in norms]).norm()


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], norm: Tensor, most: float) -> None:
    """Scale all gradients alike, so that their norm is at most `most`."""
    parts = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    whole_ones = [p for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    torch.nn.utils.clip_grads_with_norm_(whole_ones, most, norm)
    if parts:
        scale = min(1.0, most / (float(norm) + 1e-6))
        for gradient in parts:
            gradient.mul_(scale)
