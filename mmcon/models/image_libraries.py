"""Image encoders of torchvision, timm and transformers, each without its classifier and with its own normalisation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcon.errors import DataError, InputError, UnknownNameError, nearest
from mmcon.models.image import SMALL_IMAGE, ImageEncoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- torchvision -----------------------------------------------------------------------------------------------------


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
    """A torchvision classifier up to the input of its last linear layer."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT if pretrained else None  # type: ignore[attr-defined]
    fixed = name.startswith("vit_")
    if fixed and image_size:
        options = {"image_size": image_size, **options}
    with _readable(name):
        network = models.get_model(name, weights=weights, **options)
    feature_dim = _drop_classifier(network, name)
    if in_channels != 3:
        _take_channels(network, in_channels)
    _fit_stem(network, name, small_images, image_size, pretrained)
    preset = weights.transforms() if weights is not None else None
    return ImageEncoder(
        network,
        feature_dim=feature_dim,
        mean=_for_channels(getattr(preset, "mean", IMAGENET_MEAN), in_channels),
        std=_for_channels(getattr(preset, "std", IMAGENET_STD), in_channels),
        image_size=preset.crop_size[0] if preset is not None else (image_size or (224 if fixed else None)),
        fixed_size=fixed,
    )


def _drop_classifier(network: nn.Module, name: str) -> int:
    """Replace the last linear layer by nothing, and return the width of what it read."""
    for head in ("fc", "classifier", "heads", "head"):
        part = getattr(network, head, None)
        linears = [(path, m) for path, m in (part or nn.Identity()).named_modules() if isinstance(m, nn.Linear)]
        if not linears:
            continue
        path, linear = linears[-1]
        network.set_submodule(f"{head}.{path}" if path else head, nn.Identity())
        return linear.in_features
    raise InputError(
        f"create_encoder({name!r})",
        expected="a network that ends in a linear classifier, whose input is the feature",
        got=f"{type(network).__name__} without one",
        fix=f"use timm/{name} if timm has it, or wrap the network in a module with `feature_dim` and register it",
    )


# --- timm ------------------------------------------------------------------------------------------------------------


@cache
def timm_names() -> list[str]:
    """The models of timm, as "timm/NAME"."""
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


def is_local_timm(name: str) -> bool:
    """Whether a folder holds a model that timm saved."""
    file = Path(name) / "config.json"
    return file.is_file() and "architecture" in json.loads(file.read_text(encoding="utf-8"))


def timm_encoder(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    small_images: bool | None = None,
    in_channels: int = 3,
    **options: Any,
) -> ImageEncoder:
    """A timm model with its own pooling and without its classifier; the size and normalisation of its own config."""
    import timm
    from timm.data.config import resolve_model_data_config

    target = f"local-dir:{name}" if Path(name).is_dir() else name.removeprefix("timm/")
    _check_timm_name(name, target)
    if image_size and "img_size" not in options and _takes_img_size(target):
        options["img_size"] = image_size
    with _readable(name):
        network = timm.create_model(target, pretrained=pretrained, num_classes=0, in_chans=in_channels, **options)
    _fit_stem(network, name, small_images, image_size, pretrained)
    config = resolve_model_data_config(network)
    fixed = "img_size" in options or bool(getattr(network, "pretrained_cfg", {}).get("fixed_input_size", False))
    return ImageEncoder(
        network,
        feature_dim=_timm_width(network, name),
        mean=_for_channels(config["mean"], in_channels),
        std=_for_channels(config["std"], in_channels),
        image_size=image_size or config["input_size"][-1],
        fixed_size=fixed and not options.get("dynamic_img_size", False),
    )


def _check_timm_name(name: str, target: str) -> None:
    import timm

    if ":" in target or timm.is_model(target.partition(".")[0]):
        return
    raise UnknownNameError(
        f"create_encoder({name!r})", expected="a model of timm", got=repr(name), fix=nearest(name, timm_names())
    )


def _takes_img_size(target: str) -> bool:
    """Whether the model has position embeddings or windows that are laid out for one size."""
    import inspect

    import timm

    base = target.partition(".")[0]
    if not timm.is_model(base):
        return False
    module = inspect.getmodule(timm.model_entrypoint(base))
    classes = [
        m for _, m in inspect.getmembers(module, inspect.isclass) if m.__module__ == getattr(module, "__name__", "")
    ]
    takers = [c for c in classes if issubclass(c, nn.Module) and "num_classes" in inspect.signature(c).parameters]
    return bool(takers) and all("img_size" in inspect.signature(c).parameters for c in takers)


def _timm_width(network: Any, name: str) -> int:
    width = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if not isinstance(width, int):
        raise InputError(
            f"create_encoder({name!r})",
            expected="a network that states the width of its features",
            got=f"{type(network).__name__} without `num_features`",
            fix="wrap it in a module with `feature_dim` and register it with register_encoder",
        )
    return width


# --- transformers ----------------------------------------------------------------------------------------------------


def is_folder(name: str) -> bool:
    """Whether the name is a folder with a model's configuration."""
    return (Path(name) / "config.json").is_file()


