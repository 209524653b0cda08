"""Weights of an encoder under the key names of torchvision, timm, transformers and sentence-transformers.

Each function writes a folder, loads it back by its library with all names and shapes equal, and compares the features.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.inference.preprocessing import Preprocessing
from mmcon.models.audio import TransformersAudio
from mmcon.models.export import export_sentence_transformers
from mmcon.models.image import ImageEncoder
from mmcon.models.image_torchvision import torchvision_names
from mmcon.models.pretrained import model_load_errors
from mmcon.models.saving import CONFIG, WEIGHTS, inside_folder, state_dict_differences
from mmcon.models.text import TextTransformer
from mmcon.models.video import TORCHVISION, VideoEncoder

# Pillow's numbers of filters, which image processors of transformers use.
_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class Part:
    """What is exported: the encoder of one modality.

    Attributes:
        modality: the modality.
        encoder: in evaluation mode.
        preprocessing: how files become views.
        views: the views of a few inputs, as the encoder takes them.
        head: the projection head of a space; None: features.
        normalize: whether the rows of a program have length one.
        file: the name of a program.
        about: the JSON that is written into a program.
    """

    modality: str
    encoder: nn.Module
    preprocessing: Preprocessing
    views: Any
    head: nn.Module | None = None
    normalize: bool = True
    file: str = "model"
    about: str = ""


def fitting_formats(encoder: nn.Module) -> tuple[str, ...]:
    """The libraries that have the architecture of an encoder, as it is."""
    if isinstance(encoder, TextTransformer):
        return "transformers", "sentence-transformers"
    if isinstance(encoder, TransformersAudio):
        return ("transformers",)
    if not isinstance(encoder, ImageEncoder | VideoEncoder):
        return ()
    network, name = encoder.network, _name_of(encoder)
    if _transformers_owner(encoder) is not None:
        return ("transformers",)
    # First layers for small images and other numbers of channels are changes that torchvision has no option for.
    small = getattr(encoder, "small_images", False)
    library = type(network).__module__.partition(".")[0]
    if library == "torchvision" and name in (*torchvision_names(), *TORCHVISION):
        return () if small or encoder.mean.numel() != 3 else ("torchvision",)
    return ("timm",) if library == "timm" and not small and hasattr(network, "pretrained_cfg") else ()


def write_torchvision(part: Part, folder: Path) -> tuple[str, float]:
    """Weights of a torchvision model without its classifier, and config.json with its name and options."""
    from torchvision import models

    encoder: Any = part.encoder
    name, options = _name_of(encoder), _library_options(encoder)
    save_file({key: t.contiguous() for key, t in encoder.network.state_dict().items()}, folder / WEIGHTS)
    network = models.get_model(name, weights=None, **options)
    # The classifier is what the encoder lacks.
    head = {key.rpartition(".")[0] for key in network.state_dict().keys() - encoder.network.state_dict().keys()}
    if len(head) != 1:
        raise InputError(
            "export to torchvision", expected="a model without its classifier alone", got=str(sorted(head))
        )
    (removed,) = head
    network.set_submodule(removed, nn.Identity())
    _load_strictly(network, folder)
    about = {"library": "torchvision", "name": name, "options": options, "removed": removed, **_statistics(encoder)}
    _write_json(folder / CONFIG, about | {"image_size": encoder.image_size} if part.modality == "image" else about)
    given = "".join(f", {option}={value!r}" for option, value in options.items())
    use = (
        "from safetensors.torch import load_file\nfrom torch import nn\nfrom torchvision.models import get_model\n\n"
        f'model = get_model("{name}"{given})\nmodel.set_submodule("{removed}", nn.Identity())  # no classifier\n'
        'model.load_state_dict(load_file("model.safetensors"))'
    )
    return use, _difference_with(part, encoder, "network", network)


def write_timm(part: Part, folder: Path) -> tuple[str, float]:
    """A folder that timm saves: weights, architecture, and the data configuration of the views."""
    import timm
    from timm.models import save_for_hf

    encoder: Any = part.encoder
    view, size = _geometry(part), tuple(part.views.shape[1:])
    data: dict[str, Any] = {"input_size": size, "crop_pct": view["keep"], "interpolation": view["interpolation"]}
    data |= {"mean": _numbers(encoder.mean), "std": _numbers(encoder.std)}
    data["crop_mode"] = "squash" if view["stretch"] else "center"
    options = {} if encoder.in_channels == 3 else {"in_chans": encoder.in_channels}
    with model_load_errors("export to timm", expected="a model whose options timm can save", fix="--format onnx"):
        save_for_hf(
            # Channels last, as an encoder has its weights, is no format of safetensors.
            copy.deepcopy(encoder.network).to(memory_format=torch.contiguous_format),
            str(folder),
            model_config={"pretrained_cfg": data},
            model_args={**options, **_library_options(encoder)},
            safe_serialization=True,
        )
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    _load_strictly(network, folder)
    use = 'import timm\n\nmodel = timm.create_model("local-dir:.", pretrained=True)  # of the hub: "hf-hub:owner/name"'
    return use, _difference_with(part, encoder, "network", network)


def write_transformers(part: Part, folder: Path) -> tuple[str, float]:
    """A folder that transformers saves: weights, configuration, and the processor or the tokenizer."""
    from transformers import AutoModel

    owner, attribute = _transformers_owner(part.encoder) or (part.encoder, "")
    network: Any = getattr(owner, attribute)
    # Without its weights, a pooler would be made anew with random ones.
    options = {"add_pooling_layer": False} if "pooler" in network._modules and network.pooler is None else {}
    network.save_pretrained(folder)
    processor = _save_processor(part, folder)
    # AutoModel makes a whole Whisper, whose encoder is a class of its own.
    whisper = isinstance(part.encoder, TransformersAudio) and part.encoder.kind == "whisper"
    loader = type(network) if whisper else AutoModel
    with model_load_errors("export to transformers", expected="a model that transformers loads", fix="--format onnx"):
        loaded, info = loader.from_pretrained(folder, output_loading_info=True, trust_remote_code=False, **options)
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong or type(loaded) is not type(network):
        got = str(wrong) if wrong else f"{type(loaded).__name__} in place of {type(network).__name__}"
        raise InputError("export to transformers", expected="a model that transformers loads completely", got=got)
    given = "".join(f", {option}={value}" for option, value in options.items())
    names = f"{processor}\nfrom {loader.__module__} import {loader.__name__}" if whisper else f"AutoModel, {processor}"
    use = f'from transformers import {names}\n\nmodel = {loader.__name__}.from_pretrained("."{given})'
    return f'{use}\nprocessor = {processor}.from_pretrained(".")', _difference_with(part, owner, attribute, loaded)


def write_sentence_transformers(part: Part, folder: Path) -> tuple[str, float | None]:
    """A folder that sentence-transformers loads: model, tokenizer, pooling, and rows of length one."""
    encoder: Any = part.encoder
    tokenizer, view = _tokenizer(part)
    export_sentence_transformers(encoder, tokenizer, folder, max_tokens=view["max_tokens"])
    use = "from sentence_transformers import SentenceTransformer\n\n"
    use += 'model = SentenceTransformer(".")\nembeddings = model.encode(["a text", "another"])'
    if importlib.util.find_spec("sentence_transformers") is None:
        return use, None
    from sentence_transformers import SentenceTransformer

    loaded: Any = SentenceTransformer(str(folder), device=str(part.views["input_ids"].device))
    with torch.no_grad():
        expected = nn.functional.normalize(encoder(part.views), dim=1)
        found = loaded(dict(part.views))["sentence_embedding"]
    return use, relative_difference(found, expected)


def relative_difference(found: Float[Tensor, "n d"], expected: Float[Tensor, "n d"]) -> float:
    """The largest difference, relative to the largest value; infinite if a value is not finite."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def input_text(part: Part) -> str:
    """What the encoder takes, in a sentence."""
    if not isinstance(part.views, Tensor):
        shapes = {name: " × ".join(["n", *map(str, x.shape[1:])]) for name, x in part.views.items()}
        kinds = {name: str(x.dtype).removeprefix("torch.") for name, x in part.views.items()}
        return "The encoder takes " + ", ".join(f"`{name}` {shapes[name]} {kinds[name]}" for name in shapes) + "."
    axes = {"image": "n c h w", "video": "n t c h w"}.get(part.modality, "n …")
    shape = " × ".join(map(str, part.views.shape[1:]))
    text = f"The views are `{axes}`, {shape} each"
    if not isinstance(part.encoder, ImageEncoder | VideoEncoder):
        return f"{text}."
    mean, std = (", ".join(f"{value:.4g}" for value in _numbers(x)) for x in (part.encoder.mean, part.encoder.std))
    return (
        f"{text}, floats in [0, 1]. Weights of a library take them normalized by the mean {mean} and the standard "
        f"deviation {std}; programs normalize them themselves."
    )


