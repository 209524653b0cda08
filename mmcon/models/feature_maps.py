"""Dense features: maps of a network's layers, one for each resolution, from one forward pass.

    maps = encoder.feature_maps(images)            # [n c1 h1 w1, n c2 h2 w2, …], the finest first

A network's own method `feature_maps` gives them. A network of timm has an interface for them. Of other networks the
layers on the main path are observed: those of nested sequences up to the global pooling, where a block is one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError

_GLOBAL_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def network_maps(network: nn.Module, images: Float[Tensor, "n c h w"], where: str) -> list[Float[Tensor, "n _d _h _w"]]:
    """The last map of each resolution of a network, the finest first.

    Args:
        network: takes the images.
        images: normalized.
        where: the encoder, for messages.

    Raises:
        InputError: the network has no maps `n d h w` whose resolution falls.
    """
    network_: Any = network
    if hasattr(network, "feature_maps"):
        found = network_.feature_maps(images)
    elif hasattr(network, "forward_intermediates"):
        found = network_.forward_intermediates(images, intermediates_only=True)
    else:
        found = _observed(network, images)
    last_of_size = {tuple(found_map.shape[-2:]): found_map for found_map in found}
    maps = [*last_of_size.values()]
    if not maps or not _are_maps_of(images, maps):
        raise InputError(
            f"feature maps of {where}",
            expected="maps `n d h w` with the aspect of the images, each coarser than the one before",
            got=str([tuple(each.shape) for each in maps]) if maps else f"none from {type(network).__name__}",
            fix="use the model of the same name in timm, or give the network a method `feature_maps`",
        )
    return maps


def _are_maps_of(images: Float[Tensor, "n c h w"], maps: Sequence[Float[Tensor, "n _d _h _w"]]) -> bool:
    """Whether maps have the aspect of the images, up to rounding, and fall in resolution."""
    height, width = images.shape[-2:]
    # Maps with the channels last, as of torchvision's Swin, have another aspect.
    same_aspect = all(abs(m.shape[-2] * width - m.shape[-1] * height) <= max(height, width) for m in maps)
    return same_aspect and all(a.shape[-2] > b.shape[-2] for a, b in pairwise(maps))


def _observed(network: nn.Module, images: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _d _h _w"]]:
    """The maps of the layers on the main path, in the order of execution, up to the global pooling."""
    found: list[Tensor] = []
    pooled: list[nn.Module] = []

    def observe(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, _GLOBAL_POOLING):
            pooled.append(module)
        elif not pooled and isinstance(output, Tensor) and output.dim() == 4:
            found.append(output)

    handles = [layer.register_forward_hook(observe) for layer in _main_path(network)]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _main_path(network: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested sequences; a block is one layer, since a wider map may be inside of it."""
    for child in network.children():
        if isinstance(child, nn.Sequential):
            yield from _main_path(child)
        else:
            yield child
