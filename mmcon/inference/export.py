"""Export an encoder for use without mmcon: key names of other libraries, sentence-transformers, ONNX, torch.export.

    export_model(mmcon.load("runs/photos"), "onnx", "photos-onnx", space="shared")

An export is a folder with the weights or the program, the preprocessing and a card; or a program alone, which has the
preprocessing within. It is loaded back by the library that it is for, and must give the features of the model before
anything is written at its place.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mmcon
from mmcon.batch import count_rows
from mmcon.errors import CheckpointError, InputError, MissingDependencyError, UnknownNameError, nearest
from mmcon.files import create_folder
from mmcon.inference import export_program, export_weights
from mmcon.inference.export_weights import Part
from mmcon.inference.inputs import check_modality
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.model_card import CARD, model_card
from mmcon.inference.preprocessing import preprocessing_content, write_preprocessing
from mmcon.inference.programs import PROGRAMS, program_about
from mmcon.inference.saving import copied_preprocessing
from mmcon.inference.sharing import exported_format
from mmcon.loading.loader import one_pass
from mmcon.models.small_images import SMALL_IMAGE_SIZE

#: The largest difference from the model, relative to the largest feature.
TOLERANCE = 1e-4
# By format, the function that writes a folder and returns the code that loads it and the difference it was loaded with.
_WRITERS: dict[str, Callable[[Part, Path], tuple[str, float | None]]] = {
    "torchvision": export_weights.write_torchvision,
    "timm": export_weights.write_timm,
    "transformers": export_weights.write_transformers,
    "sentence-transformers": export_weights.write_sentence_transformers,
    "onnx": export_program.write_onnx,
    "torch-export": export_program.write_torch_export,
}
FORMATS = tuple(_WRITERS)
# Names of encoders that fit a format, for messages.
_ENCODERS = {"timm": "timm/resnet18", "torchvision": "resnet18"}


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        format: its format.
        folder: the folder.
        files: what was written there.
        difference: the largest difference from the model after loading it back, relative to the largest feature; None
            if the library that loads it is not installed.
    """

    format: str
    folder: Path
    files: tuple[Path, ...]
    difference: float | None


def export_model(
    model: LoadedModel,
    format: str,
    output: str | Path,
    *,
    modality: str | None = None,
    space: str | None = None,
    normalize: bool = True,
    examples: Any = None,
) -> Export:
    """Write the encoder of a modality in a format of another library, and load it back.

    >>> export_model(mmcon.load("timm/resnet18"), "timm", "resnet18")  # doctest: +SKIP

    Args:
        model: the loaded model; programs run on its device.
        format: "torchvision", "timm" or "transformers" (weights under their key names), "sentence-transformers",
            "onnx", or "torch-export".
        output: the folder, new or of an earlier export in this format; or a file .onnx or .pt2, in any folder, which
            gets the program with its preprocessing and no card.
        modality: of a model of several.
        space: of a program, the shared space whose embeddings it returns; None: the features.
        normalize: of a program, rows of length one.
        examples: two inputs or more, as for `encode`, on which the export is checked; by default noise or words.

    Raises:
        InputError: the format does not fit the encoder, the folder or the file is not free, the export differs from the
            model, or a file alone would lack the tokenizer of its program.
        MissingDependencyError: "onnx" without its packages.
    """
    if format not in FORMATS:
        raise UnknownNameError("export", expected="a format", got=repr(format), fix=nearest(format, list(FORMATS)))
    modality = _checked_modality(model, format, modality, space)
    part = _part(model, modality, space, normalize, examples)
    averaged = len(part.preprocessing.views) > 1 and part.preprocessing.combine == "mean"
    if format in PROGRAMS and normalize and space is None and averaged:
        expected = "features as they are: `encode` averages those of several views, and then normalizes"
        raise InputError("export", expected=expected, got="normalize=True", fix="normalize=False, or --no-normalize")
    folder, file, alone = _place(Path(output).expanduser(), format)
    create_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export") as scratch:
        written = Path(scratch)
        preprocessing = copied_preprocessing({part.modality: part.preprocessing}, written)
        if alone and any(written.iterdir()):
            fix = f"--output {folder / Path(file).stem}"
            raise InputError("export", expected="a folder, for the tokenizer", got=f"the file {file}", fix=fix)
        about = {"format": format, "modality": modality, "space": space, "unit_rows": normalize}
        about |= {"dim": model.embedding_dim(modality, space), "mmcon": mmcon.__version__}
        about |= {"fingerprint": model.fingerprint, "preprocessing": preprocessing_content(preprocessing)}
        use, difference = _WRITERS[format](replace(part, file=file, about=json.dumps(about)), written)
        if difference is not None and not difference <= TOLERANCE:
            expected = f"the rows of the model, to {TOLERANCE:.0e} of the largest"
            raise InputError(f"export to {format}", expected=expected, got=f"a difference of {difference:.2g}")
        if not alone:
            write_preprocessing(written, preprocessing)
            library = format if format in ("timm", "transformers", "sentence-transformers") else "mmcon"
            named: dict[str, Any] = {"name": folder.absolute().name, "library": library, "export": format}
            model_card(model, use=use, notes=_notes(part, format, difference), **named).save(written / CARD)
        files = _move(written, folder)
    return Export(format, folder, files, difference)


