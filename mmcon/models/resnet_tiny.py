"""A residual network for images of about 28 to 32 pixels, small enough to train on two CPU cores in minutes."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional

from mmcon.models.image import ImageEncoder
from mmcon.registry import register_encoder

# A single grey level and spread: the network's first batch norm takes care of the rest.
_MEAN, _STD = 0.45, 0.25


@final
class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut; the second's scale starts at 0, so that a block starts as its shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = nn.Identity()
        if stride != 1 or inner != outer:
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x), inplace=True)


@register_encoder("mmcon/resnet-tiny", modality="image")
def resnet_tiny(
    width: int = 32,
    depth: int = 1,
    in_channels: int = 3,
    small_images: bool | None = None,
    image_size: int | None = None,
) -> ImageEncoder:
    """A ResNet of three stages for small images: trained on two CPU cores in minutes.

    The stem halves the resolution, which costs a quarter of keeping it; the features are `4·width` wide.

    Args:
        width: channels of the first stage; the second and third have two and four times as many.
        depth: blocks in a stage.
        in_channels: channels of the images.
        small_images: keep the resolution in the stem: about four times the work. By default not.
        image_size: the side of the images, for information.
    """
    stem = nn.Conv2d(in_channels, width, 3, 1 if small_images else 2, 1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inner = width
    for stage in range(3):
        outer = width * 2**stage
        for block in range(depth):
            layers.append(_Block(inner, outer, 2 if stage and not block else 1))
            inner = outer
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return ImageEncoder(
        network, feature_dim=inner, mean=[_MEAN] * in_channels, std=[_STD] * in_channels, image_size=image_size
    )
