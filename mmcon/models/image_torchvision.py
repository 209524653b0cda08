"""Image encoders of torchvision: a classification model without its last linear layer."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from mmcon.errors import InputError
from mmcon.models.image import ImageEncoder
from mmcon.models.image_input import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    channel_statistics,
    image_load_errors,
    replace_input_channels,
)
from mmcon.models.random_weights import prepare_random_weights
from mmcon.models.small_images import fit_stem

# Networks with classifiers at inner layers too, which return a tuple in training; pretrained ones come without.
_AUXILIARY = ("googlenet", "inception_v3")


@cache
def torchvision_names() -> list[str]:
    """The classification models of torchvision."""
    from torchvision import models

    return models.list_models(module=models)


def torchvision_encoder(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    small_images: bool | None = None,
    in_channels: int = 3,
    **options: Any,
) -> ImageEncoder:
    """A classification model of torchvision up to the input of its last linear layer."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT if pretrained else None  # type: ignore[attr-defined]
    fixed_size = name.startswith("vit_")
    if fixed_size and image_size:
        options = {"image_size": image_size, **options}
    if name in _AUXILIARY:  # stated, since torchvision's default depends on the weights, and a saved model has others
        options = {"transform_input": in_channels == 3, **options}
        options |= {} if pretrained else {"aux_logits": False, "init_weights": True}
    with image_load_errors(name):
        network = models.get_model(name, weights=weights, **options)
    feature_dim = _remove_classifier(network, name, keep_dropout="dropout" in options)
    if not pretrained:
        prepare_random_weights(network, options)
    if in_channels != 3:
        replace_input_channels(network, in_channels)
    small = fit_stem(network, name, small_images=small_images, image_size=image_size, pretrained=pretrained)
    preset = weights.transforms() if weights is not None else None
    return ImageEncoder(
        network,
        feature_dim=feature_dim,
        mean=channel_statistics(getattr(preset, "mean", IMAGENET_MEAN), in_channels),
        std=channel_statistics(getattr(preset, "std", IMAGENET_STD), in_channels),
        image_size=preset.crop_size[0] if preset is not None else (image_size or (224 if fixed_size else None)),
        fixed_size=fixed_size,
        small_images=small,
    )


def _remove_classifier(network: nn.Module, name: str, *, keep_dropout: bool) -> int:
    """Replace the last linear layer (of SqueezeNet a 1×1 convolution) by the identity, and return its input width.

    Dropout in the classifier is switched off, unless it is an option of the caller: features of random weights differ
    less between images than by dropout.
    """
    for attribute in ("fc", "classifier", "heads", "head"):
        head: nn.Module = getattr(network, attribute, None) or nn.Identity()
        linears = [(path, m) for path, m in head.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if not linears:
            continue
        path, linear = linears[-1]
        for module in () if keep_dropout else (*head.modules(), getattr(network, "dropout", None)):
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        network.set_submodule(f"{attribute}.{path}" if path else attribute, nn.Identity())
        return linear.in_features if isinstance(linear, nn.Linear) else linear.in_channels
    raise InputError(
        f"create_encoder({name!r})",
        expected="a network that ends in a linear classifier, whose input is the feature",
        got=f"{type(network).__name__} without one",
        fix=f"use timm/{name} if timm has it, or wrap the network in a module with `feature_dim` and register it",
    )