def formats_of(model: LoadedModel, modality: str) -> tuple[str, ...]:
    """The formats that fit the encoder of a modality."""
    encoder = _encoder(model, modality)
    return (*export_weights.fitting_formats(encoder), *(PROGRAMS if export_program.is_program(encoder) else ()))


def _encoder(model: LoadedModel, modality: str) -> nn.Module:
    return model.model.encoders[model.model.towers[modality][0]]


def _checked_modality(model: LoadedModel, format: str, modality: str | None, space: str | None) -> str:
    """The modality, if its encoder and the space fit the format."""
    if modality is None and len(model.modalities) > 1:
        fix = f"modality={model.modalities[0]!r}"
        raise InputError("export", expected="one modality", got=f"a model of {list(model.modalities)}", fix=fix)
    modality = modality or next(iter(model.modalities))
    check_modality(modality, model.modalities)
    count, whole = len(model.model.towers[modality]), "share the whole model with mmcon push"
    if count > 1:
        raise InputError("export", expected="one encoder a modality", got=f"{count} of {modality!r}", fix=whole)
    fits: tuple[str, ...] = formats_of(model, modality)
    if format not in fits:
        encoder = _encoder(model, modality)
        name = (getattr(encoder, "made_from", None) or {}).get("name", type(encoder).__name__)
        expected = f"a format that fits the encoder {name!r}: {', '.join(fits) or 'none'}"
        fix = f"choose {fits[0]}{_way_to(format, encoder, name, modality)}" if fits else whole
        raise InputError("export", expected=expected, got=repr(format), fix=fix)
    if space is not None and format not in PROGRAMS:
        fix = f"leave the space out, or choose {' or '.join(PROGRAMS)}"
        raise InputError(f"export to {format}", expected="features, without a projection head", got="a space", fix=fix)
    return modality


def _way_to(format: str, encoder: nn.Module, name: str, modality: str) -> str:
    """What to train instead for an export of images to a library, as the end of a sentence; "" if nothing is known."""
    if modality != "image" or format not in _ENCODERS:
        return ""
    if name.startswith("mmcon/"):
        return f", or train an encoder of {format}, such as --encoder {_ENCODERS[format]}"
    library = "timm" if name.startswith("timm/") else "torchvision"
    if getattr(encoder, "small_images", False) and format == library:
        needed = f"--image-size above {SMALL_IMAGE_SIZE}, or --pretrained"
        return f"; this one has first layers for small images, which {format} has not: train with {needed}"
    return ""


def _part(model: LoadedModel, modality: str, space: str | None, normalize: bool, examples: Any) -> Part:
    head = None
    if space is not None:
        model.embedding_dim(modality, space)  # checks the space
        head = model.model.heads[space][modality]  # type: ignore[index]
    own, views = model.preprocessing[modality], _example_views(model, modality, examples)
    return Part(modality, _encoder(model, modality), own, views, head=head, normalize=normalize)