def _difference_with(part: Part, owner: Any, attribute: str, loaded: nn.Module) -> float:
    """The difference of the features, if a loaded network takes the place of that of the encoder."""
    own = getattr(owner, attribute)
    with torch.no_grad():
        expected = part.encoder(part.views)
        try:
            setattr(owner, attribute, loaded.to(expected.device).eval())
            return relative_difference(part.encoder(part.views), expected)
        finally:
            setattr(owner, attribute, own)


def _load_strictly(network: nn.Module, folder: Path) -> None:
    """Load the weights of a folder into a network of the library; all names and shapes must be equal."""
    saved = load_file(folder / WEIGHTS)
    if differences := state_dict_differences(network, saved):
        shown = "".join(f"\n    {line}" for line in differences[:8])
        fix = "--format onnx; of an encoder with adapters, merge_lora(encoder) before it is saved"
        raise InputError("export", expected="the names and shapes of the library", got=f"others:{shown}", fix=fix)
    network.load_state_dict(saved, strict=False)  # of names with a shared storage only the first is saved


def _transformers_owner(encoder: nn.Module) -> tuple[nn.Module, str] | None:
    """The module that holds a model of transformers, and its attribute; None for encoders of other libraries."""
    inner = encoder.network if isinstance(encoder, ImageEncoder) else encoder
    for owner, attribute in ((inner, "model"), (inner, "network")):
        if hasattr(getattr(owner, attribute, None), "save_pretrained"):
            return owner, attribute
    return None


