"""`create_source`: open a data set of any modality by its registered name, path or hub name.

    train = create_source("samples/fashion", split="train")                # bundled
    train = create_source("photos/", split="train")                        # a folder of classes, or of train/ and val/
    train = create_source("calls.csv", modality="audio", split="train")    # a table that points to files
    pairs = create_source("pairs.csv", modality=("image", "text"))         # joined by sample
    handles = train.open([0, 1, 2])                                        # headers only; decode() comes later

The function of a layout (folder, table, shards, hub) lists samples, and the function of a modality opens them. Each
combination is a registered source, such as `table/audio`, with the options of both. Options have the same names in all
sources: `media_column`, `text_columns`, `label_column`, `id_column`, `split_column`, `group_column`, `classes`,
`test_share`, `fold`, `root`, `check`, `max_failures`, `quarantine`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmcon.errors import DataError, UnknownNameError, nearest
from mmcon.media.audio_files import AUDIO_SUFFIXES
from mmcon.media.video_files import VIDEO_SUFFIXES
from mmcon.registry import create, entries, lookup, register_source, supported_options
from mmcon.sources import tables
from mmcon.sources.archives import list_shards
from mmcon.sources.base import Source
from mmcon.sources.files import IMAGE_SUFFIXES, list_folder
from mmcon.sources.hub import list_dataset
from mmcon.sources.listing import LabelOptions, Listing, SplitOptions, TableOptions
from mmcon.sources.pairs import MODALITIES, joined_table
from mmcon.sources.table_files import SUFFIXES

# By layout, the function that lists its samples, and the dataclass of its options.
LAYOUTS: dict[str, tuple[Callable[..., Listing], type[SplitOptions]]] = {
    "folder": (list_folder, SplitOptions),
    "table": (tables.list_table, TableOptions),
    "shards": (list_shards, LabelOptions),
    "hub": (list_dataset, TableOptions),
}
# Suffixes from which the modality of a folder is guessed. Audio in video containers needs modality="audio".
TYPICAL_SUFFIXES = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}


def create_source(
    data: str | Path | None = None,
    *,
    modality: str | Sequence[str] | None = None,
    split: str = "train",
    optional: Mapping[str, Any] | None = None,
    **options: Any,
) -> Source:
    """Open a source of any modality by its registered name, its path, or its name on a hub.

    >>> create_source("samples/fashion", split="test").classes[0]
    'T-shirt/top'

    Args:
        data: a registered name; a folder; a table (.csv, .tsv, .jsonl, .json, .parquet); tar shards (a folder, or a
            path with * or {000..009}); or owner/name of a data set on a hub. None: the bundled images.
        modality: "image", "audio", "video" or "text"; or several, such as ("image", "text"), for a table of pairs,
            which is opened as a JoinedSource. None: guessed from the suffixes of the files in a folder or a table, and
            from the names of a table's columns, else "image".
        split: "train", "test" (also matches val, validation, ...), another split of the data, or "all".
        optional: further options, ignored if the source does not take them.
        options: of the source (`mmcon.registry.lookup("source", "table/image").describe()`); unknown ones raise.

    Raises:
        UnknownNameError, DataError, InputError: the source or the modality is unknown, the data cannot be used, or the
            source does not take an option.
    """
    name = "samples/fashion" if data is None else str(data)
    wanted = modality if modality is None or isinstance(modality, str) else tuple(modality)
    kind = source_name(name, wanted)
    options |= {} if kind == name else {"path": name}
    if kind == "table/joined":
        options["modality"] = wanted
    return create("source", kind, split=split, **options, **supported_options("source", kind, optional or {}))


def source_name(data: str, modality: str | tuple[str, ...] | None = None) -> str:
    """The registered name of the source that opens a data set; a registered name is returned unchanged."""
    wanted = (modality,) if isinstance(modality, str) else modality or ()
    if data in [entry.name for entry in entries("source")]:
        has = lookup("source", data).modality
        if wanted and has not in ("any", "+".join(wanted)):
            fitting = [entry.name for entry in entries("source", "+".join(wanted)) if entry.name.startswith("samples/")]
            expected, fix = f"a source of modality {'+'.join(wanted)!r}", f"bundled are {', '.join(fitting) or 'none'}"
            raise DataError(f"create_source({data!r})", expected=expected, got=f"modality {has!r}", fix=fix)
        return data
    for name in wanted:
        if name not in MODALITIES:
            fix = nearest(name, list(MODALITIES))
            raise UnknownNameError("create_source", expected="a modality", got=repr(name), fix=fix)
    layout = _layout(data)
    if len(wanted) > 1:
        if layout != "table":
            fix = "list the pairs in a table, or join sources: JoinedSource(images, texts)"
            raise DataError(f"create_source({data!r})", expected="a table of pairs", got=f"a {layout}", fix=fix)
        return "table/joined"
    if wanted:
        return f"{layout}/{wanted[0]}"
    return f"{layout}/{_usual_modality(Path(data).expanduser(), layout)}"


def _layout(data: str) -> str:
    """Whether a name is a folder, a table, tar shards or a hub data set: by its suffix, then by what exists on disk."""
    path = Path(data).expanduser()
    if path.suffix == ".tar":  # may be a pattern, which is not an existing path
        return "shards"
    if path.is_file():
        return "table"
    if path.is_dir():
        if any(path.glob("*.tar")):
            return "shards"
        return "hub" if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")) else "folder"
    known = [entry.name for entry in entries("source")]
    reserved = {name.partition("/")[0] for name in known}
    if path.is_absolute() or data.startswith((".", "~")) or path.suffix.lower() in SUFFIXES:
        raise DataError(
            "create_source",
            expected="a file or a folder",
            got=repr(data),
            fix="check the path (in a recipe, check --data)",
        )
    if "/" in data and data.partition("/")[0] not in reserved:
        return "hub"
    raise UnknownNameError(
        f"create_source({data!r})",
        expected="a registered source, a path that exists, or owner/name of a hub",
        got=repr(data),
        fix=f"{nearest(data, known)} Else check --data",
    )


def _usual_modality(path: Path, layout: str) -> str:
    """The most common modality of the first 500 files of a folder or a table; "image" if it is not known."""
    found = None
    if layout == "table":
        found, files = tables.modality_of_columns(path)
    else:
        files = path.rglob("*") if layout == "folder" else ()
    suffixes = islice((suffix for file in files if (suffix := Path(file).suffix.lower())), 500)
    counts = Counter(name for suffix in suffixes for name, known in TYPICAL_SUFFIXES.items() if suffix in known)
    return found or (counts.most_common(1)[0][0] if counts else "image")


def _register(name: str, modality: str, open_listed: Callable[..., Source], *functions: Callable[..., Any]) -> None:
    """Register a source whose options are the parameters of several functions; unknown options raise an error.

    Args:
        name: the registered name.
        modality: of the source, or "any".
        open_listed: a function from options to the source.
        functions: the functions and dataclasses whose parameters are the options.
    """
    taken = {p.name: p for function in functions for p in inspect.signature(function).parameters.values()}
    hidden = ("options", "listing") if modality == "any" else ("options", "listing", "modality")
    parameters = sorted((p for p in taken.values() if p.name not in hidden), key=lambda p: p.kind)

    def open_source(**options: Any) -> Source:
        return open_listed(**options)

    open_source.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    open_source.__doc__ = "\n\n".join(inspect.getdoc(function) or "" for function in functions)
    register_source(name, modality=modality)(open_source)


def _opener(layout: str, modality: str) -> Callable[..., Source]:
    """Combine a layout and a modality: a function from options to the source."""
    list_samples, options_class = LAYOUTS[layout]
    make = MODALITIES[modality]

    def open_listed(**given: Any) -> Source:
        options = options_class(**_pop(given, options_class))
        of_modality = _pop(given, make)
        return make(list_samples(modality=modality, options=options, **given), **of_modality)

    return open_listed


def _open_joined(**given: Any) -> Source:
    options = TableOptions(**_pop(given, TableOptions))
    return joined_table(options=options, **given)


def _pop(given: dict[str, Any], taker: Callable[..., Any]) -> dict[str, Any]:
    """Remove the options that a function or a dataclass takes from a dict, and return them."""
    return {name: given.pop(name) for name in inspect.signature(taker).parameters if name in given}


for _layout_name, (_list_samples, _options_class) in LAYOUTS.items():
    for _modality, _make in MODALITIES.items():
        if (_layout_name, _modality) != ("folder", "text"):
            _functions = (_list_samples, _options_class, _make)
            _register(f"{_layout_name}/{_modality}", _modality, _opener(_layout_name, _modality), *_functions)
_register("table/joined", "any", _open_joined, joined_table, TableOptions)
