"""Encoders of other libraries as loaded models, with the preprocessing that their library declares.

    load_encoder("timm/vit_small_patch16_224")             # timm, by name or folder
    load_encoder("resnet50")                               # torchvision
    load_encoder("facebook/dinov2-small")                  # transformers, by hub name or folder; any modality
    load_encoder("sentence-transformers/all-MiniLM-L6-v2") # with its own pooling and length

They have features and no spaces. Images are cropped and resized in one step, where these libraries take two; features
differ by that rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import ConfigError, InputError
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.preprocessing import Preprocessing, Spec, read_preprocessing
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder
from mmcon.models.image_torchvision import torchvision_names
from mmcon.models.pretrained import missing_folder, model_load_errors
from mmcon.models.saving import INSIDE, load_weights
from mmcon.models.video import TORCHVISION

# Files of a model on the hub that are read; weights that are pickles are not.
_FILES = ["*.json", "*/config.json", "*.safetensors", "*.txt", "*.model"]
# Window of audio by the kind of the model, as in its training; otherwise ten seconds.
_WINDOW_SECONDS = {"whisper": 30.0, "audio-spectrogram-transformer": 10.24}
_LONGEST_TEXT = 512
# Pillow's numbers of filters, in the configuration of image processors.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_weightedmean_tokens": "weighted",
    "pooling_mode_lasttoken": "last",
}


def is_foreign(name: str) -> bool:
    """Whether a name is that of timm or torchvision, or a folder of timm, transformers or sentence-transformers."""
    if name.startswith(("timm/", "hf-hub:timm/")):
        return True
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name in torchvision_names()
    config = _read_json(folder / "config.json")
    known = "architecture" in config or "model_type" in config or config.get("library") == "torchvision"
    return known or (folder / "modules.json").is_file()


def load_encoder(
    name: str | Path,
    *,
    modality: str | None = None,
    pretrained: bool = True,
    revision: str | None = None,
    window_seconds: float | None = None,
    device: torch.device | str | None = None,
) -> LoadedModel:
    """An encoder of timm, torchvision, transformers or sentence-transformers, by name or folder.

    >>> load_encoder("resnet18", pretrained=False).modalities
    ('image',)

    Args:
        name: see the module.
        modality: of a transformers model; by default found from its configuration.
        pretrained: load the published weights; otherwise they are random.
        revision: the revision of a hub name.
        window_seconds: the window, from the center of a recording, of an audio model; by default that of its training.
        device: the device of the weights; by default the CPU.

    Raises:
        DataError: the weights cannot be read, such as a hub name without a network.
        UnknownNameError: timm or torchvision has no such model.
        InputError: the kind of the model is not known.
    """
    path = Path(name).expanduser()
    target = str(path) if path.is_dir() else str(name)
    if target.startswith(("timm/", "hf-hub:timm/")):
        encoder = create_encoder(target, pretrained=pretrained)
        made = encoder, "image", Preprocessing((_timm_view(encoder),), {"channels": 3})
    elif target in torchvision_names():
        encoder = create_encoder(target, pretrained=pretrained)
        made = encoder, "image", Preprocessing((_torchvision_view(target),), {"channels": 3})
    else:
        made = _of_folder(_folder(target, revision), modality, pretrained, window_seconds)
    encoder, found, preprocessing = made
    model = ContrastiveModel({found: encoder}, {})
    loaded = LoadedModel(model, {found: preprocessing}, name=target)
    return loaded if device is None else loaded.to(device)


def _timm_view(encoder: Any) -> Spec:
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(encoder.network)
    squash = config.get("crop_mode") == "squash"
    return _image_view(config["input_size"][-2:], config["crop_pct"], config["interpolation"], stretch=squash)


def _torchvision_view(name: str) -> Spec:
    from torchvision import models

    preset: Any = models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    (crop,), (whole,) = preset.crop_size[:1], preset.resize_size[:1]
    return _image_view((crop, crop), min(1.0, crop / whole), preset.interpolation.value)


def _image_view(size: Any, keep: float, interpolation: str, *, stretch: bool = False) -> Spec:
    options: dict[str, Any] = {"size": [int(side) for side in size], "keep": float(keep), "stretch": stretch}
    options["interpolation"] = interpolation if interpolation in ("nearest", "bilinear", "bicubic") else "bicubic"
    return {"view": "image/resize", "options": options}


def _folder(name: str, revision: str | None) -> Path:
    """The folder of a transformers model, downloaded if it is a hub name."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()  # a relative one of one word would be the name of a registered encoder
    if (missing := missing_folder(name)) is not None:
        got, fix = missing
        raise InputError(f"load_encoder({name!r})", expected="the folder of a model", got=got, fix=fix)
    from huggingface_hub import snapshot_download

    with model_load_errors(
        f"load_encoder({name!r})",
        expected="a name of timm or torchvision, a local folder, or a hub name that can be reached",
        fix="check the name; without a network, give a local folder",
    ):
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))


