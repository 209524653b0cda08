"""Encoders by name: what turns a batch of views into features.

    create_encoder("mmcon/resnet-tiny", image_size=28)            # ours: small and fast on a CPU
    create_encoder("resnet50")                                    # torchvision
    create_encoder("timm/vit_small_patch16_224", pretrained=True) # timm
    create_encoder("facebook/dinov2-small", pretrained=True)      # transformers, by hub name or local folder

An encoder is a module with `feature_dim` whose `forward` takes images in [0, 1] and gives features `n d`; it normalises
inside, by its own mean and standard deviation, so that views never need to know which encoder follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError, UnknownNameError, nearest
from mmcon.models import resnet_tiny as _registers_itself  # noqa: F401
from mmcon.models.image import ImageEncoder
from mmcon.registry import Entry, create, entries, lookup, register_encoder


@final
@register_encoder("mmcon/precomputed-features", modality="any")
class PrecomputedFeatures(nn.Module):
    """Features that were computed before stand in for an encoder, so that a large one need run only once.

    Args:
        feature_dim: their width.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, views: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The features themselves."""
        if views.shape[1] != self.feature_dim:
            raise InputError(
                "mmcon/precomputed-features", expected=f"width {self.feature_dim}", got=f"width {views.shape[1]}"
            )
        return views


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
    """Make an encoder by name.

    Args:
        name: a registered name; "timm/NAME"; the name of a torchvision classification model; or, for transformers, a
            hub name ("owner/model") or a local folder.
        modality: what it must take.
        pretrained: load the published weights rather than start at random.
        image_size: the side of the images to come, in pixels, where that is known.
        small_images: replace a stem that divides the resolution by four by one that keeps it (3×3, stride 1, no
            pooling). By default where `image_size` is 64 or less and the weights are not published ones.
        in_channels: channels of the images. One channel is repeated to three, so leave 3 for grey images with
            published weights.
        options: for the library or the registered factory, as they are.

    Returns:
        A module with `feature_dim`, and `made_from` that makes it again.

    Raises:
        UnknownNameError: there is no such encoder; the message has the nearest names.
        InputError: an option does not fit the encoder.
        DataError: the weights or the configuration cannot be read, such as a hub name without a network.
    """
    given = {"pretrained": pretrained, "image_size": image_size, "small_images": small_images}
    given |= {"in_channels": in_channels}
    if name in [entry.name for entry in entries("encoder")]:
        encoder = _registered(name, modality, given, options)
    elif modality != "image":
        known = [entry.name for entry in entries("encoder", modality)]
        raise UnknownNameError(
            f"create_encoder({name!r})",
            expected=f"a registered encoder of modality {modality!r}",
            got=repr(name),
            fix=nearest(name, known),
        )
    else:
        encoder = _library(name)(name, **given, **options)
    encoder.made_from = {"name": name, "modality": modality, **given, **options}  # type: ignore[assignment]
    return encoder


def list_encoders(modality: str | None = None) -> list[str]:
    """The names of encoders of one modality or of all: registered ones, and torchvision's for images.

    timm's names are listed by `timm.list_models`, those of transformers are names on the hub.
    """
    names = [entry.name for entry in entries("encoder", modality)]
    if modality in (None, "image"):
        from mmcon.models.image_libraries import torchvision_names

        names += torchvision_names()
    return names


def describe_encoder(name: str) -> str:
    """The docstring and the options, with defaults, of a registered encoder, or of the loader of a library's encoder.

    Raises:
        UnknownNameError: there is no such encoder; the message has the nearest names.
    """
    if name in [entry.name for entry in entries("encoder")]:
        return lookup("encoder", name).describe()
    factory = _library(name)
    return Entry(name, "encoder", "image", factory, factory.__module__).describe()


def _registered(name: str, modality: str, given: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """A registered encoder takes those of the usual options that it declares; the others must be at their defaults."""
    entry = lookup("encoder", name)
    if entry.modality not in (modality, "any"):
        raise InputError(
            f"create_encoder({name!r})",
            expected=f"an encoder of modality {modality!r}",
            got=f"one of {entry.modality!r}",
            fix=nearest(name, [e.name for e in entries("encoder", modality)]),
        )
    usual = {"pretrained": False, "image_size": None, "small_images": None, "in_channels": 3}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in entry.options.values())
    taken = {k: v for k, v in given.items() if k in entry.options or (open_ended and v != usual[k])}
    # What only says how the images look may be left out; what asks for something must be understood.
    asked = {k: v for k, v in given.items() if k not in taken and k in ("pretrained", "small_images") and v}
    encoder = create("encoder", name, **taken, **asked, **options)
    if not isinstance(getattr(encoder, "feature_dim", None), int) or not isinstance(encoder, nn.Module):
        raise InputError(
            f"create_encoder({name!r})",
            expected="a module with an attribute `feature_dim`, the width of its features",
            got=type(encoder).__name__,
            fix=f"set self.feature_dim in {entry.origin}",
        )
    return encoder


def _library(name: str) -> Callable[..., ImageEncoder]:
    from mmcon.models import image_libraries

    if name.startswith(("timm/", "hf-hub:timm/")):
        return image_libraries.timm_encoder
    if name in image_libraries.torchvision_names():
        return image_libraries.torchvision_encoder
    if image_libraries.is_local_timm(name):
        return image_libraries.timm_encoder
    if not name.startswith("mmcon/") and ("/" in name or image_libraries.is_folder(name)):
        return image_libraries.transformers_encoder
    known = list_encoders("image") + image_libraries.timm_names()
    raise UnknownNameError(
        f"create_encoder({name!r})",
        expected="a registered encoder, torchvision's name, timm/NAME, owner/model of a hub, or a local folder",
        got=repr(name),
        fix=nearest(name, known),
    )
