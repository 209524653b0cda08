"""Images with boxes in COCO format: a source of the images, and a table of the boxes of all of them.

    images, boxes = open_boxes("coco", split="train")
    targets = boxes.targets(batch.index["image"]["row"], size=512)

COCO format is a JSON file with `images` (id, file_name, width, height), `annotations` (image_id, category_id, bbox as
x y width height in pixels) and `categories` (id, name).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.errors import DataError, MmconError
from mmcon.media.image import ImageHandle
from mmcon.sources.base import DatasetSource
from mmcon.sources.splits import match_split

#: The highest share of boxes without an area, or outside of their image, that is left out (COCO itself has a few).
BAD_BOXES = 0.01
#: Sizes of so many images are compared with those of the annotations.
COMPARED_SIZES = 200


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of images.

    Attributes:
        boxes: x0 y0 x1 y1 in pixels of the original image.
        labels: the class of each box, from 1; 0 is the background.
        image: the row of its image in the source, ascending.
        crowd: whether it is around a group; such boxes are not trained on, and count neither way in the evaluation.
        area: of the object in pixels.
        sizes: height and width of each image.
        classes: the names of the classes; that of label 1 is the first.
    """

    boxes: Float[Tensor, "m 4"]
    labels: Int[Tensor, " m"]
    image: Int[Tensor, " m"]
    crowd: Bool[Tensor, " m"]
    area: Float[Tensor, " m"]
    sizes: Int[Tensor, "n 2"]
    classes: tuple[str, ...]

    @cached_property
    def _starts(self) -> list[int]:
        return torch.searchsorted(self.image, torch.arange(len(self.sizes) + 1)).tolist()

    def of_image(self, row: int) -> slice:
        """The boxes of an image."""
        return slice(self._starts[row], self._starts[row + 1])

    def targets(self, rows: Int[Tensor, " n"], *, size: int) -> list[dict[str, Shaped[Tensor, "..."]]]:
        """Boxes and labels of images that were stretched to squares, without crowds: the targets of a detector.

        Args:
            rows: of the images.
            size: the side in pixels.
        """
        found = []
        for row in rows.tolist():
            own = self.of_image(row)
            kept = ~self.crowd[own]
            boxes = self.boxes[own][kept] * (size / self._sides(row))
            found.append({"boxes": boxes, "labels": self.labels[own][kept]})
        return found

    def to_pixels(self, row: int, boxes: Float[Tensor, "k 4"], *, size: int) -> Float[Tensor, "k 4"]:
        """Boxes in an image that was stretched to a square, in pixels of the original."""
        return boxes * (self._sides(row) / size)

    def _sides(self, row: int) -> Float[Tensor, " 4"]:
        return self.sizes[row].flip(0).repeat(2).float()  # width height width height


def open_boxes(
    data: str | Path,
    *,
    split: str = "train",
    annotations: str | Path | None = None,
    images: str | Path | None = None,
) -> tuple[DatasetSource, BoxTable]:
    """Open a split of a folder of images with boxes.

    Args:
        data: a folder with a JSON file for each split, in it or in `annotations/` (`train.json`,
            `instances_train2017.json`), and the images in folders of the same name, in `images/`, or beside.
        split: "train" or "test", which also matches val.
        annotations: the JSON file; by default found in the folder.
        images: the folder that names of files are relative to; by default found.

    Returns:
        The images, with the column `row`, and their boxes.

    Raises:
        DataError: a file or an image is missing, the JSON is not in COCO format, an annotation names an image or a
            category that there is not, sizes of images differ from those in the file, or more than 1 % of the boxes
            have no area or are outside of their image.
    """
    folder = Path(data).expanduser()
    file = Path(annotations).expanduser() if annotations else _annotations_of(folder, split)
    content = _read(file)
    root = Path(images).expanduser() if images else _images_of(folder, split, content["images"])
    names = [str(_field(image, "file_name", file)) for image in content["images"]]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        got = f"{len(missing):,} of {len(names):,} missing, such as {missing[0]!r} in {root}"
        raise DataError(str(file), expected="the images that it names", got=got, fix="name their folder")
    table, notes = _table(content, file)
    _compare_sizes(file, [root / name for name in names], table.sizes)
    counts = f"{len(table.boxes):,} boxes of {len(table.classes)} classes"
    source = DatasetSource(
        names, handle=_Opener(root), names=names, modality="image", columns={"row": torch.arange(len(names))},
        name=f"{folder.name} ({split})", notes=[counts, *notes], root=root,
    )  # fmt: skip
    return source, table


@dataclass(frozen=True)
class _Opener:
    """Opens the image of a name; a class, since workers pickle it."""

    root: Path

    def __call__(self, item: str, name: str) -> ImageHandle:
        return ImageHandle(self.root / item, id=name)


def _annotations_of(folder: Path, split: str) -> Path:
    files = [file for place in (folder, folder / "annotations") for file in sorted(place.glob("*.json"))]
    by_name = {file.stem.removeprefix("instances_"): file for file in files}
    wanted = match_split(by_name, split)
    if wanted is None:
        raise DataError(
            str(folder),
            expected=f"annotations of split {split!r} in COCO format, such as {split}.json",
            got=f"{[file.name for file in files] or 'no JSON file'}" if folder.is_dir() else "no such folder",
            fix="name the file itself",
        )
    return by_name[wanted]