def _of_folder(
    folder: Path, modality: str | None, pretrained: bool, window_seconds: float | None
) -> tuple[Any, str, Preprocessing]:
    """The encoder of a folder of any library; an export of mmcon has its preprocessing with it."""
    config = _read_json(folder / "config.json")
    if "architecture" in config:
        channels = int((config.get("pretrained_cfg", config).get("input_size") or [3])[0])
        timm_encoder: Any = create_encoder(str(folder), pretrained=pretrained, in_channels=channels)
        usual = Preprocessing((_timm_view(timm_encoder),), {"channels": channels})
        encoder, kind = timm_encoder, "image"
    elif config.get("library") == "torchvision":
        encoder, kind, usual = _exported_torchvision(folder, config, pretrained)
    elif (folder / "modules.json").is_file():
        encoder, kind, usual = _sentence_transformers(folder, pretrained)
    else:
        encoder, kind, usual = _transformers(folder, modality, pretrained, window_seconds)
    saved = read_preprocessing(folder)
    return encoder, kind, usual if saved is None else saved[0].get(kind, usual)


def _exported_torchvision(folder: Path, config: Mapping[str, Any], pretrained: bool) -> tuple[Any, str, Preprocessing]:
    """A model of torchvision that `mmcon export` wrote."""
    with model_load_errors(f"load {str(folder)!r}", expected="a complete export to torchvision", fix="export it again"):
        name, modality = config["name"], "video" if config["name"] in TORCHVISION else "image"
        encoder: Any = create_encoder(name, modality=modality, **config["options"])
        for statistics, key in ((encoder.mean, "image_mean"), (encoder.std, "image_std")):
            statistics.copy_(torch.tensor(config[key]).view_as(statistics))
    if pretrained:
        load_weights(encoder.network, folder)
    usual = {"view": "video/plain", "options": {}} if modality == "video" else _torchvision_view(name)
    return encoder, modality, Preprocessing((usual,))


def _transformers(
    folder: Path, modality: str | None, pretrained: bool, window_seconds: float | None
) -> tuple[Any, str, Preprocessing]:
    config, processor = _read_json(folder / "config.json"), _read_json(folder / "preprocessor_config.json")
    kind = modality or _modality(folder, config, processor)
    options: dict[str, Any] = {"rate_hz": int(processor.get("sampling_rate", 16_000))} if kind == "audio" else {}
    encoder: Any = create_encoder(str(folder), modality=kind, pretrained=pretrained, **options)
    if kind == "image":
        return encoder, kind, Preprocessing((_processor_view(encoder, processor),), {"channels": encoder.in_channels})
    if kind == "audio":
        window = window_seconds or _WINDOW_SECONDS.get(config.get("model_type", ""), 10.0)
        view = {"rate_hz": encoder.rate_hz, "window_seconds": window, "position": "center"}
        media = {"rate_hz": encoder.rate_hz, "channels": 1}
        return encoder, kind, Preprocessing(({"view": "audio/crop", "options": view},), media)
    if kind == "video":
        view = {"size": encoder.size, "frames": encoder.frames}
        return encoder, kind, Preprocessing(({"view": "video/plain", "options": view},))
    return encoder, kind, _text_preprocessing(folder, encoder, _LONGEST_TEXT)


