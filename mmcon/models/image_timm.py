"""Image encoders of timm, by name or from a local folder, with the model's own pooling and without its classifier."""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from mmcon.errors import InputError, UnknownNameError, nearest
from mmcon.models.image import ImageEncoder
from mmcon.models.image_input import channel_statistics, image_load_errors
from mmcon.models.random_weights import prepare_random_weights
from mmcon.models.small_images import fit_stem


@cache
def timm_names() -> list[str]:
    """The models of timm, as "timm/NAME"."""
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


def is_timm_folder(name: str) -> bool:
    """Whether the name is a folder with a model that timm saved."""
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
    """A timm model with its own pooling, and the image size and normalization of its own configuration."""
    import timm
    from timm.data.config import resolve_model_data_config

    target = f"local-dir:{name}" if Path(name).is_dir() else name.removeprefix("timm/")
    _check_name(name, target)
    if image_size and "img_size" not in options and _takes_image_size(target):
        options["img_size"] = image_size
    with image_load_errors(name):
        network = timm.create_model(target, pretrained=pretrained, num_classes=0, in_chans=in_channels, **options)
    if not pretrained and not options.get("checkpoint_path"):
        prepare_random_weights(network, options)
    config = resolve_model_data_config(network)
    fixed = "img_size" in options or bool(getattr(network, "pretrained_cfg", {}).get("fixed_input_size", False))
    asked = False if fixed and small_images is None else small_images
    small = fit_stem(network, name, small_images=asked, image_size=image_size, pretrained=pretrained)
    return ImageEncoder(
        network,
        feature_dim=_feature_dim(network, name),
        mean=channel_statistics(config["mean"], in_channels),
        std=channel_statistics(config["std"], in_channels),
        image_size=image_size or config["input_size"][-1],
        fixed_size=fixed and not options.get("dynamic_img_size", False),
        small_images=small,
    )


def _check_name(name: str, target: str) -> None:
    import timm

    if ":" in target or timm.is_model(target.partition(".")[0]):
        return
    raise UnknownNameError(
        f"create_encoder({name!r})", expected="a model of timm", got=repr(name), fix=nearest(name, timm_names())
    )


def _takes_image_size(target: str) -> bool:
    """Whether the architecture has position embeddings or windows for one image size.

    timm has no such flag; the classes of the architecture's module are inspected for the parameter `img_size`.
    """
    import timm

    base = target.partition(".")[0]
    if not timm.is_model(base):
        return False
    module = inspect.getmodule(timm.model_entrypoint(base))
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == getattr(module, "__name__", "")]
    models = [c for c in own if issubclass(c, nn.Module) and "num_classes" in inspect.signature(c).parameters]
    return bool(models) and all("img_size" in inspect.signature(c).parameters for c in models)


def _feature_dim(network: Any, name: str) -> int:
    width = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if not isinstance(width, int):
        raise InputError(
            f"create_encoder({name!r})",
            expected="a network that states the width of its features",
            got=f"{type(network).__name__} without `num_features`",
            fix="wrap it in a module with `feature_dim` and register it with register_encoder",
        )
    return width
