"""Videos stored as images: folders of frames, and animated GIF, WebP and PNG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmcon.errors import DataError
from mmcon.media.video import SAME_TIME_SECONDS, FrameStack, VideoHandle, VideoHeader, scaled

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@final
class FrameFolder(VideoHandle):
    """A folder of images, one per frame, in the natural order of their names (`2.png` before `10.png`).

    Args:
        folder: the folder.
        frames_per_second: the rate of the frames, which a folder does not state.
        name: the name of the video in messages; by default the path.

    Raises:
        DataError: the folder has no images or an unreadable first image, or the rate is missing.
    """

    def __init__(self, folder: str | Path, *, frames_per_second: int | float | None, name: str = "") -> None:
        self.files = frame_files(folder)
        if not self.files:
            raise DataError(
                str(folder), expected="images, one per frame", got="none", fix=f"use {', '.join(FRAME_SUFFIXES)}"
            )
        if not frames_per_second:
            raise DataError(
                name or str(folder),
                expected="the rate of the frames",
                got=f"frames_per_second={frames_per_second}",
                fix="open_video(folder, frames_per_second=25), or a column frames_per_second in the manifest",
            )
        from PIL import Image

        with _data_errors(str(self.files[0])), Image.open(self.files[0]) as first:
            width, height = first.size
        count = len(self.files)
        super().__init__(
            name or str(folder), VideoHeader(count / frames_per_second, float(frames_per_second), count, height, width)
        )

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode each requested image once."""
        rate, last = self.header.frames_per_second, len(self.files) - 1
        shown = [min(max(0, math.floor((t + SAME_TIME_SECONDS) * rate)), last) for t in times]
        decoded = {i: scaled(self._image(self.files[i])[None], shorter_side)[0] for i in dict.fromkeys(shown)}
        return torch.stack([decoded[i] for i in shown])

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode all images."""
        rate = self.header.frames_per_second
        frames = self.read([i / rate for i in range(len(self.files))], shorter_side)
        return FrameStack(frames, frames_per_second=rate, name=self.name)

    def _image(self, file: Path) -> UInt8[Tensor, "c h w"]:
        from torchvision.io import ImageReadMode, decode_image

        with _data_errors(str(file)):
            image = decode_image(str(file), ImageReadMode.RGB)
        if image.shape[-2:] != (self.header.height, self.header.width):
            expected = f"{self.header.height}×{self.header.width}, the size of the first frame"
            raise DataError(str(file), expected=expected, got="×".join(map(str, image.shape[-2:])))
        return image


@final
class AnimatedImage(VideoHandle):
    """An animated GIF, WebP or PNG. Frame durations are those of the file; 0 means 100 ms, as in browsers.

    These files store differences between frames, so they are always decoded from the start.
    """

    def __init__(self, file: str | Path, *, name: str = "") -> None:
        from PIL import Image

        self.file = Path(file)
        with _data_errors(str(file)), Image.open(self.file) as image:
            width, height = image.size
            durations = [_milliseconds(image, i) for i in range(getattr(image, "n_frames", 1))]
        # Summed in whole milliseconds, which are exact; seconds would add rounding errors.
        ends = torch.tensor(durations, dtype=torch.float64).cumsum(0) / 1000
        self.times, self.end = [0.0, *ends[:-1].tolist()], float(ends[-1])
        count = len(durations)
        super().__init__(name or str(file), VideoHeader(self.end, count / self.end, count, height, width))

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode all frames and select."""
        return self.decode_all(shorter_side).read(times, None)

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode all frames."""
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        with _data_errors(str(self.file)), Image.open(self.file) as image:
            frames = []
            for number in range(len(self.times)):
                image.seek(number)
                frames.append(pil_to_tensor(image.convert("RGB")))
        rate = self.header.frames_per_second
        stack = scaled(torch.stack(frames), shorter_side)
        return FrameStack(stack, times=self.times, frames_per_second=rate, name=self.name, end=self.end)


def _milliseconds(image: Any, number: int) -> float:
    """The duration of a frame, which Pillow sets when it loads the frame."""
    image.seek(number)
    image.load()
    return float(image.info.get("duration", 0) or 100)


def frame_files(folder: str | Path) -> list[Path]:
    """The images of a folder in the natural order of their names."""
    files = (f for f in Path(folder).iterdir() if f.suffix.lower() in FRAME_SUFFIXES and not f.name.startswith("."))
    return sorted(files, key=lambda f: natural_key(f.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts `2` before `10`."""
    pieces = (piece for piece in re.split(r"(\d+)", name) if piece)
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]


@contextmanager
def _data_errors(name: str) -> Iterator[None]:
    """Convert a library's errors on a damaged file to a DataError with the name of the file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:
        raise DataError(name, expected="a readable file", got=f"{type(error).__name__}: {error}") from error
