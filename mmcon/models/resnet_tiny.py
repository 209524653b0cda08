"""A residual network for images of about 28 to 32 pixels; two CPU cores train it in minutes."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmcon.models.image import ImageEncoder
from mmcon.registry import register_encoder

# One mean and deviation for all channels: the first batch norm absorbs the rest.
_MEAN, _STD = 0.45, 0.25


@register_encoder("mmcon/resnet-tiny", modality="image")
def resnet_tiny(
    width: int = 32,
    depth: int = 1,
    in_channels: int = 3,
    small_images: bool | None = None,
    image_size: int | None = None,
) -> ImageEncoder:
    """A ResNet of three stages for small images; two CPU cores train it in minutes.

    The stem halves the resolution, at a quarter of the cost of keeping it. The features have width `4·width`.

    Args:
        width: channels of the first stage; the second and third have two and four times as many.
        depth: blocks in a stage.
        in_channels: channels of the images.
        small_images: keep the resolution in the stem, at about four times the cost. By default False.
        image_size: side of the images, for information.
    """
    stem = nn.Conv2d(in_channels, width, 3, 1 if small_images else 2, 1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    channels = width
    for stage in range(3):
        stage_width = width * 2**stage
        for block in range(depth):
            layers.append(_ResidualBlock(channels, stage_width, 2 if stage and not block else 1))
            channels = stage_width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return ImageEncoder(
        network, feature_dim=channels, mean=[_MEAN] * in_channels, std=[_STD] * in_channels, image_size=image_size
    )


@register_encoder("mmcon/resnet-tiny-16", modality="image")
def resnet_tiny_16(
    depth: int = 1, in_channels: int = 3, small_images: bool | None = None, image_size: int | None = None
) -> ImageEncoder:
    """`mmcon/resnet-tiny` of width 16, for comparisons of widths by name."""
    return resnet_tiny(16, depth, in_channels, small_images, image_size)


@register_encoder("mmcon/resnet-tiny-64", modality="image")
def resnet_tiny_64(
    depth: int = 1, in_channels: int = 3, small_images: bool | None = None, image_size: int | None = None
) -> ImageEncoder:
    """`mmcon/resnet-tiny` of width 64, for comparisons of widths by name."""
    return resnet_tiny(64, depth, in_channels, small_images, image_size)


@final
class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut.

    The scale of the second norm starts at 0, so that the block starts as its shortcut (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            # As in ResNet-D (He et al. 2019): a strided 1×1 convolution would read one position in four.
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(pool, conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        hidden = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x), inplace=True)