def _images_of(folder: Path, split: str, listed: Sequence[Mapping[str, Any]]) -> Path:
    """The folder in which the first image is; the folder itself if there is none."""
    first = str(listed[0].get("file_name", ""))
    places = [folder, folder / "images"]
    for place in [*places]:
        inner = [path.name for path in sorted(place.iterdir()) if path.is_dir()] if place.is_dir() else []
        places += [place / name for name in [match_split(inner, split)] if name is not None]
    return next((place for place in reversed(places) if (place / first).is_file()), folder)


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(str(file), expected="a JSON file in COCO format", got=str(error)) from error
    lists = [name for name in ("images", "annotations", "categories") if _is_list_of_objects(content, name)]
    if len(lists) < 3 or not all(content[name] for name in lists):
        got = {name: f"{len(content[name]):,}" for name in lists} if lists else type(content).__name__
        expected = "lists of images, annotations and categories, none of them empty"
        raise DataError(str(file), expected=expected, got=str(got), fix="give the file of instances in COCO format")
    return content


def _is_list_of_objects(content: Any, name: str) -> bool:
    values = content.get(name) if isinstance(content, dict) else None
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _field(entry: Mapping[str, Any], name: str, file: Path) -> Any:
    if name not in entry:
        got = json.dumps({key: entry[key] for key in list(entry)[:4]})
        raise DataError(str(file), expected=f"{name!r} in every such entry", got=got)
    return entry[name]


def _id(entry: Mapping[str, Any], name: str, file: Path) -> int | float | str:
    """An id, which may be a key."""
    value = _field(entry, name, file)
    if not isinstance(value, int | float | str):
        raise DataError(str(file), expected=f"a number or a text as {name!r}", got=json.dumps(value)[:40])
    return value


def _numbered(content: Mapping[str, Any], kind: str, file: Path) -> dict[Any, int]:
    """The positions of images or categories by their ids, which are all different."""
    ids = [_id(entry, "id", file) for entry in content[kind]]
    repeated = [value for value, count in Counter(map(str, ids)).items() if count > 1]
    if repeated:
        raise DataError(str(file), expected=f"{kind} with ids of their own", got=f"id {repeated[0]} repeated")
    return {value: position for position, value in enumerate(ids)}


def _table(content: Mapping[str, Any], file: Path) -> tuple[BoxTable, list[str]]:
    """The boxes in the order of the images, and what was left out."""
    rows, labels = _numbered(content, "images", file), _numbered(content, "categories", file)
    sizes = [[_field(image, side, file) for side in ("height", "width")] for image in content["images"]]
    found = content["annotations"]
    for name, known in (("image_id", rows), ("category_id", labels)):
        unknown = [entry for entry in found if _id(entry, name, file) not in known]
        if unknown:
            got = f"{len(unknown):,} others, such as {unknown[0][name]!r} of annotation {unknown[0].get('id')}"
            raise DataError(str(file), expected=f"{name} among the {len(known):,} of the file", got=got)
    try:
        corners = torch.tensor([_field(entry, "bbox", file) for entry in found], dtype=torch.float32).view(
            len(found), 4
        )
        table_of_sizes = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        given = torch.tensor([float(entry.get("area") or -1) for entry in found])
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, MmconError):
            raise
        expected = "boxes of four numbers (x y width height), areas as numbers, and sizes in whole pixels"
        raise DataError(str(file), expected=expected, got=str(error)) from error
    image = torch.tensor([rows[entry["image_id"]] for entry in found])
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    sides = table_of_sizes[image].flip(1).repeat(1, 2).float()
    # Rounded corners may be up to a pixel outside.
    inside = ((boxes >= -1) & (boxes <= sides + 1)).all(1)
    good = inside & (corners[:, 2:] > 0).all(1) & boxes.isfinite().all(1)
    bad = int((~good).sum())
    if bad > BAD_BOXES * len(found):
        first = found[int((~good).nonzero()[0, 0])]
        got = f"{bad:,} of {len(found):,} others, such as {first['bbox']} of annotation {first.get('id')}"
        expected, fix = "boxes with an area, inside of their image", "boxes are x y width height in pixels"
        raise DataError(str(file), expected=expected, got=got, fix=fix)
    kept = good.nonzero()[:, 0][image[good].argsort(stable=True)]
    area = corners[:, 2] * corners[:, 3]
    table = BoxTable(
        boxes=torch.minimum(boxes.clamp(min=0), sides)[kept],
        labels=torch.tensor([labels[entry["category_id"]] + 1 for entry in found])[kept],
        image=image[kept],
        crowd=torch.tensor([bool(entry.get("iscrowd", 0)) for entry in found])[kept],
        area=torch.where(given > 0, given, area)[kept],
        sizes=table_of_sizes,
        classes=tuple(str(_field(category, "name", file)) for category in content["categories"]),
    )
    return table, [f"{bad:,} boxes without an area or outside of their image were left out"] if bad else []


def _compare_sizes(file: Path, paths: Sequence[Path], sizes: Int[Tensor, "n 2"]) -> None:
    """Compare the sizes in the file with the headers of some images, evenly spaced."""
    for row in range(0, len(paths), -(-len(paths) // COMPARED_SIZES)):
        facts = ImageHandle(paths[row]).facts
        if sizes[row].tolist() != [facts["height"], facts["width"]]:
            got = f"{facts['height']} × {facts['width']} pixels of {paths[row].name}"
            expected = f"{int(sizes[row, 0])} × {int(sizes[row, 1])} (height × width), as the file has it"
            raise DataError(
                str(file), expected=expected, got=got, fix="annotate the images as they are stored, upright"
            )
