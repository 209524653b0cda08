"""Short clips of clothing in motion: a bundled Fashion-MNIST image moves, turns or grows over a dark ground.

Made, not filmed, and declared so. Every clip has its own image, start and speed; training clips show training images,
test clips test images.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import av
import numpy as np
from PIL import Image

from samples import fashion, packages, writing

CLIPS_PER_CELL = {"train": 2, "test": 1}
MOTIONS = ("right", "left", "up", "down", "clockwise", "counterclockwise", "grow", "shrink")
SIZE = 64
FRAMES = 24
FRAMES_PER_SECOND = 12


def build(work: Path, folder: Path) -> None:
    counts = {}
    for split, per_cell in CLIPS_PER_CELL.items():
        images, labels = fashion.read(work, split)
        queues = by_class(split, labels)
        rows = [
            row(split, queues[label].pop(0), label, motion, images)
            for label in range(len(fashion.CLASSES))
            for motion in MOTIONS
            for _ in range(per_cell)
        ]
        writing.write_rows(rows, folder / f"{split}.parquet")
        counts[split] = len(rows)
    (folder / "LICENSE").write_text(packages.copyright_of(fashion.PACKAGE, work), encoding="utf-8")
    writing.write_card(
        folder,
        title="Synthetic clips: Fashion-MNIST images in eight motions",
        licence="MIT (images: Zalando SE, 2017)",
        source=f"Debian package {fashion.PACKAGE} {packages.DEBIAN[fashion.PACKAGE]}",
        synthetic=True,
        counts=counts,
        columns={
            "id": "image and motion, such as train/00042/right",
            "video": f"MP4, H.264, {SIZE}×{SIZE}, {FRAMES} frames at {FRAMES_PER_SECOND} a second, no sound",
            "image": "id of the image in the sample fashion; no image is in two clips",
            "label": "class, 0 to 9",
            "class_name": "name of the class",
            "motion": "right, left, up, down, clockwise, counterclockwise, grow or shrink",
            "motion_label": "position of the motion in motions",
            "speed": "1 is the middle speed: half the picture's width, a quarter turn, or a doubling in a clip",
            "seconds": "length",
        },
        classes=list(fashion.CLASSES),
        motions=list(MOTIONS),
    )


def by_class(split: str, labels: np.ndarray) -> list[list[int]]:
    """By class, the bundled images in the order of a hash."""
    chosen = sorted(
        fashion.choose(split, labels), key=lambda index: writing.rank(f"motion {fashion.name(split, index)}")
    )
    return [[index for index in chosen if labels[index] == label] for label in range(len(fashion.CLASSES))]


def row(split: str, index: int, label: int, motion: str, images: np.ndarray) -> dict:
    image = fashion.name(split, index)
    speed = 0.75 + 0.5 * share(f"speed {image}")
    return {
        "id": f"{image}/{motion}",
        "video": mp4([draw(images[index], motion, speed, image, frame / (FRAMES - 1)) for frame in range(FRAMES)]),
        "image": image,
        "label": label,
        "class_name": fashion.CLASSES[label],
        "motion": motion,
        "motion_label": MOTIONS.index(motion),
        "speed": speed,
        "seconds": FRAMES / FRAMES_PER_SECOND,
    }


def share(name: str) -> float:
    """A number from 0 to 1 that only the name decides."""
    return writing.rank(name) / 2**64


def draw(image: np.ndarray, motion: str, speed: float, name: str, time: float) -> np.ndarray:
    """One frame, `h w` grey, at a time from 0 to 1: the motion passes through a place near the middle at half time."""
    x, y = (SIZE / 2 + 12 * (share(f"{axis} {name}") - 0.5) for axis in "xy")
    scale, angle = 1.2, 0.6 * (share(f"angle {name}") - 0.5)
    gone = speed * (time - 0.5)
    across, along = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}.get(motion, (0, 0))
    x, y = x + across * gone * SIZE / 2, y + along * gone * SIZE / 2
    angle += {"clockwise": 1, "counterclockwise": -1}.get(motion, 0) * gone * math.pi / 2
    scale *= 2 ** ({"grow": 1, "shrink": -1}.get(motion, 0) * gone)
    # From a pixel of the frame back to one of the image.
    cos, sin, centre = math.cos(angle) / scale, math.sin(angle) / scale, image.shape[0] / 2
    back = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
    padded = Image.fromarray(image).transform((SIZE, SIZE), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC)
    return np.asarray(padded)


def mp4(frames: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"threads": "1", "preset": "slow", "crf": "28"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv(frame), format="yuv420p")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def yuv(frame: np.ndarray) -> np.ndarray:
    """Grey as the planes that the encoder takes: FFmpeg's own conversion from RGB differed in a bit between runs."""
    brightness = np.round(16 + frame * (219 / 255)).astype(np.uint8)
    colour = np.full((SIZE // 2, SIZE), 128, np.uint8)
    return np.concatenate([brightness, colour])
