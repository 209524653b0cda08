"""Optimizers, schedules and weight averages by name, as implemented in torch and timm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmcon.distributed.collectives import get_rank
from mmcon.errors import ConfigError, InputError, nearest
from mmcon.training.default_rates import LEAST_WARMUP_STEPS, WARMUP_SHARE, default_rates
from mmcon.training.range_test import range_schedule

if TYPE_CHECKING:
    from mmcon.training.config import RunConfig

OPTIMIZERS = ("adamw", "sgd", "lars", "rmsprop")
SCHEDULES = ("cosine", "step", "polynomial", "exponential", "constant")


def scaled_learning_rate(base: float, batch_size: int) -> float:
    """The learning rate scaled linearly from a batch of 256: base · batch / 256 (Goyal et al. 2017)."""
    return base * batch_size / 256


def create_optimizer_and_schedule(
    config: RunConfig,
    modules: Iterable[nn.Module],
    *,
    steps_per_epoch: int,
    warmup_steps: int | None = None,
    log: Callable[[str], Any] = print,
) -> tuple[Optimizer, LambdaLR]:
    """The optimizer and the schedule that the flags of a recipe describe.

    Without `--learning-rate`, each encoder has the rate of its family (`mmcon.training.default_rates`), and everything
    else that of the encoder with the highest rate. With `--find-learning-rate` the schedule is a range test.

    Args:
        config: the flags.
        modules: the model and the objective (which may have a learnable temperature).
        steps_per_epoch: batches in an epoch; the schedule covers `config.epochs` of them.
        warmup_steps: the warm-up if the flags have none.
        log: receives the default learning rates, on the main rank.
    """
    modules, rate, groups = list(modules), config.learning_rate, {}
    if rate is None:
        defaults = default_rates(config, modules)
        rate = max(value for value, _ in defaults.values())
        groups = {name: {"learning_rate": value} for name, (value, _) in defaults.items() if value != rate}
        shown = ", ".join(f"{value:.2g} for {name or 'all'} ({family})" for name, (value, family) in defaults.items())
        if get_rank() == 0:
            log(f"learning rate {shown}: the default of {config.optimizer} for batches of {config.batch_size}")
    optimizer = create_optimizer(
        modules,
        config.optimizer,
        learning_rate=rate,
        weight_decay=config.weight_decay,
        decay_norm_and_bias=config.decay_norm_and_bias,
        groups=groups,
    )
    if config.find_learning_rate:
        return optimizer, range_schedule(optimizer)
    steps = config.epochs * steps_per_epoch
    if config.warmup_epochs is not None:
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    elif config.warmup_share is not None:
        warmup_steps = round(config.warmup_share * steps)
    elif warmup_steps is None:
        warmup_steps = max(round(WARMUP_SHARE * steps), min(LEAST_WARMUP_STEPS, steps // 2))
    return optimizer, create_schedule(optimizer, config.schedule, steps=steps, warmup_steps=warmup_steps)


def create_optimizer(
    modules: nn.Module | Iterable[nn.Module],
    name: str = "adamw",
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = False,
    groups: Mapping[str, Mapping[str, float]] | None = None,
    **options: Any,
) -> Optimizer:
    """Create an optimizer over the parameters of one or several modules that require gradients.

    >>> optimizer = create_optimizer(nn.Linear(2, 2), "sgd", learning_rate=0.1, weight_decay=1e-4)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0001, 0.0]

    Args:
        modules: such as the model and the objective (which may have a learnable temperature).
        name: "adamw"; "sgd" (momentum .9, Nesterov); "lars" (timm's, momentum .9); "rmsprop" (TensorFlow's form, from
            timm, momentum .9).
        learning_rate: the peak; see `scaled_learning_rate`.
        weight_decay: of all decayed parameters.
        decay_norm_and_bias: whether norms and biases are decayed. timm's LARS adapts the learning rate only of
            parameters with a weight decay other than 0, so for LARS this also determines whether they are adapted. With
            a weight decay of 0 it adapts none, unless `always_adapt=True` is among the options.
        groups: exceptions by prefix of parameter names, such as
            {"encoders.image": {"learning_rate": 1e-4, "weight_decay": 0.0}}; the longest matching prefix applies.
        options: passed to the optimizer.

    Raises:
        ConfigError: the name is unknown, a number is out of range, no parameter requires gradients, or a prefix
            matches none.
    """
    if name not in OPTIMIZERS:
        fix = nearest(name, list(OPTIMIZERS))
        raise ConfigError("create_optimizer", expected=f"a name among {OPTIMIZERS}", got=repr(name), fix=fix)
    if learning_rate <= 0 or weight_decay < 0:
        got = f"learning_rate={learning_rate}, weight_decay={weight_decay}"
        raise ConfigError("create_optimizer", expected="learning_rate > 0 and weight_decay >= 0", got=got)
    tables = parameter_groups(
        [modules] if isinstance(modules, nn.Module) else list(modules),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        decay_norm_and_bias=decay_norm_and_bias,
        groups=groups or {},
    )
    if name == "adamw":
        return AdamW(tables, lr=learning_rate, **options)
    options = {"momentum": 0.9, **options}
    if name == "sgd":
        return SGD(tables, lr=learning_rate, **{"nesterov": options["momentum"] > 0, **options})
    from timm.optim.lars import Lars
    from timm.optim.rmsprop_tf import RMSpropTF

    return (Lars if name == "lars" else RMSpropTF)(tables, lr=learning_rate, **options)


def parameter_groups(
    modules: Iterable[nn.Module],
    *,
    learning_rate: float,
    weight_decay: float,
    decay_norm_and_bias: bool = False,
    groups: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """The parameters that require gradients and their names, grouped by learning rate and weight decay."""
    groups = groups or {}
    tables: dict[tuple[float, float], dict[str, Any]] = {}
    used: set[str] = set()
    seen: set[int] = set()
    for name, parameter in ((n, p) for module in modules for n, p in module.named_parameters()):
        prefixes = [p for p in groups if name.startswith(p)]
        used.update(prefixes)
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        own = groups[max(prefixes, key=len)] if prefixes else {}
        rate = own.get("learning_rate", learning_rate)
        # Norms and biases are recognized as vectors, since libraries name them differently; a temperature is a scalar.
        decayed = decay_norm_and_bias or parameter.dim() > 1
        decay = own.get("weight_decay", weight_decay) if decayed else 0.0
        table = tables.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        table["params"].append(parameter)
        table["names"].append(name)
    unused = sorted(set(groups) - used)
    if unused or not tables:
        raise ConfigError(
            "parameter_groups",
            expected="parameters that require gradients, and prefixes that match some",
            got=f"prefixes that match none: {unused}" if unused else "no parameter that requires gradients",
            fix="see [name for name, _ in model.named_parameters()]",
        )
    return list(tables.values())


# --- schedules -------------------------------------------------------------------------------------------------------


def create_schedule(
    optimizer: Optimizer,
    name: str = "cosine",
    *,
    steps: int,
    warmup_steps: int = 0,
    **options: Any,
) -> LambdaLR:
    """Create a schedule that advances with every optimizer step and scales the learning rates of all groups.

    Args:
        optimizer: its learning rates are the peaks.
        name: "cosine" to `final_share` (0); "polynomial" of degree `power` (2) to `final_share`; "step", by `factor`
            (.1) at each of the `milestones` (.7, .8, .9 of the run); "exponential", by `factor` (.97) every
            `decay_steps`; "constant".
        steps: of the whole run, including the warmup.
        warmup_steps: steps of a linear rise; the first learning rate is not 0.
        options: of the schedule, as named above.
    """
    shapes = {
        "cosine": _cosine,
        "polynomial": _polynomial,
        "step": _milestones,
        "exponential": _exponential,
        "constant": _constant,
    }
    if name not in shapes:
        fix = nearest(name, list(SCHEDULES))
        raise ConfigError("create_schedule", expected=f"a name among {SCHEDULES}", got=repr(name), fix=fix)
    if not 0 <= warmup_steps <= steps or steps < 1:
        got = f"steps={steps}, warmup_steps={warmup_steps}"
        raise ConfigError("create_schedule", expected="0 <= warmup_steps <= steps, steps >= 1", got=got)
    try:
        shape = shapes[name](steps - warmup_steps, **options)
    except TypeError as error:
        raise ConfigError(f"schedule {name!r}", expected="its own options", got=str(error)) from error

    return LambdaLR(optimizer, partial(_share, shape=shape, warmup=warmup_steps))


def _share(step: int, shape: Any, warmup: int) -> float:
    """The learning rate of a step, counted from 0, as a fraction of the peak."""
    return (step + 1) / (warmup + 1) if step < warmup else shape(step - warmup)


def _cosine(steps: int, final_share: float = 0.0) -> Any:
    return lambda step: final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))


def _polynomial(steps: int, final_share: float = 0.0, power: float = 2.0) -> Any:
    return lambda step: final_share + (1 - final_share) * (1 - min(step / max(steps, 1), 1.0)) ** power


def _milestones(steps: int, milestones: tuple[float, ...] = (0.7, 0.8, 0.9), factor: float = 0.1) -> Any:
    return lambda step: factor ** sum(step >= milestone * steps for milestone in milestones)


def _exponential(steps: int, *, decay_steps: int, factor: float = 0.97) -> Any:
    return lambda step: factor ** (step // decay_steps)


def _constant(steps: int) -> Any:
    return lambda step: 1.0


# --- averages of weights ---------------------------------------------------------------------------------------------


def weight_average(model: nn.Module, *, decay: float) -> AveragedModel:
    """A copy of a model whose weights are an exponential moving average; call `update_parameters(model)` each step.

    Running statistics are averaged too. The copy is a module with a state, which belongs in checkpoints. It is for
    evaluation; the EMA that embeds candidates during training is `mmcon.models.ema.MomentumEncoder`.
    """
    if not 0 < decay < 1:
        raise InputError("weight_average", expected="0 < decay < 1", got=str(decay), fix="a usual value is 0.999")
    # Buffers too: running statistics of the last step do not fit averaged weights.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
