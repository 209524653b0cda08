"""Defaults by the family of the encoder: its learning rate, by optimizer and batch size, and its projection head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from mmcon.training.config import RunConfig

Family = Literal[
    "small",
    "convolutional",
    "grouped convolutional",
    "transformer",
    "pretrained convolutional",
    "pretrained transformer",
]

#: Encoders with fewer parameters, token embeddings aside, and at most so many batch norms are "small". A deep network
#: with few parameters (a narrow MobileNet) collapses at the rate and with the head of small ones.
SMALL_ENCODER, SMALL_NORMS = 1_000_000, 24
#: The warm-up as a fraction of the steps. Short runs warm up for at least so many steps, or for half of the run: Adam's
#: first steps have a noisy second moment.
WARMUP_SHARE, LEAST_WARMUP_STEPS = 0.1, 20


@dataclass(frozen=True)
class RateRule:
    """A learning rate that was published, or tried, for a batch size, and how it changes with the batch size.

    Attributes:
        rate: the peak at the batch size.
        batch_size: of the source.
        power: of the ratio of batch sizes: 1 (linear, Goyal et al. 2017) for SGD and LARS, 1/2 (square root, Malladi et
            al. 2022) for AdamW.
        source: of the rate.
    """

    rate: float
    batch_size: int
    power: float
    source: str

    def at(self, batch_size: int) -> float:
        """The peak at another batch size."""
        return self.rate * (batch_size / self.batch_size) ** self.power


RULES: dict[tuple[Family, str], RateRule] = {
    ("convolutional", "adamw"): RateRule(5e-4, 256, 0.5, "trials in docs/encoders.md"),
    # Weights of 1×1 convolutions are larger at random than those of 3×3 ones, and AdamW moves both by the same step.
    ("grouped convolutional", "adamw"): RateRule(1e-3, 256, 0.5, "trials in docs/encoders.md"),
    ("transformer", "adamw"): RateRule(5e-4, 256, 0.5, "DINO (Caron et al. 2021), DeiT (Touvron et al. 2021)"),
    ("pretrained convolutional", "adamw"): RateRule(1e-4, 256, 0.5, "a fifth of that of random weights"),
    ("pretrained transformer", "adamw"): RateRule(
        3e-5, 128, 0.5, "SimCSE (Gao et al. 2021), BERT (Devlin et al. 2019)"
    ),
    ("small", "sgd"): RateRule(0.05, 256, 1.0, "SupContrast (Khosla et al. 2020)"),
    ("convolutional", "sgd"): RateRule(0.05, 256, 1.0, "SupContrast (Khosla et al. 2020), MoCo (He et al. 2020)"),
    ("grouped convolutional", "sgd"): RateRule(0.05, 256, 1.0, "as other convolutions"),
    ("transformer", "sgd"): RateRule(0.01, 256, 1.0, "a fifth of that of convolutions"),
    ("pretrained convolutional", "sgd"): RateRule(0.01, 256, 1.0, "a fifth of that of random weights"),
    ("pretrained transformer", "sgd"): RateRule(0.002, 256, 1.0, "a fifth of that of random weights"),
    ("small", "lars"): RateRule(0.3, 256, 1.0, "SimCLR (Chen et al. 2020)"),
    ("convolutional", "lars"): RateRule(0.3, 256, 1.0, "SimCLR (Chen et al. 2020)"),
    ("grouped convolutional", "lars"): RateRule(0.3, 256, 1.0, "as other convolutions"),
    ("transformer", "lars"): RateRule(0.3, 256, 1.0, "SimCLR (Chen et al. 2020)"),
    ("pretrained convolutional", "lars"): RateRule(0.06, 256, 1.0, "a fifth of that of random weights"),
    ("pretrained transformer", "lars"): RateRule(0.06, 256, 1.0, "a fifth of that of random weights"),
}


def rate_rule(config: RunConfig, family: Family) -> RateRule:
    """The rule of an encoder family under the optimizer of a configuration.

    The rate of small encoders under AdamW is that of the recipe, `config.tuned_rate`, at its own default batch size.
    """
    if (family, config.optimizer) == ("small", "adamw"):
        return RateRule(config.tuned_rate, type(config).batch_size, 0.5, "tuned for the recipe's own data")
    return RULES[family, config.optimizer]


def default_rates(config: RunConfig, modules: Iterable[nn.Module]) -> dict[str, tuple[float, str]]:
    """By encoder (the prefix of its parameters' names), its peak learning rate and the family that determined it.

    Args:
        config: the flags: optimizer and batch size.
        modules: a model with encoders, and others. Without a trained encoder the result has the one key "".
    """
    found = {}
    for name, encoder in (pair for module in modules for pair in _encoders(module)):
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            family = encoder_family(encoder)
            found[name] = rate_rule(config, family).at(config.batch_size), family
    return found or {"": (rate_rule(config, "small").at(config.batch_size), "small")}


def default_head(encoders: Iterable[nn.Module]) -> Literal["mlp", "mlp-batch-norm"]:
    """The projection head: with a batch norm if some encoder is neither small nor pretrained."""
    families = {encoder_family(encoder) for encoder in encoders}
    return "mlp-batch-norm" if families - {"small", "pretrained convolutional", "pretrained transformer"} else "mlp"


def encoder_family(encoder: nn.Module) -> Family:
    """The family of an encoder, by its size, its layers, and whether its weights are published ones."""
    own = [module for module in encoder.modules() if not isinstance(module, nn.Embedding)]
    parameters = sum(parameter.numel() for module in own for parameter in module.parameters(recurse=False))
    pretrained = any((getattr(module, "made_from", None) or {}).get("pretrained") for module in encoder.modules())
    norms = [type(module).__name__ for module in own]
    if parameters < SMALL_ENCODER and sum("BatchNorm" in name for name in norms) <= SMALL_NORMS and not pretrained:
        return "small"
    # A transformer, or a network that is trained like one (ConvNeXt), normalizes by layer. Libraries have attention
    # modules of their own, which share no class.
    by_layer = sum("LayerNorm" in name or "RMSNorm" in name for name in norms)
    transformer = by_layer > sum("BatchNorm" in name or "GroupNorm" in name for name in norms)
    if pretrained:
        return "pretrained transformer" if transformer else "pretrained convolutional"
    # Depthwise (MobileNet, MNASNet, EfficientNet, ShuffleNet) or in groups (RegNet, ResNeXt).
    is_grouped = any(isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups > 1 for module in own)
    return "transformer" if transformer else "grouped convolutional" if is_grouped else "convolutional"


def _encoders(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost submodules that are encoders, by name; a projection head has no `feature_dim`."""
    for name, child in module.named_children():
        if isinstance(getattr(child, "feature_dim", None), int):
            yield prefix + name, child
        else:
            yield from _encoders(child, f"{prefix}{name}.")
