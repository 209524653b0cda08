"""Made images with boxes in COCO format: squares, disks and triangles in front of a noisy background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from mmcon.files import replace_file
from mmcon.random import Keys, keys, stable_ids

CLASSES = ("square", "disk", "triangle")
#: The smallest and the largest radius, in sides of the image, and the most shapes of an image.
RADII, MOST = (0.08, 0.2), 3
#: A shape that would leave less of another in sight is not drawn.
LEAST_VISIBLE = 0.6


def write_shapes(folder: str | Path, *, images: int, split: str = "train", side: int = 96, seed: int = 0) -> Path:
    """Write `SPLIT.json` in COCO format and the images into `SPLIT/`. An image depends on seed, split and number alone.

    Colors do not depend on the class. A shape in front may hide a part of another, up to two fifths of it.

    Returns:
        The folder, which `mmcon.sources.coco.open_boxes` opens.
    """
    folder = Path(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)
    names = [f"{number:05}.png" for number in range(images)]
    draws = keys(seed=seed, sample=stable_ids([f"{split}/{name}" for name in names])).child("shapes")
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        pixels, found = _image(draws[number], side)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / split / name)
        annotations += [{"id": len(annotations) + i, "image_id": number, **own} for i, own in enumerate(found, 1)]
    listed = [{"id": number, "file_name": name, "width": side, "height": side} for number, name in enumerate(names)]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    replace_file(folder / f"{split}.json", json.dumps(content) + "\n")
    return folder


def _image(draws: Keys, side: int) -> tuple[UInt8[Tensor, "3 side side"], list[dict[str, Any]]]:
    """The pixels of an image, and its annotations without ids."""
    background = draws.uniform("background", 0.2, 0.8, shape=(3,)).float()[0]
    pixels = background[:, None, None] + draws.uniform("noise", -0.12, 0.12, shape=(3, side, side)).float()[0]
    kinds = draws.integers("kind", 0, len(CLASSES), shape=(MOST,))[0].tolist()
    centers = draws.uniform("center", 0.1, 0.9, shape=(MOST, 2))[0].tolist()
    radii = draws.uniform("radius", *RADII, shape=(MOST,))[0].tolist()
    # Far from the background, on a circle of the range of each channel.
    colors = (background + draws.uniform("color", 0.3, 0.7, shape=(MOST, 3)).float()[0]) % 1
    found: list[dict[str, Any]] = []
    visible: list[Tensor] = []
    for number in range(int(draws.integers("number", 1, MOST + 1)[0])):
        mask = _mask(kinds[number], centers[number], radii[number], side)
        left = [before & ~mask for before in visible]
        if all(int(rest.sum()) >= LEAST_VISIBLE * own["area"] for rest, own in zip(left, found, strict=True)):
            pixels = torch.where(mask, colors[number][:, None, None], pixels)
            visible = [*left, mask]
            found.append(_annotation(mask, kinds[number]))
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8), found


def _annotation(mask: Bool[Tensor, "h w"], kind: int) -> dict[str, Any]:
    ys, xs = mask.nonzero(as_tuple=True)
    x, y = int(xs.min()), int(ys.min())
    box = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
    return {"category_id": kind, "bbox": box, "area": int(mask.sum()), "iscrowd": 0}


def _mask(kind: int, center: list[float], radius: float, side: int) -> Bool[Tensor, "side side"]:
    """The pixels of a shape."""
    axis: Float[Tensor, " side"] = (torch.arange(side) + 0.5) / side
    y, x = (axis[:, None] - center[1]) / radius, (axis[None, :] - center[0]) / radius
    if CLASSES[kind] == "square":
        return (x.abs() <= 0.9) & (y.abs() <= 0.9)
    if CLASSES[kind] == "disk":
        return x**2 + y**2 <= 1
    return (y <= 0.9) & (y >= 1.9 * x.abs() - 1)
