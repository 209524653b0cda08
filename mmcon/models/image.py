"""A network for images behind the normalisation that it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from mmcon.errors import InputError

# Up to this many pixels a side, a stem that divides the resolution by four leaves too little to see.
SMALL_IMAGE = 64


@final
class ImageEncoder(nn.Module):
    """A network behind the normalisation that it was made for.

    Args:
        network: from normalised images `n c h w` to features `n d`.
        feature_dim: the width d of the features.
        mean, std: by channel, of images in [0, 1].
        image_size: the side in pixels that the network prefers, if any.
        fixed_size: whether it takes no other (position embeddings of a fixed number).

    Attributes:
        made_from: the name and the options that make it again, as `create_encoder` took them; None for a hand-made one.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        feature_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        fixed_size: bool = False,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError("ImageEncoder", expected="mean and std of one length, std > 0", got=f"{mean}, {std}")
        # Convolutions of a CPU and of a GPU's tensor cores are faster by about a quarter with channels last.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feature_dim, self.image_size, self.fixed_size = feature_dim, image_size, fixed_size
        self.made_from: dict[str, Any] | None = None
        # A part of what the encoder is, but not of what it learned: rebuilt from its name, not loaded.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def in_channels(self) -> int:
        """The channels of its images; one channel is repeated to as many."""
        return self.mean.shape[1]

    def forward(self, views: Tensor) -> Tensor:
        """Features `n d` of images `n c h w`, floats in [0, 1].

        Raises:
            InputError: the images have another shape or type, or the network gives no features `n d`.
        """
        self._check(views)
        if views.shape[1] == 1 and self.in_channels > 1:
            views = views.expand(-1, self.in_channels, -1, -1)
        normal = (views - self.mean) / self.std
        features = self.network(normal.contiguous(memory_format=torch.channels_last))
        if not isinstance(features, Tensor) or features.shape != (len(views), self.feature_dim):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                self._name,
                expected=f"features of shape {(len(views), self.feature_dim)}",
                got=str(got),
                fix="choose an encoder that pools to one vector an image, or wrap one that does and register it",
            )
        return features

    @property
    def _name(self) -> str:
        return f"encoder {self.made_from['name']!r}" if self.made_from else "ImageEncoder"

    def _check(self, views: Tensor) -> None:
        channels = sorted({1, self.in_channels})
        if views.dim() != 4 or views.shape[1] not in channels or not views.is_floating_point():
            raise InputError(
                self._name,
                expected=f"float images in [0, 1] `n c h w` with c in {channels}",
                got=f"{views.dtype} of shape {tuple(views.shape)}",
                fix=f"create_encoder(..., in_channels={views.shape[1]})"
                if views.dim() == 4 and views.is_floating_point()
                else "end the views with one that gives float images, stacked",
            )
        if self.fixed_size and views.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                self._name,
                expected=f"images of {self.image_size} × {self.image_size} pixels",
                got=f"{views.shape[-2]} × {views.shape[-1]}",
                fix=f"let views give {self.image_size} pixels, or create_encoder(..., image_size={views.shape[-1]})",
            )
