"""Image encoders of transformers, by hub name or local folder: a vision model, or the vision model of CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.models.image import ImageEncoder
from mmcon.models.image_input import IMAGENET_MEAN, IMAGENET_STD, channel_statistics, image_load_errors
from mmcon.models.random_weights import prepare_random_weights


def is_model_folder(name: str) -> bool:
    """Whether the name is a folder with a model's configuration."""
    return (Path(name) / "config.json").is_file()


def transformers_encoder(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    small_images: bool | None = None,
    in_channels: int = 3,
    revision: str | None = None,
    **options: Any,
) -> ImageEncoder:
    """A vision model of transformers, or the vision model of an image-text model.

    The feature is the model's own pooled output. For ViT it is the class token, since ViT's pooler (a tanh layer) is
    trained only with a classifier. Without a pooler it is the mean over positions.
    """
    if small_images:
        raise InputError(
            f"create_encoder({name!r})", expected="small_images=False", got="True", fix="use timm or torchvision for it"
        )
    if pretrained:
        model, config = _load_weights(name, revision, options)
    else:
        size = {"image_size": image_size} if image_size else {}
        model, config = _random_weights(name, revision, {**options, **size}, in_channels)
        prepare_random_weights(model, options)
    network = _PooledVision(getattr(model, "vision_model", model), config)
    mean, std, preferred_size = _preprocessing(name, revision)
    fixed = hasattr(config, "patch_size") and isinstance(getattr(config, "image_size", None), int)
    return ImageEncoder(
        network,
        feature_dim=network.width,
        mean=channel_statistics(mean, config.num_channels),
        std=channel_statistics(std, config.num_channels),
        image_size=config.image_size if fixed else image_size or preferred_size or getattr(config, "image_size", None),
        fixed_size=fixed,
    )


def _load_config(name: str, revision: str | None) -> tuple[Any, Any]:
    """The configuration of a model, and that of its vision model (equal for a pure vision model)."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    vision = getattr(config, "vision_config", config)
    if not hasattr(vision, "num_channels"):
        raise InputError(
            f"create_encoder({name!r})", expected="a vision model", got=f"{config.model_type!r}, without channels"
        )
    return config, vision


def _load_weights(name: str, revision: str | None, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A model with published weights, and its vision configuration."""
    from transformers import AutoModel

    with image_load_errors(name):
        _, vision = _load_config(name, revision)
        return AutoModel.from_pretrained(name, revision=revision, trust_remote_code=False, **options), vision


def _random_weights(
    name: str, revision: str | None, options: dict[str, Any], in_channels: int
) -> tuple[nn.Module, Any]:
    """A model with its published configuration, `options` and random weights, and its vision configuration."""
    from transformers import AutoModel

    with image_load_errors(name):
        config, vision = _load_config(name, revision)
        if in_channels != vision.num_channels:
            options = {**options, "num_channels": in_channels}
        for option, value in options.items():
            setattr(vision, option, value)
        return AutoModel.from_config(config, trust_remote_code=False), vision


class _PooledVision(nn.Module):
    """A vision model of transformers, pooled to one vector per image."""

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        self.model = model
        pooler = getattr(model, "pooler", None)
        self.uses_class_token = isinstance(getattr(pooler, "dense", None), nn.Linear)
        if self.uses_class_token:
            model.pooler = None  # DistributedDataParallel waits for the gradient of unused parameters
        sizes = getattr(config, "hidden_sizes", None)
        width = sizes[-1] if sizes else getattr(config, "hidden_size", None)
        if not isinstance(width, int):
            expected = "a model whose configuration states the width of its features, hidden_size or hidden_sizes"
            fix = "take it from timm, timm/NAME, or register an encoder with register_encoder"
            raise InputError(type(model).__name__, expected=expected, got=type(config).__name__, fix=fix)
        self.width = width
        self.patch_size = getattr(config, "patch_size", None)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        output = self.model(pixel_values=images)
        pooled = None if self.uses_class_token else getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        # Convolutional models return a map `n d h w`, transformers a sequence `n positions d`.
        hidden = output.last_hidden_state
        if hidden.dim() == 4:
            return reduce(hidden, "n d h w -> n d", "mean")
        return hidden[:, 0] if self.uses_class_token else reduce(hidden, "n positions d -> n d", "mean")

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _d _h _w"]]:
        """The hidden states as maps, of a sequence without the tokens before its patches (class, registers)."""
        output = self.model(pixel_values=images, output_hidden_states=True)
        states = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
        return [state if state.dim() == 4 else self._as_map(state, images) for state in states]

    def _as_map(
        self, tokens: Float[Tensor, "n positions d"], images: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n d _h _w"]:
        patch = self.patch_size if isinstance(self.patch_size, int) else (self.patch_size or (1,))[0]
        h, w = images.shape[-2] // patch, images.shape[-1] // patch
        return rearrange(tokens[:, tokens.shape[1] - h * w :], "n (h w) d -> n d h w", h=h, w=w)


def _preprocessing(name: str, revision: str | None) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """Mean, standard deviation and image size of the image processor that was saved with the model."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
    except OSError:  # a model may be saved without an image processor
        return IMAGENET_MEAN, IMAGENET_STD, None
    size = config.get("crop_size") or config.get("size") or {}
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    if not config.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), side
    return tuple(config.get("image_mean", IMAGENET_MEAN)), tuple(config.get("image_std", IMAGENET_STD)), side
