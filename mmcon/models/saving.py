"""Save and load models as folders: weights in `model.safetensors`, constructor arguments in `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcon.errors import CheckpointError
from mmcon.files import create_folder, replace_by, replace_file
from mmcon.models.image import ImageEncoder
from mmcon.models.pretrained import missing_folder

WEIGHTS, CONFIG, FORMAT = "model.safetensors", "config.json", 1
# What is downloaded of a model on the hub: weights and configuration, card, preprocessing and probe, tokenizer.
FILES = (
    WEIGHTS,
    CONFIG,
    "README.md",
    "preprocessing.json",
    "probe.json",
    "probe.safetensors",
    "tokenizer/*",
    "encoders/*",
)
#: Options that are paths relative to the folder of the model begin so.
INSIDE = "./"
# The option of `create_encoder` that names a transformers model.
_SOURCE_OPTIONS = {"text/transformer": "path", "transformers/audio": "model", "transformers/video": "model"}


def describe_encoders(encoders: nn.ModuleDict, folder: Path) -> dict[str, Any]:
    """By tower (the encoder of a modality or view): `create_encoder` arguments, None, or an earlier equal tower.

    The architecture of a transformers model is saved in the folder, so that another machine builds it without the
    original folder or a network.
    """
    seen: dict[int, str] = {}
    described: dict[str, Any] = {}
    for tower, encoder in encoders.items():
        described[tower] = seen.get(id(encoder)) or _made_from(tower, encoder, folder)
        seen.setdefault(id(encoder), tower)
    return described


def _made_from(tower: str, encoder: Any, folder: Path) -> dict[str, Any] | None:
    made_from = getattr(encoder, "made_from", None)
    config = next((c for m in encoder.modules() if hasattr(c := getattr(m, "config", None), "to_json_file")), None)
    option = _SOURCE_OPTIONS.get(made_from["name"], "name") if made_from else "name"
    if made_from is None or config is None or (option == "name" and not isinstance(encoder, ImageEncoder)):
        return made_from
    inside = f"encoders/{tower.replace(':', '-')}"
    (folder / inside).mkdir(parents=True, exist_ok=True)
    config.to_json_file(folder / inside / CONFIG, use_diff=False)
    extractor: Any = getattr(encoder, "extractor", None)
    if extractor is not None:
        extractor.save_pretrained(folder / inside)
    elif isinstance(mean := getattr(encoder, "mean", None), Tensor):
        about = {"image_mean": mean.flatten().tolist(), "image_std": encoder.std.flatten().tolist()}
        replace_file(folder / inside / "preprocessor_config.json", json.dumps(about, indent=2) + "\n")
    if option != "name":
        return {**made_from, option: INSIDE + inside}
    # The configuration has all options of the architecture.
    common = {"modality": "image", "image_size": encoder.image_size, "in_channels": encoder.in_channels}
    return {"name": INSIDE + inside, **common}


def inside_folder(value: Any, folder: Path) -> Any:
    """An option, as a path in the folder of the model if it begins with "./"."""
    return str(folder / value) if isinstance(value, str) and value.startswith(INSIDE) else value


def save_model(model: nn.Module, config: Mapping[str, Any], folder: str | Path) -> Path:
    """Write weights and configuration; each file is replaced atomically."""
    folder = Path(folder)
    create_folder(folder)
    tensors = _without_shared_storage(model.state_dict())
    replace_by(folder / WEIGHTS, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    text = json.dumps({"format": FORMAT, **config}, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / CONFIG, text)
    return folder


def _without_shared_storage(state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """Contiguous tensors; of names with a shared storage only the first is kept, since safetensors requires that."""
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.contiguous()
    return kept


def local_folder(name: str | Path, revision: str | None) -> Path:
    """The local folder of a model: the name itself if it is a folder, else a download from the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if (missing := missing_folder(name)) is not None:
        got, fix = missing
        raise CheckpointError(f"load {str(name)!r}", expected="the folder of a model", got=got, fix=fix)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises many kinds: no such name, no network, no access
        got = f"neither ({str(error).strip().partition(chr(10))[0].rstrip('.')})"
        if isinstance(error, RevisionNotFoundError):
            got = f"no revision {revision!r} of {str(name)!r}"
        elif isinstance(error, RepositoryNotFoundError):
            got = f"no model {str(name)!r} that this token may read"
        elif "outgoing traffic" in str(error) or "internet connection" in str(error):
            got = f"no network, and no {str(name)!r} in the cache"
        raise CheckpointError(
            f"from_pretrained({str(name)!r})",
            expected="a folder that save_pretrained wrote, or a hub name that can be reached",
            got=got,
            fix="check the path; without a network, give a local folder",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `config.json`."""
    where, fix = f"from_pretrained({str(folder)!r})", "copy the folder of the model again, or save the model again"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(where, expected=f"{CONFIG} and {WEIGHTS}", got=str(error), fix=fix) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        got = f"format {config.get('format')!r}" if isinstance(config, dict) else type(config).__name__
        fix = "load it with the version of mmcon that saved it, or save the model again"
        raise CheckpointError(where, expected=f"{CONFIG} of format {FORMAT}", got=got, fix=fix)
    missing = [name for name in ("encoders", "modalities", "spaces") if not isinstance(config.get(name), dict)]
    if missing:
        raise CheckpointError(where, expected=f"{CONFIG} with {missing}", got=f"only {sorted(config)}", fix=fix)
    return config


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a folder into a model; every name and shape must match.

    Raises:
        CheckpointError: the file is truncated, or names or shapes differ; the message lists the differences.
    """
    try:
        saved = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"load {str(folder)!r}", expected=f"a complete {WEIGHTS}", got=str(error)) from error
    differences = state_dict_differences(model, saved)
    if differences:
        shown = "".join(f"\n    {line}" for line in differences[:8])
        more = f"\n    and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise CheckpointError(
            f"load {str(folder)!r}",
            expected="the names and shapes of the model",
            got=f"{len(differences)} that differ:{shown}{more}",
            fix="build the model with the encoder, the channels and the widths that the weights were trained with",
        )
    model.load_state_dict(saved, strict=False)  # of names with a shared storage only the first is saved


def state_dict_differences(model: nn.Module, saved: Mapping[str, Shaped[Tensor, "..."]]) -> list[str]:
    """Differences in names and shapes between a model and saved weights, one line each."""
    own = model.state_dict()
    stored = {tensor.data_ptr() for name, tensor in own.items() if name in saved and tensor.numel()}
    # A name whose storage is saved under another name is not missing.
    missing = [name for name, t in own.items() if name not in saved and not (t.numel() and t.data_ptr() in stored)]
    differing = [name for name in own if name in saved and own[name].shape != saved[name].shape]
    return [
        *(f"{name}: model {tuple(own[name].shape)}, saved {tuple(saved[name].shape)}" for name in differing),
        *(f"{name}: model {tuple(own[name].shape)}, not saved" for name in missing),
        *(f"{name}: not in the model, saved {tuple(saved[name].shape)}" for name in saved if name not in own),
    ]
