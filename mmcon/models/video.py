"""Encoders of clips: an image encoder with temporal pooling, torchvision's video models, transformers' video models.

    create_video_encoder("mmcon/frames", frame_encoder="mmcon/resnet-tiny", image_size=32)
    create_video_encoder("r3d_18")                                          # torchvision
    create_video_encoder("MCG-NJU/videomae-base", pretrained=True)          # transformers, by hub name or local folder

Like all encoders they take views in [0, 1], here `n t c h w`, and normalise inside.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import DataError, InputError
from mmcon.models.encoders import create_encoder
from mmcon.registry import entries, register_encoder

TORCHVISION = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b")
KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
# What the published checkpoints were trained with, for folders that do not say it.
NORMALISED_BY = {
    "videomae": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "timesformer": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "vivit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
Clips = Float[Tensor, "n t c h w"]


def create_video_encoder(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Make an encoder of clips by a registered name, or by a hub name or local folder of transformers.

    Args:
        name: "mmcon/frames", one of torchvision's video models, or a transformers model.
        pretrained: load published weights.
        options: of the encoder.
    """
    if name in [entry.name for entry in entries("encoder", "video")]:
        return create_encoder(name, modality="video", pretrained=pretrained, **options)
    return create_encoder("transformers/video", modality="video", pretrained=pretrained, **{"model": name, **options})


@register_encoder("mmcon/frames", modality="video")
@final
class FrameEncoder(nn.Module):
    """An image encoder on every frame, pooled over time.

    Args:
        frame_encoder: the image encoder's name.
        pooling: `mean`; `max`; or `motion`, the mean beside the mean change from frame to frame, twice as wide, so that
            the direction of time is not lost (a single frame has no change).
        pretrained: load the image encoder's published weights.
        image_size: side of the frames in pixels.
        small_images: as in `create_encoder`.
        in_channels: of the frames.
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

    def forward(self, clips: Clips) -> Float[Tensor, "n d"]:
        """Features of clips."""
        _check_clips(clips, "mmcon/frames")
        n, t = clips.shape[:2]
        features = self.encoder(clips.flatten(0, 1)).unflatten(0, (n, t))
        if self.pooling == "max":
            return features.amax(1)
        if self.pooling == "mean":
            return features.mean(1)
        change = features.diff(dim=1).mean(1) if t > 1 else torch.zeros_like(features[:, 0])
        return torch.cat([features.mean(1), change], dim=1)


@final
class VideoEncoder(nn.Module):
    """A network that takes whole clips, behind the normalisation that it was made for.

    Args:
        network: from `n c t h w` (torchvision) or from pixel values `n t c h w` (transformers).
        feature_dim: the width of the features.
        mean, std: by channel, of frames in [0, 1].
        frames: how many it takes, if only so many.
        size: the side that it takes, if only one.
        token: for transformers, which hidden state is the feature: `first`, or the `mean` of all.
        name: for messages.
    """

    mean: Tensor
    std: Tensor

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
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, clips: Clips) -> Float[Tensor, "n d"]:
        """Features of clips."""
        _check_clips(clips, self.name)
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
            return self.network(clips.transpose(1, 2))
        hidden = self.network(pixel_values=clips).last_hidden_state
        return hidden[:, 0] if self.token == "first" else hidden.mean(1)


def torchvision_video(name: str, *, pretrained: bool = False, **options: Any) -> VideoEncoder:
    """A video model of torchvision up to the input of its last linear layer."""
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT if pretrained else None  # type: ignore[attr-defined]
    try:
        network = models.get_model(name, weights=weights, **options)
    except (OSError, ValueError) as error:
        raise DataError(name, expected="readable weights", got=str(error), fix="pretrained=False needs none") from error
    preset = weights.transforms() if weights is not None else None
    fixed = name.startswith("mvit")
    return VideoEncoder(
        network,
        feature_dim=_drop_classifier(network),
        mean=tuple(getattr(preset, "mean", KINETICS_MEAN)),
        std=tuple(getattr(preset, "std", KINETICS_STD)),
        frames=16 if fixed else None,
        size=224 if fixed else None,
        name=name,
    )


def _drop_classifier(network: Any) -> int:
    for attribute in ("fc", "classifier", "head"):
        head = getattr(network, attribute, None)
        if head is None:
            continue
        setattr(network, attribute, nn.Identity())
        layers = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv3d)]
        if isinstance(layers[-1], nn.Conv3d):
            # S3D's pooling window wants 224 pixels; the mean over what is there takes any size.
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
        pretrained: load the weights too; otherwise the configuration alone.
        options: override the configuration.
    """
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(model, **options)
        network = AutoModel.from_pretrained(model, config=config) if pretrained else AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise DataError(
            f"create_video_encoder({model!r})",
            expected="a hub name that can be reached, or a folder with config.json",
            got=str(error).partition("\n")[0],
            fix="download the model first and give its folder",
        ) from error
    if config.model_type not in NORMALISED_BY:
        raise InputError(
            f"create_video_encoder({model!r})",
            expected=f"a model of kind {', '.join(NORMALISED_BY)}",
            got=repr(config.model_type),
        )
    mean, std = _normalisation(model, config.model_type)
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


def _normalisation(model: str, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by the folder's preprocessor_config.json, or those of the published checkpoints."""
    file = Path(model) / "preprocessor_config.json"
    if not file.is_file():
        return NORMALISED_BY[kind]
    said = json.loads(file.read_text(encoding="utf-8"))
    mean, std = NORMALISED_BY[kind]
    return tuple(map(float, said.get("image_mean", mean))), tuple(map(float, said.get("image_std", std)))


def _check_clips(clips: Tensor, where: str) -> None:
    if clips.dim() != 5 or not clips.is_floating_point():
        raise InputError(
            where,
            expected="clips `n t c h w`, floating point in [0, 1]",
            got=f"{clips.dtype} of shape {tuple(clips.shape)}",
            fix="end the view with a crop or a resize, which give float32",
        )
