"""Optimizers, schedules and averages of weights: thin choices over what torch and timm implement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmcon.errors import ConfigError, InputError, nearest

OptimizerName = Literal["adamw", "sgd", "lars", "rmsprop"]
ScheduleName = Literal["cosine", "step", "polynomial", "exponential", "constant"]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and what differs by group of parameters.

    Attributes:
        name: "adamw", "sgd" (Nesterov), "lars" (timm's), or "rmsprop" (TensorFlow's form, from timm).
        learning_rate: the peak; see `scaled_learning_rate` for rates that are published for a batch of 256.
        weight_decay: for every parameter that is decayed.
        momentum: of sgd, lars and rmsprop.
        decay_norm_and_bias: whether batch norms, layer norms and biases are decayed. timm's LARS adapts the rate of
            parameters whose weight decay is not 0 and no others, so for LARS this also says whether they are adapted.
        betas: of adamw.
        groups: by prefix of parameter names, what is different there, such as
            {"encoders.image": {"learning_rate": 1e-4, "weight_decay": 0.0}}; the longest prefix that fits counts.
        options: for the optimizer itself, as they are.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    decay_norm_and_bias: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run, in shares of its peak.

    Attributes:
        name: "cosine" to `final_share`; "step" by `step_factor` at each milestone; "polynomial" of degree `power` to
            `final_share`; "exponential", times `step_factor` each epoch; "constant".
        warmup_epochs: linear from nearly 0 to the peak; may be a fraction.
        final_share: where cosine and polynomial end.
        milestones: of "step", as shares of the run, such as (0.7, 0.8, 0.9).
        step_factor: of "step" and "exponential".
        power: of "polynomial".
    """

    name: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    final_share: float = 0.0
    milestones: tuple[float, ...] = (0.7, 0.8, 0.9)
    step_factor: float = 0.1
    power: float = 2.0


def scaled_learning_rate(base: float, batch_size: int) -> float:
    """The rate for a batch, from one published for a batch of 256: base · batch / 256 (Goyal et al. 2017)."""
    return base * batch_size / 256


def create_optimizer(modules: nn.Module | Iterable[nn.Module], config: OptimizerConfig) -> Optimizer:
    """Make an optimizer over all parameters of one module or several that take gradients.

    >>> optimizer = create_optimizer(nn.Linear(2, 2), OptimizerConfig("sgd", learning_rate=0.1))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0001, 0.0]
    """
    if config.learning_rate <= 0 or config.weight_decay < 0:
        got = f"learning_rate={config.learning_rate}, weight_decay={config.weight_decay}"
        raise ConfigError("OptimizerConfig", expected="learning_rate > 0 and weight_decay >= 0", got=got)
    several = [modules] if isinstance(modules, nn.Module) else list(modules)
    groups = parameter_groups(several, config)
    makers = {"adamw": _adamw, "sgd": _sgd, "lars": _lars, "rmsprop": _rmsprop}
    if config.name not in makers:
        fix = nearest(config.name, list(makers))
        raise ConfigError("OptimizerConfig", expected=f"a name among {sorted(makers)}", got=repr(config.name), fix=fix)
    return makers[config.name](groups, config)


def parameter_groups(modules: Iterable[nn.Module], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameters that take gradients, by learning rate and weight decay; a group also keeps their names.

    Raises:
        ConfigError: nothing takes gradients, or a prefix fits no parameter.
    """
    grouped: dict[tuple[float, float], dict[str, Any]] = {}
    used: set[str] = set()
    seen: set[int] = set()
    for name, parameter, plain in _named_parameters(modules):
        prefix = max((p for p in config.groups if name.startswith(p)), key=len, default=None)
        used |= {p for p in config.groups if name.startswith(p)}
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        own = config.groups[prefix] if prefix is not None else {}
        rate = own.get("learning_rate", config.learning_rate)
        decay = own.get("weight_decay", config.weight_decay) if plain or config.decay_norm_and_bias else 0.0
        group = grouped.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    unused = sorted(set(config.groups) - used)
    if unused or not grouped:
        raise ConfigError(
            "parameter_groups",
            expected="parameters that take gradients, and prefixes that fit some",
            got=f"prefixes that fit none: {unused}" if unused else "none",
            fix="see [name for name, _ in model.named_parameters()]",
        )
    return list(grouped.values())


def _named_parameters(modules: Iterable[nn.Module]) -> Iterable[tuple[str, nn.Parameter, bool]]:
    """Name, parameter, and whether it is a plain weight (neither a bias nor a norm's)."""
    for module in modules:
        for path, part in module.named_modules():
            for name, parameter in part.named_parameters(recurse=False):
                # Norms are known by their vectors, whatever the library calls them.
                yield f"{path}.{name}" if path else name, parameter, parameter.dim() > 1


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return AdamW(groups, betas=config.betas, **config.options)


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    options = {"momentum": config.momentum, "nesterov": config.momentum > 0, **config.options}
    return SGD(groups, **{"lr": config.learning_rate, **options})


def _lars(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    from timm.optim import Lars

    return Lars(groups, lr=config.learning_rate, momentum=config.momentum, **config.options)


def _rmsprop(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    from timm.optim import RMSpropTF

    return RMSpropTF(groups, lr=config.learning_rate, momentum=config.momentum, **config.options)


# --- schedules -------------------------------------------------------------------------------------------------------


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, *, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """Make a schedule that advances with every optimizer step; all groups move in proportion."""
    total, warmup = epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    if not 0 <= warmup <= total or total < 1:
        raise ConfigError(
            "ScheduleConfig",
            expected=f"0 <= warmup_epochs <= {epochs}, and at least one step",
            got=f"warmup_epochs={config.warmup_epochs}, {total} steps",
        )
    if config.name not in _SHAPES:
        fix = nearest(config.name, list(_SHAPES))
        raise ConfigError("ScheduleConfig", expected=f"a name among {sorted(_SHAPES)}", got=repr(config.name), fix=fix)
    return LambdaLR(optimizer, partial(share_of_peak, config=config, total=total, steps_per_epoch=steps_per_epoch))


def share_of_peak(step: int, config: ScheduleConfig, total: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0, as a share of its peak."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return _SHAPES[config.name](config, done, (step - warmup) // steps_per_epoch)


def _cosine(config: ScheduleConfig, done: float, epoch: float) -> float:
    return config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * done))


def _polynomial(config: ScheduleConfig, done: float, epoch: float) -> float:
    return config.final_share + (1 - config.final_share) * (1 - done) ** config.power


def _steps(config: ScheduleConfig, done: float, epoch: float) -> float:
    return config.step_factor ** sum(done >= milestone for milestone in config.milestones)


def _exponential(config: ScheduleConfig, done: float, epoch: float) -> float:
    return config.step_factor**epoch


def _constant(config: ScheduleConfig, done: float, epoch: float) -> float:
    return 1.0


_SHAPES = {
    "cosine": _cosine,
    "polynomial": _polynomial,
    "step": _steps,
    "exponential": _exponential,
    "constant": _constant,
}


# --- averages of weights ---------------------------------------------------------------------------------------------


def weight_average(model: nn.Module, *, decay: float) -> AveragedModel:
    """A copy of a model whose weights are an exponential moving average: call `update_parameters(model)` each step.

    Its running statistics are averaged too. It is a module with a state of its own, to be checkpointed beside the model.
    """
    if not 0 < decay < 1:
        raise InputError("weight_average", expected="0 < decay < 1", got=str(decay), fix="0.999, say")
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
