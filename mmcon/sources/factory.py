"""Sources by what a user calls them: a registered name, a path, or a data set on a hub.

from mmcon.sources.factory import create_source

train = create_source("samples/fashion", split="train")   # bundled
train = create_source("photos/", split="train")           # a folder of classes, or of train/ and val/
handles = train.open([0, 1, 2])                           # headers only; decode() comes later
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from mmcon.errors import DataError, UnknownNameError, nearest
from mmcon.media.audio_files import SUFFIXES as SOUND_SUFFIXES
from mmcon.media.video_files import VIDEO_SUFFIXES
from mmcon.random import stable_ids
from mmcon.registry import create, entries, register_source, supported_options
from mmcon.sources import (
    audio,  # noqa: F401  (they register what is opened)
    bundled,
    files,
    hub,  # noqa: F401  (they register what is opened)
    manifests,  # noqa: F401  (they register what is opened)
    video,  # noqa: F401  (they register what is opened)
)
from mmcon.sources.base import (
    HELD_OUT,
    JoinedSource,
    Source,
    Subset,
    TensorSource,
    channels_of,
    class_counts,
    class_weights,
    held_out,
    meetings,
)

__all__ = [
    "HELD_OUT",
    "JoinedSource",
    "Source",
    "Subset",
    "TensorSource",
    "channels_of",
    "class_counts",
    "class_weights",
    "create_source",
    "fashion",
    "held_out",
    "kind_of",
    "meetings",
]

SUFFIXES = {"folder/images": files.SUFFIXES, "folder/videos": VIDEO_SUFFIXES, "folder/sounds": SOUND_SUFFIXES}


@register_source("samples/fashion", modality="image")
def fashion(split: Literal["train", "test"] = "train") -> TensorSource:
    """Fashion-MNIST, the bundled part: 10,000 training and 2,000 test images of ten classes, `1 28 28`."""
    import pyarrow.parquet as parquet
    from torchvision.io import ImageReadMode, decode_image

    table = parquet.read_table(bundled.path("fashion", split))
    files = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in table["image"].to_pylist()]
    return TensorSource(
        torch.stack([decode_image(file, ImageReadMode.GRAY) for file in files]),
        ids=stable_ids(f"fashion/{name}" for name in table["id"].to_pylist()),
        labels=torch.tensor(table["label"].to_pylist()),
        classes=bundled.card("fashion")["classes"],
        name=f"samples/fashion ({split})",
    )


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
        data: a registered name; a folder; a table (.csv, .tsv, .jsonl, .parquet); tar shards (a path with * or
            {000..009}); or owner/name of a data set on a hub. None: the bundled images.
        modality: "image", "audio", "video", "text", or several, such as ("image", "text"), for a table of pairs. None:
            guessed by the suffixes of a folder's files, and "image" elsewhere.
        split: "train", "test" or another that the data have.
        optional: further options, passed on if the source takes them.
        options: of the source.

    Raises:
        UnknownNameError, DataError, InputError: the source is unknown, cannot be used, or does not take an option.
    """
    from mmcon.sources.pairs import read_pairs
    from mmcon.sources.text import read_texts

    name = "samples/fashion" if data is None else str(data)
    options = dict(options)
    table = Path(name).suffix in (".csv", ".tsv", ".jsonl", ".parquet") and Path(name).is_file()
    if modality == ("image", "text"):
        texts = options.pop("text_columns", ("text",))
        held = read_pairs(name, image_column=options.pop("media_column", None), text_column=texts[0], **options)
        return held.train if split == "train" else held.tests["held out"]
    if modality == "text" and table and "text_columns" in options:
        options.setdefault("label_column", "label")
        shared = {"columns": options.pop("text_columns", ("text",)), "label": options.pop("label_column") or "label"}
        train, test = read_texts(name, **shared, held_out_share=options.pop("test_share", 0.2))
        return train if split == "train" else test
    kind = kind_of(name)
    registered = kind == name
    if modality == "audio" and kind in ("manifest", "hub", "folder/images", "folder/videos"):
        kind = {"manifest": "manifest/sounds", "hub": "hub/sounds"}.get(kind, "folder/sounds")
    elif modality == "video" and kind in ("manifest", "folder/images"):
        kind = {"manifest": "manifest/videos"}.get(kind, "folder/videos")
    options |= supported_options("source", kind, optional or {})
    if modality is not None:
        options |= supported_options("source", kind, {"modality": modality})
    opened = create("source", kind, split=split, **options, **({} if registered else {"path": name}))
    if modality is not None and opened.modality != modality:
        raise DataError(
            f"create_source({name!r})",
            expected=f"a source of modality {modality!r}",
            got=f"modality {opened.modality!r}",
            fix="name another source, or the modality that it has",
        )
    return opened


def kind_of(name: str) -> str:
    """The registered source that opens what a name or a path means; a registered name is itself."""
    if name in [entry.name for entry in entries("source")]:
        return name
    path = Path(name).expanduser()
    if path.suffix == ".tar":  # a pattern of shards need not exist as such
        return "shards"
    if path.is_file():
        return "manifest"
    if path.is_dir():
        return _kind_of_folder(path)
    if path.is_absolute() or name.startswith((".", "~")):
        raise DataError("create_source", expected="a file or a folder", got=repr(name), fix="check the path")
    if "/" in name and not name.startswith(("samples/", "folder/")):
        return "hub"
    raise UnknownNameError(
        f"create_source({name!r})",
        expected="a registered source, a path that exists, or owner/name of a hub",
        got=repr(name),
        fix=nearest(name, [entry.name for entry in entries("source")]),
    )


def _kind_of_folder(folder: Path) -> str:
    if any(folder.glob("*.tar")):
        return "shards"
    if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")):
        return "hub"
    return _kind_by_suffix(folder)


def _kind_by_suffix(folder: Path) -> str:
    """What most of the first files below a folder are; images where nothing is known."""
    files = islice((f.suffix.lower() for f in folder.rglob("*") if f.suffix and f.is_file()), 500)
    counts = Counter(kind for suffix in files for kind, known in SUFFIXES.items() if suffix in known)
    return counts.most_common(1)[0][0] if counts else "folder/images"
