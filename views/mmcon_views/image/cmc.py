"""Contrastive multiview coding (CMC, Tian et al. 2019): the channels of a color space, and edges, as views."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Chain, Meta, Params, ViewGenerator
from mmcon_views.image.blur import Blur
from mmcon_views.image.color import ColorJitter
from mmcon_views.image.crop import RandomResizedCrop
from mmcon_views.image.flip import Flip
from mmcon_views.image.pixels import to_device, to_float
from mmcon_views.image.rand_augment import RandAugment
from mmcon_views.image.sizes import Size
from mmcon_views.shared_draws import SharedByViews

# sRGB primaries to CIE XYZ (IEC 61966-2-1), divided by the D65 white point.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
# ITU-R BT.601 in the studio range, as in scikit-image: luminance from 16 to 235, chroma from 16 to 240 about 128.
_YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_YCBCR_ZERO = (16.0, 128.0, 128.0)
_LUMINANCE = (0.299, 0.587, 0.114)
_YDBDR = ((0.299, 0.587, 0.114), (-0.450, -0.883, 1.333), (-1.333, 1.116, 0.217))
# The normalization of CMC's released code: for Lab the center and half of each channel's range, else measured values.
MEAN = {
    "lab": (50.0, (98.233 - 86.183) / 2, (94.478 - 107.857) / 2),
    "ycbcr": (116.151, 121.080, 132.342),
    "ydbdr": (0.457, -0.082, -0.052),
}
STD = {
    "lab": (50.0, (98.233 + 86.183) / 2, (94.478 + 107.857) / 2),
    "ycbcr": (109.500, 111.855, 111.964),
    "ydbdr": (0.500, 1.331, 1.333),
}


def linear_channels(x: Float[Tensor, "b 3 h w"], matrix: tuple[tuple[float, ...], ...]) -> Float[Tensor, "b rows h w"]:
    """A linear map of each pixel's color, summed in channel order."""
    red, green, blue = x.unbind(1)
    return torch.stack([red * m[0] + green * m[1] + blue * m[2] for m in matrix], dim=1)


def lab(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """CIE Lab (D65) of sRGB in [0, 1]: L 0 to 100, a and b about −128 to 127."""
    # The curve of sRGB (IEC 61966-2-1) is undone first: Lab is defined on linear light.
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = linear_channels(linear, _XYZ) / to_device(x.device, torch.tensor(_WHITE))[0].view(1, 3, 1, 1)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=1)


@register_view("image/color-channels", modality="image")
@final
class ColorChannels(ViewGenerator):
    """The luminance, the chroma, or all channels of a color space; nothing is drawn.

    Channels are standardized with the means and deviations of CMC's code (Lab, YCbCr) and of PyContrast's (YDbDr).

    Args:
        space: "lab", "ycbcr" or "ydbdr".
        channels: "luminance" (1 channel), "chroma" (2 channels) or "both" (3).
    """

    modality: ClassVar[str] = "image"
    single_thread: ClassVar[bool] = True  # powers round differently at the end of each thread's part
    CHANNELS: ClassVar[dict[str, slice]] = {"luminance": slice(0, 1), "chroma": slice(1, 3), "both": slice(0, 3)}

    ZERO: ClassVar[dict[str, tuple[float, ...]]] = {
        "lab": (0.0, 0.0, 0.0), "ycbcr": _YCBCR_ZERO, "ydbdr": (0.0, 0.0, 0.0)
    }  # fmt: skip

    def __init__(self, *, space: str = "lab", channels: str = "both") -> None:
        if space not in ("lab", "ycbcr", "ydbdr") or channels not in self.CHANNELS:
            raise InputError(
                "image/color-channels",
                expected="space lab, ycbcr or ydbdr, channels luminance, chroma or both",
                got=f"space={space!r}, channels={channels!r}",
            )
        self.space, self.channels = space, channels

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Convert, standardize and select."""
        x = to_float(batch, self.name or "image/color-channels")
        if x.shape[1] != 3:
            raise InputError("image/color-channels", expected="RGB images", got=f"{x.shape[1]} channel")
        constants = to_device(x.device, *(torch.tensor(v[self.space]) for v in (MEAN, STD, self.ZERO)))
        mean, std, zero = (constant.view(1, 3, 1, 1) for constant in constants)
        weights = _YCBCR if self.space == "ycbcr" else _YDBDR
        out = _image_by_image(lab, x) if self.space == "lab" else linear_channels(x, weights)
        out = (out + zero - mean) / std
        return out[:, self.CHANNELS[self.channels]].contiguous()

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The number of selected channels."""
        selected = self.CHANNELS[self.channels]
        count = selected.stop - selected.start
        return {**meta, "channels": torch.full_like(meta["channels"], count)} if "channels" in meta else meta


