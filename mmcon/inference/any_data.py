"""Open data for a trained model: a file, a pattern, a folder in any layout, a table, or a name of a source or a hub.

Training needs classes and splits; a trained model takes every file that it can read.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.inference.inputs import InputOpener
from mmcon.inference.loaded_model import LoadedModel
from mmcon.media import ImageHandle, TextHandle
from mmcon.registry import lookup
from mmcon.sources.base import DatasetSource, Source
from mmcon.sources.factory import TYPICAL_SUFFIXES, create_source, source_name
from mmcon.sources.files import SUFFIXES, list_files
from mmcon.sources.listing import printable
from mmcon.sources.table_files import SUFFIXES as TABLES


def open_data(
    model: LoadedModel,
    data: str | Path | Sequence[str | Path],
    *,
    modality: str | None = None,
    split: str = "all",
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Data as a source of one modality of a model, decoded as its training data were.

    Args:
        model: the trained model.
        data: a file; a pattern such as "photos/*.jpg"; a folder, whose files are taken at any depth; a table; or the
            name of a registered source or of a data set on a hub. Or several files, patterns and folders.
        modality: the modality; None: the only one of the model, or found from the suffixes of the files.
        split: the split of a registered source or a hub data set.
        options: of the source of a table, a registered name or a hub data set.

    Raises:
        InputError: the model lacks the modality, texts are not in a table, or files and folders have a split or
            options.
        DataError: there are no such data, or no file of the modality.
    """
    if not isinstance(data, str | Path):
        if len(data) != 1:
            _check_no_options(f"{len(data):,} files", split, options)
            return _open_several(model, data, modality)
        data = data[0]
    text, path = str(data), Path(data).expanduser()
    files = _files(text, path)
    known = modality or (
        model.modalities[0] if len(model.modalities) == 1 else _modality(files, text, model.modalities)
    )
    _check_modality(model, known, repr(text))
    is_folder = files is None and path.is_dir() and source_name(text, known).startswith("folder/")
    if files is not None or is_folder:
        _check_no_options(repr(text), split, options)
    if files is not None:
        return _source_of_files(model, files, known)
    if is_folder:
        listing = list_files(path, modality=known)
        cells = [str(listing.root / cell) for cell in listing.cells]
        of_source = {**listing.options, "names": listing.names, "modality": known, "max_failures": 1.0, "root": Path()}
        return DatasetSource(cells, handle=_opener(model, known), **of_source)
    media = model.preprocessing[known].media
    optional = {"max_failures": 1.0, **{name: value for name, value in media.items() if name != "columns"}}
    source = create_source(data, modality=known, split=split, optional=optional, **(options or {}))
    return _with_media_of(model, source)


def _with_media_of(model: LoadedModel, source: Source) -> Source:
    """The source with the channels of images and the columns of texts that the model was trained with."""
    media, first = model.preprocessing[source.modality].media, source.open([0])[0]
    if source.modality == "image":
        channels = len(first) if isinstance(first, Tensor) else getattr(first, "channels", None)
        fits = channels == media.get("channels", channels)
    else:
        fits = not isinstance(first, TextHandle) or {*media.get("columns", ())} <= {*first.names}
    if fits:
        return source
    opener = _Reopener(source, _opener(model, source.modality))
    rows = range(len(source))
    options = {"labels": source.labels, "classes": source.classes, "name": source.name, "notes": source.notes}
    options |= {"names": [source.name_of(row) for row in rows], "modality": source.modality, "max_failures": 1.0}
    opened = DatasetSource(rows, handle=opener, **options)
    opened.ids = source.ids
    return opened


@dataclass(frozen=True)
class _Reopener:
    """A function from an index and a name to a handle on the same sample, decoded as a model needs it."""

    source: Source
    opener: InputOpener

    def __call__(self, row: int, name: str) -> Any:
        found = self.source.open([row])[0]
        held = found.source if isinstance(found, ImageHandle) else getattr(found, "value", found)
        return self.opener(held, self.source.name_of(row))