def _save_processor(part: Part, folder: Path) -> str:
    """Write what makes inputs of files, as its library does; the class that loads it."""
    encoder: Any = part.encoder
    if isinstance(encoder, TextTransformer):
        _tokenizer(part)[0].save_pretrained(folder)
        return "AutoTokenizer"
    if isinstance(encoder, TransformersAudio):
        encoder.extractor.save_pretrained(folder)
        return "AutoFeatureExtractor"
    height, width = part.views.shape[-2:]
    about: dict[str, Any] = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **_statistics(encoder),
    }
    view = _geometry(part)
    about |= {"do_resize": True, "resample": _FILTERS.get(view["interpolation"], 3)}
    if view["stretch"] or height != width:
        about |= {"size": {"height": height, "width": width}, "do_center_crop": False}
    else:
        about |= {"size": {"shortest_edge": round(height / view["keep"])}, "do_center_crop": True}
        about["crop_size"] = {"height": height, "width": width}
    kind = "VideoMAEImageProcessor" if part.modality == "video" else "CLIPImageProcessor"
    _write_json(folder / "preprocessor_config.json", {"image_processor_type": kind, **about})
    return "AutoImageProcessor"


def _geometry(part: Part) -> dict[str, Any]:
    """The crop and the filter of the view, where it has one of the usual kind."""
    view = part.preprocessing.generators()[0]
    usual = {"keep": 1.0, "stretch": False, "interpolation": "bilinear"}
    return {name: getattr(view, name, value) for name, value in usual.items()}


def _tokenizer(part: Part) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of the views, and the options of its view."""
    from transformers import AutoTokenizer

    found = [view for spec in part.preprocessing.views for view in spec.get("chain", [spec])]
    options = next((view["options"] for view in found if view.get("options", {}).get("tokenizer")), {})
    name = options.get("tokenizer", "words")
    if name == "words":
        raise InputError("export", expected="views with a tokenizer of transformers", got="split words")
    with model_load_errors("export", expected="the tokenizer of the model", fix="save the model again"):
        tokenizer = AutoTokenizer.from_pretrained(
            inside_folder(name, part.preprocessing.folder), trust_remote_code=False
        )
    return tokenizer, {"max_tokens": part.views["input_ids"].shape[1], **options}


def _name_of(encoder: Any) -> str:
    """The name that the encoder was built by."""
    return (getattr(encoder, "made_from", None) or {}).get("name", getattr(encoder, "name", ""))


def _library_options(encoder: Any) -> dict[str, Any]:
    """The options of the library that the encoder was built with."""
    common = ("name", "modality", "pretrained", "image_size", "small_images", "in_channels")
    made_from = getattr(encoder, "made_from", None) or {}
    options = {name: value for name, value in made_from.items() if name not in common}
    if getattr(encoder, "fixed_size", False) and made_from.get("image_size"):
        size = "image_size" if _name_of(encoder) in torchvision_names() else "img_size"
        options = {size: made_from["image_size"], **options}
    return options


def _statistics(encoder: Any) -> dict[str, list[float]]:
    return {"image_mean": _numbers(encoder.mean), "image_std": _numbers(encoder.std)}


def _numbers(statistics: Shaped[Tensor, "..."]) -> list[float]:
    return [round(value, 8) for value in statistics.flatten().tolist()]


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