def _sentence_transformers(folder: Path, pretrained: bool) -> tuple[Any, str, Preprocessing]:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    paths = {module["type"].rpartition(".")[2]: folder / module["path"] for module in modules}
    unknown = sorted(set(paths) - {"Transformer", "Pooling", "Normalize"})
    if unknown or "Transformer" not in paths:
        expected = "the modules Transformer, Pooling and Normalize"
        raise InputError(f"load_encoder({str(folder)!r})", expected=expected, got=str(sorted(paths)))
    flags = _read_json(paths["Pooling"] / "config.json") if "Pooling" in paths else {}
    pooling = [name for flag, name in _POOLING.items() if flags.get(flag)] or [flags.get("pooling_mode", "mean")]
    if len(pooling) > 1:
        raise InputError(f"load_encoder({str(folder)!r})", expected="one kind of pooling", got=str(pooling))
    inner = paths["Transformer"]
    encoder = create_encoder(
        "text/transformer", modality="text", path=str(inner), pretrained=pretrained, pooling=pooling[0]
    )
    longest = _read_json(inner / "sentence_bert_config.json").get("max_seq_length") or _LONGEST_TEXT
    return encoder, "text", _text_preprocessing(inner, encoder, longest)


def _text_preprocessing(folder: Path, encoder: Any, longest: int) -> Preprocessing:
    """Tokens, as many as the tokenizer and the positions of the model allow."""
    declared = _read_json(folder / "tokenizer_config.json").get("model_max_length") or math.inf
    most = int(min(longest, encoder.max_tokens, declared))
    # Relative to the folder, so that the fingerprint does not depend on where the folder is.
    view = {"view": "text/tokens", "options": {"tokenizer": INSIDE, "max_tokens": most}}
    return Preprocessing((view,), {"columns": ["text"]}, folder=folder)


def _modality(folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
    """The modality of a transformers model, from its configuration and its preprocessor."""
    if "sampling_rate" in processor:
        return "audio"
    if "num_frames" in config:
        return "video"
    if "num_channels" in config or "vision_config" in config or "image_mean" in processor:
        return "image"
    if "vocab_size" in config:
        return "text"
    raise ConfigError(
        f"load_encoder({str(folder)!r})",
        expected="a transformers model of images, audio, video or text",
        got=f"model_type {config.get('model_type')!r}",
        fix="name its modality with modality=",
    )


def _processor_view(encoder: Any, processor: Mapping[str, Any]) -> Spec:
    """The size, the crop and the filter of an image processor; without one, those of the encoder and a center crop."""
    filter_name = _FILTERS.get(int(processor.get("resample", 3)), "bicubic")
    crop = processor.get("crop_size") if processor.get("do_center_crop", "crop_size" in processor) else None
    size = processor.get("size") or {}
    if not processor:
        return _image_view((encoder.image_size or 224,) * 2, 224 / 256, filter_name)
    if crop is None:
        if isinstance(size, int) or "height" in size:  # the whole image, whatever its aspect
            return _image_view(_sides(size), 1.0, filter_name, stretch=True)
        return _image_view(_sides(size), 1.0, filter_name)
    whole = _sides(size)[0] if size else _sides(crop)[0]
    return _image_view(_sides(crop), min(1.0, _sides(crop)[0] / whole), filter_name)


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    side = size.get("shortest_edge")
    return (side, side) if side else (size["height"], size["width"])


def _read_json(file: Path) -> dict[str, Any]:
    """The content of a file; empty if there is none, or if it is no mapping."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
