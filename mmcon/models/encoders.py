"""`create_encoder`: build an encoder by name, a module from a batch of views to features.

    create_encoder("mmcon/resnet-tiny", image_size=28)                          # built in: small, fast on a CPU
    create_encoder("resnet50")                                                  # torchvision
    create_encoder("timm/vit_small_patch16_224", pretrained=True)               # timm
    create_encoder("facebook/dinov2-small", pretrained=True)                    # transformers: hub name or local folder
    create_encoder("facebook/wav2vec2-base", modality="audio", pretrained=True)

An encoder is a module with an attribute `feature_dim`, whose `forward` maps views to features `n d`. An image or video
encoder takes pixels in [0, 1] and normalizes them with its own mean and standard deviation, so views do not depend on
the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mmcon.errors import InputError, UnknownNameError, nearest
from mmcon.models.image import ImageEncoder
from mmcon.models.pretrained import missing_folder
from mmcon.registry import Entry, create, entries, lookup, supported_options

# Options of `create_encoder` that only some encoders take, with their defaults.
_COMMON_DEFAULTS = {"pretrained": False, "image_size": None, "small_images": None, "in_channels": 3}
# The first words of registered names of this package, which are no owners on a hub.
_OWN_PREFIXES = ("mmcon/", "text/", "transformers/")
# By modality, the registered encoder that wraps any transformers model, and its option for the hub name or folder.
_TRANSFORMERS = {
    "audio": ("transformers/audio", "model"),
    "text": ("text/transformer", "path"),
    "video": ("transformers/video", "model"),
}


def create_encoder(
    name: str,
    *,
    modality: str = "image",
    pretrained: bool = False,
    image_size: int | None = None,
    small_images: bool | None = None,
    in_channels: int = 3,
    **options: Any,
) -> nn.Module:
    """Build an encoder by name.

    Args:
        name: a registered name; for images also "timm/NAME" or the name of a torchvision classification model; for
            every modality a transformers model, by hub name ("owner/model") or local folder.
        modality: the modality of the views.
        pretrained: load published weights; otherwise weights are random.
        image_size: side of the input images in pixels, if known.
        small_images: let the first layers keep the resolution, which most convolutional networks divide by four. By
            default True if `image_size` is at most 64 and the weights are random.
        in_channels: channels of the input images. A single channel is repeated to three, so keep 3 for gray images
            with published weights.
        options: passed to the library or to the registered factory.

    Returns:
        A module with `feature_dim`; its `made_from` contains the arguments of this call.

    Raises:
        UnknownNameError: the encoder does not exist; the message has the nearest names.
        InputError: the encoder does not take an option, or the name is a path without a folder.
        DataError: the weights or the configuration cannot be read, such as a hub name without a network.
    """
    _check_folder(name)
    common = {"pretrained": pretrained, "image_size": image_size, "small_images": small_images}
    common |= {"in_channels": in_channels}
    if not _is_registered(name) and modality != "image":
        name, options = _as_transformers(name, modality, options)
    if _is_registered(name):
        encoder = _create_registered(name, modality, common, options)
    else:
        encoder = _library_factory(name)(name, **common, **options)
    takes = not _is_registered(name) or "small_images" in lookup("encoder", name).options
    if takes and any(getattr(module, "small_images", False) is True for module in encoder.modules()):
        common["small_images"] = True  # a saved model states it, so that it does not change with the default
    encoder.made_from = {"name": name, "modality": modality, **common, **options}  # type: ignore[assignment]
    return encoder


def list_encoders(modality: str | None = None) -> list[str]:
    """The names of registered encoders, of one modality or of all; for images also those of torchvision.

    `timm.list_models` lists the names of timm; those of transformers are names on the hub.
    """
    names = [entry.name for entry in entries("encoder", modality)]
    if modality in (None, "image"):
        from mmcon.models.image_torchvision import torchvision_names

        names += torchvision_names()
    return names


def describe_encoder(name: str) -> str:
    """The docstring and the options, with defaults, of a registered encoder or of the loader of a library's encoders.

    Raises:
        UnknownNameError: the encoder does not exist; the message has the nearest names.
    """
    if _is_registered(name):
        return lookup("encoder", name).describe()
    factory = _library_factory(name)
    return Entry(name, "encoder", "image", factory, factory.__module__).describe()


def _check_folder(name: str) -> None:
    """Check that a name that is a path leads to a folder; the hub is asked for other names alone."""
    if name.startswith(("timm/", *_OWN_PREFIXES)) or _is_registered(name) or not {"/", "\\"} & {*name}:
        return  # a word may be a name of torchvision, whatever the working directory has
    if (missing := missing_folder(name)) is not None:
        got, fix = missing
        raise InputError(f"create_encoder({name!r})", expected="the folder of a model", got=got, fix=fix)


def _is_registered(name: str) -> bool:
    return any(entry.name == name for entry in entries("encoder"))


def _may_be_on_hub(name: str) -> bool:
    return "/" in name and not name.startswith(_OWN_PREFIXES)


def _as_transformers(name: str, modality: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered encoder that wraps a transformers model, and its options including the model's name."""
    if modality not in _TRANSFORMERS or not (_may_be_on_hub(name) or Path(name).is_dir()):
        raise UnknownNameError(
            f"create_encoder({name!r})",
            expected=f"a registered encoder of modality {modality!r}, or owner/model of a hub, or a folder",
            got=repr(name),
            fix=nearest(name, [entry.name for entry in entries("encoder", modality)]),
        )
    wrapper, option = _TRANSFORMERS[modality]
    return wrapper, {option: name, **options}


