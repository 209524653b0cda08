"""Fashion-MNIST, a balanced subset: 1,000 training and 200 test images of each of ten classes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
from PIL import Image

from samples import packages, writing

PACKAGE = "dataset-fashion-mnist"
PER_CLASS = {"train": 1000, "test": 200}
FILES = {"train": "train", "test": "t10k"}
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def build(work: Path, folder: Path) -> None:
    counts = {}
    for split in FILES:
        images, labels = read(work, split)
        rows = [
            {
                "id": name(split, index),
                "image": png(images[index]),
                "label": int(labels[index]),
                "class_name": CLASSES[labels[index]],
            }
            for index in choose(split, labels)
        ]
        writing.write_rows(rows, folder / f"{split}.parquet")
        counts[split] = len(rows)
    (folder / "LICENSE").write_text(packages.copyright_of(PACKAGE, work), encoding="utf-8")
    writing.write_card(
        folder,
        title="Fashion-MNIST, 10,000 + 2,000 images: 28×28 grey, ten classes of clothing, equally many of each",
        licence="MIT (Zalando SE, 2017)",
        source=f"Debian package {PACKAGE} {packages.DEBIAN[PACKAGE]}",
        synthetic=False,
        counts=counts,
        columns={
            "id": "split and index in the original files, such as train/00042",
            "image": "PNG, 28×28, 8-bit grey",
            "label": "class, 0 to 9",
            "class_name": "name of the class",
        },
        classes=list(CLASSES),
    )


def read(work: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images `n h w` and labels `n` of a split of the original, which are idx files."""
    source = packages.debian(PACKAGE, work) / "usr/share/datasets/fashion-mnist"
    with gzip.open(source / f"{FILES[split]}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    with gzip.open(source / f"{FILES[split]}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(len(labels), 28, 28)
    return images, labels


def name(split: str, index: int) -> str:
    return f"{split}/{index:05d}"


def choose(split: str, labels: np.ndarray) -> list[int]:
    """The indices to keep: of each class those whose name ranks first, in the order of the original."""
    kept: list[int] = []
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label).tolist()
        kept += sorted(members, key=lambda index: writing.rank(name(split, index)))[: PER_CLASS[split]]
    return sorted(kept)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return buffer.getvalue()