def _open_several(model: LoadedModel, data: Sequence[str | Path], modality: str | None) -> Source:
    """Files, and those in patterns and folders; a file that is not there is left out when it is read."""
    found: list[Path] = []
    for item in data:
        path = Path(item).expanduser()
        if path.is_dir():
            inner = (file for file in sorted(path.rglob("*")) if _is_media(file) and file.is_file())
            found += (file for file in inner if not re.search(r"(^|/)\.", file.relative_to(path).as_posix()))
        else:
            found += _files(str(item), path) or [path]
    known = modality or (model.modalities[0] if len(model.modalities) == 1 else _modality(found, "", model.modalities))
    _check_modality(model, known, f"{len(data):,} files")
    return _source_of_files(model, found, known)


def modality_of_file(path: Path, known: Sequence[str] = ()) -> str | None:
    """The modality that a suffix stands for, of several one that is known; None for other suffixes."""
    suffix = path.suffix.lower()
    found = [name for suffixes in (TYPICAL_SUFFIXES, SUFFIXES) for name, own in suffixes.items() if suffix in own]
    return next((name for name in found if name in known), found[0] if found else None)


def usual_space(model: LoadedModel, modality: str, space: str | None = None) -> str | None:
    """The space by its name; "features": none; None: the only space that the modality shares with others, if any.

    A text finds an image only in a space of both.
    """
    if space is not None:
        return None if space == "features" else space
    of_space = model.model.modalities_by_space()
    shared = [name for name, members in of_space.items() if modality in members and len(members) > 1]
    return shared[0] if len(shared) == 1 else None


def _check_no_options(data: str, split: str, options: Mapping[str, Any] | None) -> None:
    if split != "all" or options:
        got = f"split {split!r}, options {dict(options or {})}"
        fix = "leave them out; they are for tables, registered sources and hub data sets"
        raise InputError(f"data {data}", expected="files without a split and options", got=got, fix=fix)


def _check_modality(model: LoadedModel, modality: str, data: str) -> None:
    if modality not in model.modalities:
        expected, fix = f"data of {list(model.modalities)}", "give data of such a modality, or load another model"
        raise InputError(f"data for {model.name}", expected=expected, got=f"{data} of modality {modality!r}", fix=fix)


def _files(data: str, path: Path) -> list[Path] | None:
    """A file as a list, or the files of a pattern; None for tables, shards, folders and names."""
    if path.is_file():
        return None if path.suffix.lower() in (*TABLES, ".tar") else [path]
    if path.suffix.lower() == ".tar" or not glob.has_magic(data) or path.exists():
        return None
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    kept = [file for file in found if _is_media(file)]
    if not kept:
        got = f"{len(found):,} files, none of them an image, a recording or a video"
        raise DataError("pattern of files", expected=f"readable files at {data!r}", got=got, fix="check the pattern")
    return kept


def _is_media(path: Path) -> bool:
    return modality_of_file(path) is not None


def _modality(files: list[Path] | None, data: str, known: Sequence[str]) -> str:
    """The modality of data for a model of several, by the suffix of the first file, or by the kind of the source."""
    if files is not None:
        return modality_of_file(files[0], known) or "image"
    return lookup("source", source_name(data)).modality


def _source_of_files(model: LoadedModel, files: list[Path], modality: str) -> Source:
    if modality == "text":
        fix = "list the texts in a table, such as a .csv file with a column `text`"
        raise InputError(f"texts for {model.name}", expected="a table of texts", got=f"the file {files[0]}", fix=fix)
    # A suffix that says nothing does not speak against a file.
    kept = [f for f in dict.fromkeys(files) if f.suffix.lower() in SUFFIXES.get(modality, ()) or not _is_media(f)]
    if not kept:
        raise DataError("files", expected=f"files of {modality}", got=f"{len(files):,} others, such as {files[0]}")
    notes = [f"{len(files) - len(kept):,} files of other modalities left out"] if len(kept) < len(files) else []
    return DatasetSource(
        [str(file) for file in kept],
        handle=_opener(model, modality),
        names=[printable(str(file)) for file in kept],
        modality=modality,
        name=printable(str(files[0])) if len(files) == 1 else f"{len(files):,} files",
        max_failures=1.0,
        notes=notes,
    )


def _opener(model: LoadedModel, modality: str) -> InputOpener:
    return InputOpener(modality, dict(model.preprocessing[modality].media))