def _create_registered(name: str, modality: str, common: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Build a registered encoder with the common options that its factory supports."""
    entry = lookup("encoder", name)
    if entry.modality not in (modality, "any"):
        raise InputError(
            f"create_encoder({name!r})",
            expected=f"an encoder of modality {modality!r}",
            got=f"one of {entry.modality!r}",
            fix=nearest(name, [e.name for e in entries("encoder", modality)]),
        )
    if any(p.kind is p.VAR_KEYWORD for p in entry.options.values()):
        options = {option: value for option, value in common.items() if value != _COMMON_DEFAULTS[option]} | options
    # Size and channels only describe the images, so an encoder may ignore them. The following two options change the
    # encoder: they are always passed, and `create` raises if the factory does not take them.
    requested = {option: common[option] for option in ("pretrained", "small_images") if common[option]}
    encoder = create("encoder", name, **(requested | supported_options("encoder", name, common) | options))
    if not isinstance(getattr(encoder, "feature_dim", None), int) or not isinstance(encoder, nn.Module):
        raise InputError(
            f"create_encoder({name!r})",
            expected="a module with an attribute `feature_dim`, the width of its features",
            got=type(encoder).__name__,
            fix=f"set self.feature_dim in {entry.origin}",
        )
    return encoder


def _library_factory(name: str) -> Callable[..., ImageEncoder]:
    """The function that builds an image encoder of a library."""
    from mmcon.models import image_timm, image_torchvision, image_transformers

    if name.startswith(("timm/", "hf-hub:timm/")):
        return image_timm.timm_encoder
    if name in image_torchvision.torchvision_names():
        return image_torchvision.torchvision_encoder
    if image_timm.is_timm_folder(name):
        return image_timm.timm_encoder
    if _may_be_on_hub(name) or image_transformers.is_model_folder(name):
        return image_transformers.transformers_encoder
    raise UnknownNameError(
        f"create_encoder({name!r})",
        expected="a registered encoder, torchvision's name, timm/NAME, owner/model of a hub, or a local folder",
        got=repr(name),
        fix=nearest(name, list_encoders("image") + image_timm.timm_names()),
    )
