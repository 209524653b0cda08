"""Input of image networks: the range of pixels, other numbers of channels, and loading errors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.pretrained import model_load_errors

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Pixels in [0, 1] and standardized channels stay below it; an image in 0-255 exceeds it unless it is black.
LARGEST_PIXEL = 10.0


def check_pixel_range(pixels: Float[Tensor, "..."], where: str) -> None:
    """Check that images are not in 0-255.

    The check reads the pixels, so it is left out where a value cannot be read: in compilation and export.

    Raises:
        InputError: a pixel is above `LARGEST_PIXEL`.
    """
    if torch.compiler.is_compiling() or not pixels.numel():
        return
    # The values behind the wrappers of torch.func: under vmap a tensor has no value of its own to read.
    largest = float(torch.func.debug_unwrap(pixels).detach().amax())
    if largest > LARGEST_PIXEL:
        raise InputError(where, expected="pixels in [0, 1]", got=f"a pixel of {largest:.4g}", fix="divide by 255")


def image_load_errors(name: str) -> AbstractContextManager[None]:
    """Convert a library's failure to read an image model to a DataError."""
    return model_load_errors(
        f"create_encoder({name!r})",
        expected="a model that can be read: a local folder, or a hub name and a network (or a filled cache)",
        fix="check the name; download it once where there is a network, and give the folder as the name",
    )


def channel_statistics(values: Sequence[float], channels: int) -> list[float]:
    """Mean or standard deviation by channel; for another number of channels, their average."""
    values = [float(v) for v in values]
    return values if len(values) == channels else [sum(values) / len(values)] * channels


def replace_input_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for another number of channels.

    Weights are summed over channels or repeated and rescaled, so that a gray image gives the same output.
    """
    from timm.models import adapt_input_conv

    path, first = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    replacement = conv_like(first, channels, first.kernel_size, first.stride, first.padding)
    with torch.no_grad():
        replacement.weight.copy_(adapt_input_conv(channels, first.weight))
        if first.bias is not None and replacement.bias is not None:
            replacement.bias.copy_(first.bias)
    network.set_submodule(path, replacement)


def conv_like(conv: nn.Conv2d, channels: int, kernel: Any, stride: Any, padding: Any) -> nn.Conv2d:
    """A convolution of random weights with the output channels and the bias of another one."""
    return nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)