def transformers_encoder(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    small_images: bool | None = None,
    in_channels: int = 3,
    revision: str | None = None,
    **options: Any,
) -> ImageEncoder:
    """A vision model of transformers, or the vision half of one that has two.

    The feature is the model's own pooled output; where that goes through a layer which only pre-training with a
    classifier gives sense to (the tanh of ViT), the class token; where there is none, the mean over positions.
    """
    from transformers import AutoConfig, AutoModel

    if small_images:
        raise InputError(
            f"create_encoder({name!r})", expected="small_images=False", got="True", fix="use timm or torchvision for it"
        )
    with _readable(name):
        config = AutoConfig.from_pretrained(name, revision=revision)
        vision = getattr(config, "vision_config", config)
        if not hasattr(vision, "num_channels"):
            raise InputError(
                f"create_encoder({name!r})", expected="a vision model", got=f"{config.model_type!r}, without channels"
            )
        if not pretrained:
            options = {**options, **({"image_size": image_size} if image_size else {})}
            if in_channels != vision.num_channels:
                options["num_channels"] = in_channels
            for option, value in options.items():
                setattr(vision, option, value)
            model = AutoModel.from_config(config)
        else:
            model = AutoModel.from_pretrained(name, revision=revision, **options)
    network = _PooledVision(getattr(model, "vision_model", model), vision)
    mean, std, preferred = _processor(name, revision)
    side = image_size or preferred or getattr(vision, "image_size", None)
    fixed = hasattr(vision, "patch_size") and isinstance(getattr(vision, "image_size", None), int)
    return ImageEncoder(
        network,
        feature_dim=network.width,
        mean=_for_channels(mean, vision.num_channels),
        std=_for_channels(std, vision.num_channels),
        image_size=vision.image_size if fixed else side,
        fixed_size=fixed,
    )


class _PooledVision(nn.Module):
    """One vector an image from what a vision model of transformers returns."""

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        self.model = model
        pooler = getattr(model, "pooler", None)
        self.takes_class_token = isinstance(getattr(pooler, "dense", None), nn.Linear)
        if self.takes_class_token:
            model.pooler = None  # unused parameters would stall distributed training
        sizes = getattr(config, "hidden_sizes", None)
        self.width = int(sizes[-1] if sizes else config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        out = self.model(pixel_values=images)
        pooled = None if self.takes_class_token else getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden = out.last_hidden_state
        if hidden.dim() == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if self.takes_class_token else hidden.mean(1)


def _processor(name: str, revision: str | None) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """Mean, standard deviation and side of the image processor that was saved beside the model."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
    except OSError:  # a model may be saved without one
        return IMAGENET_MEAN, IMAGENET_STD, None
    size = config.get("crop_size") or config.get("size") or {}
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    normalises = config.get("do_normalize", True)
    mean = config.get("image_mean", IMAGENET_MEAN) if normalises else (0.0, 0.0, 0.0)
    return tuple(mean), tuple(config.get("image_std", IMAGENET_STD) if normalises else (1.0, 1.0, 1.0)), side


# --- what they share -------------------------------------------------------------------------------------------------


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn a library's failure to find or reach a model into one error that says what to do."""
    try:
        yield
    except OSError as error:
        first = str(error).strip().partition("\n")[0]
        offline = any(word in str(error).lower() for word in ("offline", "connect", "urlopen"))
        raise DataError(
            f"create_encoder({name!r})",
            expected="a model that can be read: a local folder, or a hub name and a network (or a filled cache)",
            got=("no network: " if offline else "") + first.rstrip("."),
            fix="check the name; download it once where there is a network, and give the folder as the name",
        ) from error


def _for_channels(values: Any, channels: int) -> list[float]:
    """Statistics of colour for another number of channels: their mean, repeated."""
    values = [float(v) for v in values]
    return values if len(values) == channels else [sum(values) / len(values)] * channels


def _take_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution read another number of channels; weights are folded so that grey stays grey."""
    from timm.models import adapt_input_conv

    path, first = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    replaced = _like(first, channels, first.kernel_size, first.stride, first.padding)
    with torch.no_grad():
        replaced.weight.copy_(adapt_input_conv(channels, first.weight))
        if first.bias is not None and replaced.bias is not None:
            replaced.bias.copy_(first.bias)
    network.set_submodule(path, replaced)


def _fit_stem(
    network: nn.Module, name: str, small_images: bool | None, image_size: int | None, pretrained: bool
) -> None:
    """Put in the stem for small images, where it is asked for or is the sensible choice."""
    automatic = small_images is None
    wanted = small_images or (automatic and not pretrained and image_size is not None and image_size <= SMALL_IMAGE)
    if not wanted:
        return
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    fits = isinstance(conv, nn.Conv2d) and conv.stride == (2, 2) and isinstance(pool, nn.MaxPool2d)
    if not fits and automatic:
        return
    if not fits or pretrained:
        raise InputError(
            f"create_encoder({name!r})",
            expected="small_images=True with a ResNet's stem (conv1 of stride 2, maxpool) that starts at random",
            got="published weights" if fits else f"{type(network).__name__}",
            fix="leave small_images out, or choose a ResNet such as resnet18 without published weights",
        )
    assert isinstance(conv, nn.Conv2d)
    stem = _like(conv, conv.in_channels, (3, 3), (1, 1), (1, 1))
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = stem, nn.Identity()


def _like(conv: nn.Conv2d, channels: int, kernel: Any, stride: Any, padding: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)
