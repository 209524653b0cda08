"""`mmcon.load`: open a run folder, a saved model, a name on the hub, or an encoder of another library."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcon.errors import CheckpointError
from mmcon.evaluation.calibrated_probe import load_probes
from mmcon.inference.loaded_model import TEMPERATURE, LoadedModel, checked_device
from mmcon.inference.preprocessing import Preprocessing, parse_preprocessing, read_preprocessing
from mmcon.inference.programs import PROGRAMS, open_program
from mmcon.models import saving
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.shared_spaces import SharedSpace


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    trusted: bool = False,
) -> LoadedModel:
    """Open a trained model for use, in evaluation mode. Loading runs no code of the folder and unpickles nothing.

    >>> model = mmcon.load("runs/imagenet_supcon")  # doctest: +SKIP

    Args:
        name: a run folder (its model/ is taken), a folder that `mmcon.inference.save_model` wrote, or the name of such
            a model on the hub; or what `mmcon.inference.load_encoder` takes, such as "timm/resnet50", with published
            weights; or a program that `mmcon export` wrote, its folder or its file, which has rows but no gradients.
        revision: the revision of a hub name.
        device: the device of the weights; by default the CPU.
        trusted: open a program of torch.export (.pt2) too, whose loader in torch may run code of the file.

    Raises:
        CheckpointError: there is no such model, a file is damaged or of another format, or the model was saved without
            its preprocessing.
        InputError: there is no such device.
    """
    from mmcon.inference.foreign import is_foreign, load_encoder
    from mmcon.inference.sharing import exported_format

    device = None if device is None else checked_device(device)
    path = Path(name).expanduser()
    if path.suffix in PROGRAMS.values() and path.is_file():
        return _load_program(path, str(name), device, trusted)
    local = model_folder(name)
    if local is None and is_foreign(str(name)):
        return load_encoder(str(name), pretrained=True, device=device)
    folder = local or saving.local_folder(name, revision)
    if not _is_own(folder) and is_foreign(str(folder)):
        # Of a hub name, the encoder needs more files than a model of mmcon has.
        return load_encoder(local or str(name), pretrained=True, revision=revision, device=device)
    if not _is_own(folder) and (format := exported_format(folder)) is not None:
        found = sorted(folder.glob(f"*{PROGRAMS[format]}")) if format in PROGRAMS else []
        if len(found) == 1:
            return _load_program(found[0], str(name), device, trusted)
        expected = f"one program *{PROGRAMS[format]}" if format in PROGRAMS else "weights with their configuration"
        got, fix = f"{len(found)} in an export to {format}", "load the model that it was made of, or export it again"
        raise CheckpointError(f"load {str(folder)!r}", expected=expected, got=got, fix=fix)
    model = ContrastiveModel.from_pretrained(folder)
    preprocessing, temperature = read_preprocessing(folder) or (_usual_preprocessing(folder, model), None)
    missing = sorted(set(model.towers) - set(preprocessing))
    if missing:
        got = f"none of {missing} in preprocessing.json"
        raise CheckpointError(f"load {str(folder)!r}", expected=f"views of {sorted(model.towers)}", got=got)
    loaded = LoadedModel(
        model, preprocessing, name=str(name), probes=load_probes(folder), temperature=temperature or TEMPERATURE
    )
    return loaded if device is None else loaded.to(device)


def _load_program(file: Path, name: str, device: torch.device | None, trusted: bool) -> LoadedModel:
    """A program as a model of one modality, with the space of its rows if they are embeddings."""
    if file.suffix == PROGRAMS["torch-export"] and not trusted:
        expected = "trusted=True, since torch may run code of such a file when it opens it"
        fix = "mmcon.load(name, trusted=True) for a file of someone you trust, or --format onnx, which holds no code"
        raise CheckpointError(f"load {name!r}", expected=expected, got="a program of torch.export", fix=fix)
    encoder, about = open_program(file)
    modality, space = about["modality"], about["space"]
    spaces = {} if space is None else {space: SharedSpace(dim=encoder.feature_dim, head="linear")}
    model = ContrastiveModel({modality: encoder}, spaces)
    for heads in model.heads.values():  # the program has the head
        heads[modality].layers = nn.Identity()  # type: ignore[index,union-attr]
    preprocessing, temperature = parse_preprocessing(lambda: about["preprocessing"], file.parent)
    loaded = LoadedModel(model, preprocessing, name=name, temperature=temperature or TEMPERATURE)
    return loaded if device is None else loaded.to(device)


def model_folder(name: str | Path) -> Path | None:
    """The local folder of a model: a folder, or model/ in a run folder; None if there is no such folder.

    Raises:
        CheckpointError: the folder is a run that has not saved its model yet.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    if (folder / saving.CONFIG).is_file():
        return folder
    if (folder / "model" / saving.CONFIG).is_file():
        return folder / "model"
    if (folder / "config.yaml").is_file():
        fix = "let the run come to its end, with --resume if it was stopped"
        got = "a run without model/"
        raise CheckpointError(f"load {str(name)!r}", expected="a run that has saved its model", got=got, fix=fix)
    return folder


def _is_own(folder: Path) -> bool:
    """Whether a folder has the configuration of a ContrastiveModel."""
    try:
        config = json.loads((folder / saving.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "encoders" in config


def _usual_preprocessing(folder: Path, model: ContrastiveModel) -> dict[str, Preprocessing]:
    """For a model of images that was saved without preprocessing: the size that its encoder was built for."""
    towers = [tower for of_modality in model.towers.values() for tower in of_modality]
    if list(model.towers) != ["image"] or len(towers) > 1:
        raise CheckpointError(
            f"load {str(folder)!r}",
            expected="a model that was saved with its preprocessing",
            got=f"one of {sorted(model.towers)} without preprocessing.json",
            fix="ContrastiveModel.from_pretrained(folder), then mmcon.inference.save_model(model, folder, views=..., "
            "source=...)",
        )
    encoder: Any = model.encoders[towers[0]]
    made_from = getattr(encoder, "made_from", None) or {}
    size = int(made_from.get("image_size") or getattr(encoder, "image_size", None) or 224)
    channels = int(made_from.get("in_channels", 3))
    warnings.warn(
        f"{folder} has no preprocessing.json: images are resized to {size} × {size} pixels of {channels} channels, "
        "as by image/plain; save the model again with mmcon.inference.save_model",
        stacklevel=3,
    )
    view = {"view": "image/plain", "options": {"size": size}}
    return {"image": Preprocessing((view,), {"channels": channels})}