def _image_by_image(
    function: Callable[[Float[Tensor, "_ c h w"]], Float[Tensor, "_ d k l"]], images: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b d k l"]:
    """Apply a function to each image alone on a CPU, where powers and convolutions of a batch round differently."""
    if images.device.type != "cpu":
        return function(images)
    return torch.cat([function(image) for image in images.split(1)])


@register_view("image/edges", modality="image")
@final
class Edges(ViewGenerator):
    """The edge map, one channel: the norm of Sobel's gradient of the luminance, in units of luminance a pixel.

    Color and brightness are removed; nothing is drawn.
    """

    modality: ClassVar[str] = "image"
    single_thread: ClassVar[bool] = True  # so do convolutions

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b 1 h w"]:
        """Filter, with replicated borders."""
        x = to_float(batch, self.name or "image/edges")
        if x.shape[1] == 3:
            x = linear_channels(x, (_LUMINANCE,))
        elif x.shape[1] != 1:
            raise InputError("image/edges", expected="RGB or gray images", got=f"{x.shape[1]} channels")
        # Sobel's weights over 8 give the slope of a linear ramp.
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        (kernels,) = to_device(x.device, torch.stack([across, across.T])[:, None])
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        gradients = _image_by_image(lambda image: torch.nn.functional.conv2d(image, kernels), padded)
        return gradients.square().sum(1, keepdim=True).sqrt()

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """One channel."""
        return {**meta, "channels": torch.ones_like(meta["channels"])} if "channels" in meta else meta


@register_view("image/cmc", modality="image")
def cmc(
    *,
    channels: Literal["luminance", "chroma", "edges", "both"] = "both",
    space: Literal["lab", "ycbcr", "ydbdr"] = "lab",
    size: Size = 224,
    area: tuple[float, float] = (0.2, 1.0),
    augment: bool | None = None,
) -> Chain:
    """CMC's views: crop, flip, then the luminance (1 channel) or the chroma (2 channels) of a color space.

    An edge map (1 channel) can be a further view. All views of a sample have the same crop and flip, since their keys
    omit the view. In the YDbDr space of the second version (PyContrast), the flip is followed by jitter (0.4, 0.4, 0.4,
    0.1) with p = 0.8, blur with p = 0.5, and the RandAugment operations that do not change colors.

    >>> views = [mmcon.create_view("image/cmc", channels=c) for c in ("luminance", "chroma")]

    Args:
        channels: "luminance", "chroma", "edges", or "both" of the first two (3 channels).
        space: "lab", "ycbcr" or "ydbdr".
        size: side of the square output, or (height, width).
        area: bounds of the crop's area, as fractions of the image's.
        augment: whether to apply the second version's jitter, blur and RandAugment; by default with "ydbdr".
    """
    children: list[tuple[str, ViewGenerator]] = [
        ("crop", RandomResizedCrop(size=size, area=area, bytes=True)),
        ("flip", Flip()),
    ]
    if augment or (augment is None and space == "ydbdr"):
        children += [
            ("jitter", ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
            ("blur", Blur()),
            ("randaugment", RandAugment(variant="color-safe")),
        ]
    shared = [(name, SharedByViews(generator)) for name, generator in children]
    last = Edges() if channels == "edges" else ColorChannels(space=space, channels=channels)
    return Chain(*shared, ("channels", last), name="image/cmc")
