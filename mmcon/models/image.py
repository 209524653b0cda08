"""`ImageEncoder`: normalization of images in [0, 1], then a network that returns features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.feature_maps import network_maps
from mmcon.models.image_input import check_pixel_range


@final
class ImageEncoder(nn.Module):
    """Normalization with the statistics of a network's training, then the network.

    Args:
        network: a module from normalized images `n c h w` to features `n d`.
        feature_dim: width of the features.
        mean, std: by channel, of images in [0, 1].
        image_size: the side in pixels of the network's training images, if known.
        fixed_size: whether the network takes only this size (a fixed number of position embeddings).
        small_images: whether the first layers keep the resolution.

    Attributes:
        made_from: the arguments of `create_encoder` that built it; None if it was not built by name.
    """

    mean: Float[Tensor, "1 c 1 1"]
    std: Float[Tensor, "1 c 1 1"]

    def __init__(
        self,
        network: nn.Module,
        *,
        feature_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        fixed_size: bool = False,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError("ImageEncoder", expected="mean and std of one length, std > 0", got=f"{mean}, {std}")
        # Channels last makes convolutions about a quarter faster, on CPUs and on the tensor cores of GPUs.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feature_dim, self.image_size, self.fixed_size = feature_dim, image_size, fixed_size
        self.small_images = small_images
        self.made_from: dict[str, Any] | None = None
        self._range_is_known = False
        # Not persistent: the statistics follow from the encoder's name; a state dict contains only learned weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def in_channels(self) -> int:
        """The number of input channels; a single channel is repeated to this number."""
        return self.mean.shape[1]

    def forward(self, views: Shaped[Tensor, "..."]) -> Float[Tensor, "n d"]:
        """Features of images `n c h w`, floats in [0, 1].

        Raises:
            InputError: the images have another shape or dtype, a pixel is far above 1 (checked in evaluation mode and
                in the first batch of training), or the network does not return features `n d`.
        """
        features = self.network(self._normalized(views))
        # Not len(): it would fix the batch size of an exported program.
        if not isinstance(features, Tensor) or features.shape != (views.shape[0], self.feature_dim):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                self._name,
                expected=f"features of shape {(views.shape[0], self.feature_dim)}",
                got=str(got),
                fix="choose an encoder that pools to one vector an image, or wrap one that does and register it",
            )
        return features

    def feature_maps(self, views: Shaped[Tensor, "..."]) -> list[Float[Tensor, "n _d _h _w"]]:
        """Dense features of images `n c h w`: the last map of each resolution of the network, the finest first.

        A transformer has one. Detectors and segmenters are built on them (`mmcon.models.detection`).

        Raises:
            InputError: as `forward`, or the network has no maps.
        """
        return network_maps(self.network, self._normalized(views), self._name)

    def _normalized(self, views: Shaped[Tensor, "..."]) -> Float[Tensor, "n c h w"]:
        """Checked and normalized images, with a single channel repeated, in the memory layout of the network."""
        self._check(views)
        if views.shape[1] == 1 and self.in_channels > 1:
            views = views.expand(-1, self.in_channels, -1, -1)
        # As `contiguous(memory_format=torch.channels_last)`, which vmap does not support.
        return ((views - self.mean) / self.std).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    @property
    def _name(self) -> str:
        return f"encoder {self.made_from['name']!r}" if self.made_from else "ImageEncoder"

    def _check(self, views: Shaped[Tensor, "..."]) -> None:
        channels = sorted({1, self.in_channels})
        is_float_batch = views.dim() == 4 and views.is_floating_point()
        if not is_float_batch or views.shape[1] not in channels:
            raise InputError(
                self._name,
                expected=f"float images in [0, 1] `n c h w` with c in {channels}",
                got=f"{views.dtype} of shape {tuple(views.shape)}",
                fix=f"create_encoder(..., in_channels={views.shape[1]})"
                if is_float_batch
                else "divide integers by 255; end the views with a generator that returns float images of one size",
            )
        # Reading a value waits for the device, so in training only the first batch is checked.
        if not (self.training and self._range_is_known):
            check_pixel_range(views, self._name)
            self._range_is_known = True
        if self.fixed_size and views.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                self._name,
                expected=f"images of {self.image_size} × {self.image_size} pixels",
                got=f"{views.shape[-2]} × {views.shape[-1]}",
                fix=f"set the size of the views to {self.image_size}, or create_encoder(..., "
                f"image_size={views.shape[-1]})",
            )
