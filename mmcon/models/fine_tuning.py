"""Fine-tuning of an encoder: freeze all parameters, train some layers by name, or add low-rank adapters (LoRA).

    freeze(encoder)                                      # trains no parameter
    freeze(encoder, trainable=["*layer4*", "*.norm"])    # partial fine-tuning
    add_lora(encoder, rank=8)                            # Hu et al. 2021, through peft: uv pip install "mmcon[lora]"
    merge_lora(encoder)                                  # before saving: the merged encoder, without peft's modules

A frozen encoder stays in evaluation mode (no dropout) when the model is in training mode. The frozen batch norms of a
partly frozen encoder also stay in evaluation mode, so their running statistics do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcon.errors import ConfigError


def set_trainable(encoder: nn.Module, how: str) -> nn.Module:
    """Set which parameters of an encoder are trained, from a command-line option.

    Args:
        encoder: changed in place.
        how: "full", "frozen", "low-rank" (LoRA), or comma-separated shell patterns of parameter names.

    Returns:
        The encoder.
    """
    if how == "full":
        return encoder
    if how == "low-rank":
        return add_lora(encoder)
    return freeze(encoder, trainable=[] if how == "frozen" else how.split(","))


def freeze(encoder: nn.Module, *, trainable: Sequence[str] = ()) -> nn.Module:
    """Freeze the parameters of an encoder, except those whose names match a pattern.

    Args:
        encoder: changed in place.
        trainable: shell patterns of parameter names that stay trainable, such as "*layer4*".

    Returns:
        The encoder.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    names = [name for name, _ in encoder.named_parameters()]
    unmatched = [pattern for pattern in trainable if not any(fnmatchcase(name, pattern) for name in names)]
    if unmatched:
        got = f"{unmatched}, which match none"
        raise ConfigError("freeze", expected=f"patterns of names such as {names[-1]!r}", got=got)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in trainable))
    if not trainable:
        encoder.register_forward_pre_hook(_set_evaluation_mode)
    _freeze_batch_norm_statistics(encoder)
    return encoder


def freeze_batch_norms(encoder: nn.Module) -> nn.Module:
    """Freeze the batch norms of an encoder: their weights, and their statistics, which small batches would spoil.

    Returns:
        The encoder.
    """
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)
    _freeze_batch_norm_statistics(encoder)
    return encoder


def add_lora(
    encoder: nn.Module, *, rank: int = 8, scale: float = 16.0, layers: Sequence[str] | None = None, dropout: float = 0.0
) -> nn.Module:
    """Freeze an encoder and add `scale / rank · B A` to its linear layers; A and B are trained (Hu et al. 2021, LoRA).

    Args:
        encoder: changed in place.
        rank: the rank of B · A.
        scale: peft's `lora_alpha`.
        layers: last components of the names of the linear layers, such as "query"; None: every linear layer.
        dropout: dropout on the input of A.

    Returns:
        The encoder. Its output is unchanged, since B starts at zero.

    Raises:
        ConfigError: peft is not installed, or no layer matches.
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
            expected=f"linear layers among {sorted(linear)}" if linear else "an encoder with linear layers",
            got=str(sorted(layers)) if layers is not None else type(encoder).__name__,
            fix="freeze(encoder, trainable=[...]) selects layers of any kind",
        )
    encoder.requires_grad_(False)
    _freeze_batch_norm_statistics(encoder)
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=chosen, bias="none")  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder)
    return encoder


def merge_lora(encoder: nn.Module) -> nn.Module:
    """Add the trained adapters to the weights of the linear layers, and remove peft's modules.

    Returns:
        The encoder, with its output unchanged and the parameter names from before `add_lora`.
    """
    for name, module in list(encoder.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            module.merge()  # type: ignore[operator]
            encoder.set_submodule(name, module.get_base_layer())  # type: ignore[operator]
    return encoder


def _freeze_batch_norm_statistics(encoder: nn.Module) -> None:
    """Keep batch norms with only frozen parameters in evaluation mode."""
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.register_forward_pre_hook(_set_evaluation_mode)


def _set_evaluation_mode(module: nn.Module, _: object) -> None:
    # Called as a hook of every forward pass, since `model.train()` resets the mode.
    module.eval()
