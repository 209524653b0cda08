"""How much of an encoder learns: nothing, some layers by name, or a low-rank addition to its linear maps.

    freeze(encoder)                               # nothing: a frozen tower
    freeze(encoder, trainable=["*layer4*", "*.norm"])   # partial fine-tuning
    add_lora(encoder, rank=8)                 # LoRA (Hu et al. 2021), through peft: uv pip install "mmcon[lora]"
    merge_lora(encoder)                       # before saving: the same encoder, without anything of peft

A frozen encoder is in evaluation mode (no dropout) though the model is in training mode, and so are the frozen batch
norms of a partly frozen one, which keep their statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcon.errors import ConfigError


def set_trainable(encoder: nn.Module, how: str) -> nn.Module:
    """How much of an encoder learns, by a word of a command line.

    Args:
        encoder: changed in place.
        how: "full", "frozen", "low-rank", or shell patterns of parameters' names, with commas between.

    Returns:
        The encoder.
    """
    if how == "full":
        return encoder
    if how == "low-rank":
        return add_lora(encoder)
    return freeze(encoder, trainable=[] if how == "frozen" else how.split(","))


def freeze(encoder: nn.Module, *, but: Sequence[str] = ()) -> nn.Module:
    """Keep the parameters of an encoder as they are, except those whose names match a pattern.

    Args:
        encoder: changed in place.
        but: shell patterns of the names of parameters that learn, such as "*layer4*".

    Returns:
        The encoder.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    names = [name for name, _ in encoder.named_parameters()]
    idle = [pattern for pattern in but if not any(fnmatchcase(name, pattern) for name in names)]
    if idle:
        raise ConfigError("freeze", expected=f"patterns of names such as {names[-1]!r}", got=f"{idle}, which fit none")
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in but))
    if not but:
        encoder.register_forward_pre_hook(_to_evaluation)
    _keep_statistics(encoder)
    return encoder


def _keep_statistics(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.register_forward_pre_hook(_to_evaluation)


def _to_evaluation(module: nn.Module, _: object) -> None:
    module.eval()


def add_lora(
    encoder: nn.Module, *, rank: int = 8, scale: float = 16.0, layers: Sequence[str] | None = None, dropout: float = 0.0
) -> nn.Module:
    """Freeze an encoder and add `scale / rank · B A` to its linear maps, where A and B learn (Hu et al. 2021, LoRA).

    Args:
        encoder: changed in place.
        rank: of A and B.
        scale: peft's `lora_alpha`.
        layers: the last parts of the names of the maps, such as "query"; None: every linear map.
        dropout: on what goes into A.

    Returns:
        The encoder; it starts as what it was.

    Raises:
        ConfigError: peft is not installed, or no layer fits.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "add_lora", expected="the package peft", got=str(error), fix='uv pip install "mmcon[lora]"'
        ) from error
    linear = {name.rpartition(".")[2] for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and name}
    chosen = sorted(linear if layers is None else set(layers) & linear)
    if not chosen or (layers is not None and set(layers) - linear):
        raise ConfigError(
            "add_lora",
            expected=f"linear maps among {sorted(linear)}" if linear else "an encoder with linear maps",
            got=str(sorted(layers)) if layers is not None else type(encoder).__name__,
            fix="freeze(encoder, trainable=[...]) tunes layers of any kind",
        )
    encoder.requires_grad_(False)
    _keep_statistics(encoder)
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=chosen, bias="none")  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder)
    return encoder


def merge_lora(encoder: nn.Module) -> nn.Module:
    """Add what was learned into the linear maps themselves and take peft's parts out again.

    Returns:
        The encoder, with the parameters' names that it had before `add_lora`; it computes what it computed.
    """
    for name, module in list(encoder.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            module.merge()  # type: ignore[operator]
            encoder.set_submodule(name, module.get_base_layer())  # type: ignore[operator]
    return encoder