def _example_views(model: LoadedModel, modality: str, examples: Any) -> Any:
    """The views of a few inputs, as the encoder takes them."""
    own = model.preprocessing[modality]
    if examples is None:
        examples = _examples(modality, own.media)
    if examples is None:
        fix = "examples=[...], or --examples FILE FILE"
        raise InputError("export", expected=f"two inputs of {modality!r}", got="none", fix=fix)
    source = model.source_of(examples, modality)
    batch = next(one_pass(source, {modality: own.generators()}, batch_size=len(source), device=model.device))
    views = batch.views[modality][0]
    if count_rows(views) < 2:  # a program that was traced with one row would take one row only
        raise InputError("export", expected="two inputs or more of one size", got=str(count_rows(views)))
    return views


def _examples(modality: str, media: Any) -> list[Any] | None:
    """Three inputs of noise, or of words."""
    noise, channels = np.random.default_rng(0), int(media.get("channels", 1 if modality == "audio" else 3))
    if modality == "image":
        shape = (40, 56, channels) if channels > 1 else (40, 56)
        return [noise.integers(256, size=shape, dtype=np.uint8) for _ in range(3)]
    if modality == "audio":
        rate = int(media.get("rate_hz", 16_000))
        return [(noise.uniform(-0.5, 0.5, (channels, rate // n)).astype(np.float32), rate) for n in (1, 2, 3)]
    if modality == "video":
        clips = [noise.integers(256, size=(32, 3, 40, 56), dtype=np.uint8) for _ in range(3)]
        return [(torch.from_numpy(clip), 8.0) for clip in clips]
    return ["a red apple", "two", "a longer text of several words"] if modality == "text" else None


def _place(output: Path, format: str) -> tuple[Path, str, bool]:
    """The folder of an export, the name of its program, and whether the program is written without the rest."""
    suffix = PROGRAMS.get(format, "")
    if suffix and output.suffix == suffix and not output.is_dir():
        if output.exists() and not _is_export(output, format):
            fix, got = f"--output {output.with_stem(output.stem + '-2')}", f"{output}, which is another file"
            raise InputError("export", expected=f"a new file, or an earlier export to {format}", got=got, fix=fix)
        return output.parent, output.name, True
    taken = output.is_dir() and any(output.iterdir())
    if output.is_file() or (taken and exported_format(output) != format):
        raise InputError(
            "export",
            expected=f"a new folder, or that of an earlier export to {format}",
            got=f"{output}, which has other files",
            fix=f"--output {output / format}",
        )
    return output, f"model{suffix}", False


def _is_export(file: Path, format: str) -> bool:
    try:
        return program_about(file)["format"] == format
    except (CheckpointError, MissingDependencyError):
        return False


def _notes(part: Part, format: str, difference: float | None) -> list[str]:
    what = "embeddings of a shared space" if part.head is not None else "features of the encoder"
    rows = ", of length one" if (format in PROGRAMS and part.normalize) or format == "sentence-transformers" else ""
    checked = "" if difference is None else f" Loaded back, it differs by {difference:.1g} of the largest value."
    views = len(part.preprocessing.views)
    several = f"; `encode` of mmcon takes the mean of {views} views" if views > 1 else ""
    return [
        f"Exported to {format}: {what}{rows}, of one view of an input{several}.{checked}",
        "`preprocessing.json` has the preprocessing: how files are decoded and which views are made of them. "
        f"{export_weights.input_text(part)}",
    ]


def _move(written: Path, folder: Path) -> tuple[Path, ...]:
    """Move finished files to their place; the card is last, since it says that the folder is an export."""
    found = sorted((path for path in written.rglob("*") if path.is_file()), key=lambda path: path.name == CARD)
    placed = []
    for path in found:
        target = folder / path.relative_to(written)
        create_folder(target.parent)
        os.replace(path, target)
        placed.append(target)
    return tuple(placed)
