"""Video encoders: an image encoder with temporal pooling, and video models of torchvision and transformers.

    create_encoder("mmcon/frames", modality="video", frame_encoder="mmcon/resnet-tiny", image_size=32)
    create_encoder("r3d_18", modality="video")                                    # torchvision
    create_encoder("MCG-NJU/videomae-base", modality="video", pretrained=True)    # transformers: hub name or folder

Video encoders take clips `n t c h w` in [0, 1] and normalize them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, final

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.encoders import create_encoder
from mmcon.models.image_input import IMAGENET_MEAN, IMAGENET_STD, check_pixel_range
from mmcon.models.pretrained import model_load_errors
from mmcon.models.random_weights import prepare_random_weights
from mmcon.registry import register_encoder

TORCHVISION = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b")
KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
# Mean and standard deviation of the published checkpoints, for folders without preprocessor_config.json.
NORMALIZATION = {
    "videomae": (IMAGENET_MEAN, IMAGENET_STD),
    "timesformer": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "vivit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@register_encoder("mmcon/frames", modality="video")
@final
class FrameEncoder(nn.Module):
    """An image encoder on every frame, pooled over time.

    Args:
        frame_encoder: name of the image encoder.
        pooling: `mean`; `max`; or `motion`, the mean concatenated with the mean difference of consecutive frames, which
            doubles the width and keeps the direction of time (for a single frame the difference is 0).
        pretrained: load published weights of the image encoder.
        image_size: side of the frames in pixels.
        small_images: as in `create_encoder`.
        in_channels: channels of the frames.
    """

    def __init__(
        self,
        frame_encoder: str = "mmcon/resnet-tiny",
        pooling: Literal["mean", "max", "motion"] = "mean",
        pretrained: bool = False,
        image_size: int | None = None,
        small_images: bool | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "max", "motion"):
            raise InputError("mmcon/frames", expected="pooling 'mean', 'max' or 'motion'", got=repr(pooling))
        self.encoder = create_encoder(
            frame_encoder,
            pretrained=pretrained,
            image_size=image_size,
            small_images=small_images,
            in_channels=in_channels,
        )
        self.pooling = pooling
        width = self.encoder.feature_dim
        assert isinstance(width, int)
        self.feature_dim = width * (2 if pooling == "motion" else 1)

    def forward(self, clips: Shaped[Tensor, "..."]) -> Float[Tensor, "n d"]:
        """Features of clips `n t c h w`."""
        _check_clips(clips, "mmcon/frames")
        features = self.encoder(rearrange(clips, "n t c h w -> (n t) c h w"))
        features = rearrange(features, "(n t) d -> n t d", n=clips.shape[0])
        if self.pooling == "max":
            return reduce(features, "n t d -> n d", "max")
        mean = reduce(features, "n t d -> n d", "mean")
        if self.pooling == "mean":
            return mean
        change = features.diff(dim=1).mean(1) if clips.shape[1] > 1 else torch.zeros_like(mean)
        return torch.cat([mean, change], dim=1)


@final
class VideoEncoder(nn.Module):
    """Normalization with the statistics of a network's training, then the network, on whole clips.

    Args:
        network: a module that takes clips `n c t h w` (torchvision) or `n t c h w` (transformers).
        feature_dim: width of the features.
        mean, std: by channel, of frames in [0, 1].
        name: the encoder's name in error messages.
        frames: the required number of frames; None: any.
        size: the required side in pixels; None: any.
        token: for transformers, the pooling: the `first` hidden state, or the `mean` over all.
    """

    mean: Float[Tensor, "c 1 1"]
    std: Float[Tensor, "c 1 1"]

    def __init__(
        self,
        network: nn.Module,
        *,
        feature_dim: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        name: str,
        frames: int | None = None,
        size: int | None = None,
        token: Literal["first", "mean"] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.feature_dim, self.name = network, feature_dim, name
        self.frames, self.size, self.token = frames, size, token
        self._range_is_known = False
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, clips: Shaped[Tensor, "..."]) -> Float[Tensor, "n d"]:
        """Features of clips `n t c h w`."""
        _check_clips(clips, self.name)
        if not (self.training and self._range_is_known):  # as in ImageEncoder
            check_pixel_range(clips, self.name)
            self._range_is_known = True
        frames, size = clips.shape[1], tuple(clips.shape[-2:])
        wrong_size = self.size is not None and size != (self.size, self.size)
        if (self.frames is not None and frames != self.frames) or wrong_size:
            raise InputError(
                self.name,
                expected=f"{self.frames or 'any number of'} frames of {self.size or 'any'} pixels a side",
                got=f"{frames} of {size[0]}×{size[1]}",
                fix=f"draw views with frames={self.frames or frames} and size={self.size or size[0]}",
            )
        clips = (clips - self.mean) / self.std
        if self.token is None:
            return self.network(rearrange(clips, "n t c h w -> n c t h w"))
        hidden = self.network(pixel_values=clips).last_hidden_state
        return hidden[:, 0] if self.token == "first" else reduce(hidden, "n tokens d -> n d", "mean")


def torchvision_video(name: str, *, pretrained: bool = False, **options: Any) -> VideoEncoder:
    """A video model of torchvision up to the input of its last linear layer."""
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT if pretrained else None  # type: ignore[attr-defined]
    with model_load_errors(name, expected="readable weights", fix="pretrained=False needs none"):
        network = models.get_model(name, weights=weights, **options)
    if not pretrained:
        prepare_random_weights(network, options)
    preset = weights.transforms() if weights is not None else None
    fixed = name.startswith("mvit")
    return VideoEncoder(
        network,
        feature_dim=_remove_classifier(network),
        mean=tuple(getattr(preset, "mean", KINETICS_MEAN)),
        std=tuple(getattr(preset, "std", KINETICS_STD)),
        frames=16 if fixed else None,
        size=224 if fixed else None,
        name=name,
    )


def _remove_classifier(network: Any) -> int:
    """Replace the classification head by the identity, and return its input width."""
    for attribute in ("fc", "classifier", "head"):
        head = getattr(network, attribute, None)
        if head is None:
            continue
        setattr(network, attribute, nn.Identity())
        layers = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv3d)]
        if isinstance(layers[-1], nn.Conv3d):
            # S3D's average pooling has a fixed window for 224 pixels; adaptive pooling takes any size.
            network.avgpool = nn.AdaptiveAvgPool3d(1)
            return layers[-1].in_channels
        return layers[-1].in_features
    raise InputError("torchvision video", expected="a network with a linear head", got=type(network).__name__)


def _register_torchvision(name: str) -> None:
    @register_encoder(name, modality="video")
    def make(pretrained: bool = False, **options: Any) -> VideoEncoder:
        return torchvision_video(name, pretrained=pretrained, **options)

    make.__doc__ = f"torchvision's video model {name}, without its classifier."


for _name in TORCHVISION:
    _register_torchvision(_name)


@register_encoder("transformers/video", modality="video")
def transformers_video(model: str, pretrained: bool = False, **options: Any) -> VideoEncoder:
    """VideoMAE, TimeSformer or ViViT of transformers.

    Args:
        model: a hub name, or a local folder with config.json.
        pretrained: load the weights; otherwise the published configuration with random weights.
        options: override the configuration.
    """
    from transformers import AutoConfig, AutoModel

    where = f"create_encoder({model!r}, modality='video')"
    with model_load_errors(
        where,
        expected="a hub name that can be reached, or a folder with config.json",
        fix="download the model first and give its folder",
    ):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False, **options)
        network = (
            AutoModel.from_pretrained(model, config=config, trust_remote_code=False)
            if pretrained
            else AutoModel.from_config(config, trust_remote_code=False)
        )
    if config.model_type not in NORMALIZATION:
        raise InputError(where, expected=f"a model of kind {', '.join(NORMALIZATION)}", got=repr(config.model_type))
    mean, std = _normalization(model, config.model_type)
    return VideoEncoder(
        network,
        feature_dim=config.hidden_size,
        mean=mean,
        std=std,
        frames=config.num_frames,
        size=config.image_size,
        token="mean" if config.model_type == "videomae" else "first",
        name=model,
    )


def _normalization(model: str, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation from preprocessor_config.json, by default those of the published checkpoints."""
    file = Path(model) / "preprocessor_config.json"
    mean, std = NORMALIZATION[kind]
    if not file.is_file():
        return mean, std
    config = json.loads(file.read_text(encoding="utf-8"))
    return tuple(map(float, config.get("image_mean", mean))), tuple(map(float, config.get("image_std", std)))


def _check_clips(clips: Shaped[Tensor, "..."], where: str) -> None:
    if clips.dim() != 5 or not clips.is_floating_point():
        raise InputError(
            where,
            expected="clips `n t c h w`, floating point in [0, 1]",
            got=f"{clips.dtype} of shape {tuple(clips.shape)}",
            fix="end the view with a crop or a resize, which return float32",
        )
