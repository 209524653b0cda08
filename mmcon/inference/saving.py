"""Save a trained model with its preprocessing, so that `mmcon.load` encodes files as the evaluation of its run did."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcon.errors import ConfigError, DataError
from mmcon.evaluation.calibrated_probe import ABOUT, WEIGHTS
from mmcon.inference.preprocessing import Preprocessing, Spec, view_spec, write_preprocessing
from mmcon.media import AudioHandle, Instances, TextHandle
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.pretrained import model_load_errors
from mmcon.models.saving import INSIDE, inside_folder
from mmcon.sources.base import Source
from mmcon.views import ViewGenerator

if TYPE_CHECKING:
    from mmcon.inference.loaded_model import LoadedModel
    from mmcon.objective.objective import Objective  # imports torch.compile, which takes half as long as torch

_log = logging.getLogger(__name__)


def save_model(
    model: ContrastiveModel,
    folder: str | Path,
    *,
    views: Mapping[str, Sequence[ViewGenerator]],
    source: Source,
    objective: Objective | None = None,
) -> Path:
    """Write the weights, the configuration and the preprocessing of a model into a folder, which `mmcon.load` opens.

    >>> save_model(model, run.folder / "model", views={"image": [create_view("image/plain", size=224)]}, source=train)

    Args:
        model: the trained model.
        folder: the output folder.
        views: by modality, the evaluation views of a sample, built by `mmcon.create_view`. They draw nothing at random
            that matters: the features of several views are averaged or, with an encoder for each view, concatenated.
        source: the training data, from which come the channels of images, the sample rate of audio, and the names of
            the columns of texts.
        objective: of the training, whose temperature zero-shot classification by texts uses.

    Returns:
        The folder.

    Raises:
        ConfigError: a modality of the model has no view, or a view was not built by name.
    """
    folder = Path(folder)
    missing = sorted(set(model.towers) - set(views))
    if missing:
        raise ConfigError("save_model", expected=f"views of {sorted(model.towers)}", got=f"none of {missing}")
    _save_weights(model, folder)
    preprocessing = {}
    for modality, towers in model.towers.items():
        specs = tuple(_with_tokenizer(view_spec(view), folder) for view in views[modality])
        media = media_options(source.members[modality])
        preprocessing[modality] = Preprocessing(specs, media, "concatenate" if len(towers) > 1 else "mean")
    write_preprocessing(folder, preprocessing, temperature=_temperature(objective))
    return folder


def save_loaded(loaded: LoadedModel, folder: Path) -> None:
    """Write a loaded model as `save_model` did, with its probes."""
    _save_weights(loaded.model, folder)
    write_preprocessing(folder, copied_preprocessing(loaded.preprocessing, folder), temperature=loaded.temperature)
    for modality, probe in loaded.probes.items():
        probe.save(folder, modality)


def copied_preprocessing(by_modality: Mapping[str, Preprocessing], folder: Path) -> dict[str, Preprocessing]:
    """The preprocessing of a model for another folder, into which its tokenizers are copied."""
    return {
        modality: replace(own, views=tuple(_with_tokenizer(spec, folder, own.folder) for spec in own.views))
        for modality, own in by_modality.items()
    }


def _save_weights(model: ContrastiveModel, folder: Path) -> None:
    for file in (ABOUT, WEIGHTS):  # a probe of other weights is wrong
        (folder / file).unlink(missing_ok=True)
    model.save_pretrained(folder)


def media_options(source: Source) -> dict[str, Any]:
    """How the media of a source are decoded: the options of its handles that other files need too."""
    handle = _first_handle(source)
    if source.modality == "image":
        return {"channels": len(handle) if isinstance(handle, Tensor) else getattr(handle, "channels", 3)}
    if isinstance(handle, AudioHandle):
        return {"rate_hz": handle.audio_format.rate_hz, "channels": handle.audio_format.channels}
    return {"columns": list(handle.names)} if isinstance(handle, TextHandle) else {}


def _temperature(objective: Objective | None) -> float | None:
    """The temperature at the end of the training, of the first space."""
    module = None if objective is None else next(iter(objective.temperatures.values()), None)
    with torch.no_grad():
        return None if module is None else float(module())


def _first_handle(source: Source) -> Any:
    """The first sample that has the modality and can be opened; None if there is none among the first hundred."""
    present = source.present(torch.arange(len(source)))
    rows = range(len(source)) if present is None else present.nonzero()[:, 0].tolist()
    for row in islice(rows, 100):
        try:
            handle = source.open([row])[0]
        except (DataError, OSError) as error:
            _log.info("%s does not say how media are decoded: %s", source.name_of(row), error)
            continue
        return handle.instances[0] if isinstance(handle, Instances) else handle
    return None


def _with_tokenizer(spec: Spec, folder: Path, source: Path = Path()) -> Spec:
    """The specification with its tokenizer saved in the folder of the model, so that another machine can load it.

    Args:
        spec: of a view.
        folder: the folder of the model.
        source: the folder that a tokenizer of another model is in.
    """
    if "chain" in spec:
        return {**spec, "chain": [_with_tokenizer(part, folder, source) for part in spec["chain"]]}
    name = inside_folder(spec["options"].get("tokenizer", "words"), source)
    if not isinstance(name, str) or name == "words":
        return spec
    from transformers import AutoTokenizer

    with model_load_errors(f"save_model({str(folder)!r})", expected="the tokenizer of the views", fix="check its path"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer.save_pretrained(folder / "tokenizer")
    return {**spec, "options": {**spec["options"], "tokenizer": f"{INSIDE}tokenizer"}}
