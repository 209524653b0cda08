"""Convolutional networks for small images: the first layers keep the resolution.

Networks for images of 224 pixels divide the resolution by 32, which leaves 7 × 7 positions. Of an image of 32 pixels
one position is left, and later convolutions see mostly padding. With random weights the features of two views of an
image are then as different as those of two images, and a contrastive loss stays at that of identical embeddings.
He et al. 2016 (section 4.2) and SimCLR (Chen et al. 2020, appendix B.9) train ResNets on small images without the first
two divisions. This does the same for other networks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.image_input import conv_like

# Up to this side in pixels, dividing the resolution by 32 leaves too few positions (2 × 2 of 64 × 64).
SMALL_IMAGE_SIZE = 64


def fit_stem(
    network: nn.Module, name: str, *, small_images: bool | None, image_size: int | None, pretrained: bool
) -> bool:
    """Make the first layers keep the resolution if requested or, by default, for small images and random weights.

    Returns:
        Whether they keep it.

    Raises:
        InputError: `small_images=True`, but the first layers cannot keep it, or the weights are published ones.
    """
    default = small_images is None
    wanted = small_images or (default and not pretrained and image_size is not None and image_size <= SMALL_IMAGE_SIZE)
    if not wanted:
        return False
    size = image_size or SMALL_IMAGE_SIZE
    if not pretrained and (_replace_stem_of_resnet(network) or _keep_resolution(network, size)):
        return True
    if default:
        return False
    raise InputError(
        f"create_encoder({name!r})",
        expected="small_images=True with random weights of a network that begins with a convolution of stride 2",
        got="published weights" if pretrained else f"{type(network).__name__}",
        fix="leave small_images out, or choose a network such as resnet18 without published weights",
    )


def has_resnet_stem(network: nn.Module) -> bool:
    """Whether a network, or a part of it, has a ResNet's stem that keeps the resolution."""
    stems = ((getattr(m, "conv1", None), getattr(m, "maxpool", None)) for m in network.modules())
    return any(isinstance(conv, nn.Conv2d) and isinstance(pool, nn.Identity) for conv, pool in stems)


def _replace_stem_of_resnet(network: nn.Module) -> bool:
    """Replace a 7×7 convolution of stride 2 and its pooling by a 3×3 convolution of stride 1."""
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not (isinstance(conv, nn.Conv2d) and conv.stride == (2, 2) and isinstance(pool, nn.MaxPool2d)):
        return False
    stem = conv_like(conv, conv.in_channels, (3, 3), (1, 1), (1, 1))
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = stem, nn.Identity()
    return True


def _keep_resolution(network: nn.Module, size: int) -> bool:
    """Set the stride of the layers that divide the resolution by two, and then by four, to 1.

    Only of networks that begin with a convolution of stride 2. VGG and others divide it later, by pooling.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.stride != (2, 2):
        return False
    layers = _first_divisions(network, torch.zeros(1, first.in_channels, size, size))
    if not layers or not all(_can_keep(layer) for layer in layers.values()):
        return False
    for path, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        else:
            network.set_submodule(path, nn.Identity())
    return True


def _first_divisions(network: nn.Module, image: Float[Tensor, "1 c h w"]) -> dict[str, nn.Module]:
    """The layers from the full to half of the resolution, and from half to a quarter, by path.

    None of a network that does not take the image, which its first step reports.
    """
    found: dict[str, nn.Module] = {}
    full = image.shape[-1]
    half, quarter = (full + 1) // 2, (full + 3) // 4
    divisions = [(full, half), (half, quarter)]

    def watch(path: str) -> Any:
        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            if (inputs[0].shape[-1], output.shape[-1]) in divisions:
                found[path] = layer

        return note

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    handles = [m.register_forward_hook(watch(path)) for path, m in network.named_modules() if isinstance(m, kinds)]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    except (RuntimeError, ValueError, AssertionError):
        return {}
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return found


def _can_keep(layer: nn.Module) -> bool:
    """Whether a layer keeps the resolution at a stride of 1; a pooling is left out instead."""
    if not isinstance(layer, nn.Conv2d):
        return isinstance(layer, nn.MaxPool2d)
    # timm's convolutions as in TensorFlow compute their padding from the stride.
    same = type(layer).__name__ == "Conv2dSame"
    return layer.dilation == (1, 1) and (
        same or all(k == 2 * p + 1 for k, p in zip(layer.kernel_size, _padding(layer), strict=True))
    )


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    return (-1, -1) if isinstance(layer.padding, str) else tuple(layer.padding)
