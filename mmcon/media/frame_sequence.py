"""Videos stored as images: folders of frames, and animated GIF, WebP and PNG."""

from __future__ import annotations

import bisect
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
from mmcon.media.decoding import DAMAGED, decoder_errors, file_size, restart_time_limit
from mmcon.media.image import FORMATS, check_pixels
from mmcon.media.video import SAME_TIME_SECONDS, FrameStack, VideoHandle, VideoHeader, scaled

MAX_ANIMATION_PIXELS = 1 << 32
"""The largest accepted animation, in pixels of all its frames: two thousand frames of a full HD screen."""
# Larger animations have a byte for so many pixels: a frame that repeats another one takes some thirty bytes.
_SMALL_PIXELS, _PIXELS_PER_BYTE = 1 << 25, 1 << 16

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
        self.folder, self.files = Path(folder), frame_files(folder)
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
        width, height = _image_size(self.files[0])
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

        width, height = _image_size(file)
        if (height, width) != (self.header.height, self.header.width):
            expected = f"{self.header.height}×{self.header.width}, the size of the first frame"
            raise DataError(str(file), expected=expected, got=f"{height}×{width}")
        with decoder_errors(str(file)):
            return decode_image(str(file), ImageReadMode.RGB)


@final
class AnimatedImage(VideoHandle):
    """An animated GIF, WebP or PNG. Frame durations are those of the file; 0 means 100 ms, as in browsers.

    These files store differences between frames, so they are always decoded from the start.
    """

    def __init__(self, file: str | Path, *, name: str = "") -> None:
        self.file = Path(file)
        with _opened(self.file) as image:
            width, height = image.size
            count = getattr(image, "n_frames", 1)
            most = min(MAX_ANIMATION_PIXELS, max(_SMALL_PIXELS, _PIXELS_PER_BYTE * self.file.stat().st_size))
            if count * width * height > most:
                fix = "convert it to a video file, or leave it out"
                got = f"{count:,} frames of {height}×{width}"
                raise DataError(str(file), expected=f"an animation of at most {most:,} pixels", got=got, fix=fix)
            durations = [float(self._frame(image, i, image.size).info.get("duration", 0) or 100) for i in range(count)]
        # Summed in whole milliseconds, which are exact; seconds would add rounding errors.
        ends = torch.tensor(durations, dtype=torch.float64).cumsum(0) / 1000
        self.times, self.end = [0.0, *ends[:-1].tolist()], float(ends[-1])
        super().__init__(name or str(file), VideoHeader(self.end, count / self.end, count, height, width))

    def read(self, times: Sequence[float], shorter_side: int | None) -> UInt8[Tensor, "t c h w"]:
        """Decode from the start to the last requested frame, and keep the requested ones."""
        shown = [max(0, bisect.bisect_right(self.times, t + SAME_TIME_SECONDS) - 1) for t in times]
        decoded = self._decode(sorted(set(shown)), shorter_side)
        return torch.stack([decoded[number] for number in shown])

    def decode_all(self, shorter_side: int | None) -> FrameStack:
        """Decode all frames."""
        decoded = self._decode(range(len(self.times)), shorter_side)
        rate, stack = self.header.frames_per_second, torch.stack([*decoded.values()])
        return FrameStack(stack, times=self.times, frames_per_second=rate, name=self.name, end=self.end)

    def _decode(self, numbers: Sequence[int], shorter_side: int | None) -> dict[int, UInt8[Tensor, "c h w"]]:
        """Frames by their number, ascending, each scaled as soon as it is decoded."""
        from torchvision.transforms.functional import pil_to_tensor

        frames = {}
        with _opened(self.file) as image:
            for number in numbers:
                frame = self._frame(image, number, (self.header.width, self.header.height)).convert("RGB")
                frames[number] = scaled(pil_to_tensor(frame)[None], shorter_side)[0]
        return frames

    def _frame(self, image: Any, number: int, size: tuple[int, int]) -> Any:
        """The image at a frame, decoded, with the duration that Pillow sets then."""
        image.seek(number)
        if image.size != size:  # of a damaged frame, or of another file since the header was read
            got = f"{image.height}×{image.width} at frame {number}"
            raise DataError(str(self.file), expected=f"{size[1]}×{size[0]} pixels", got=got, fix=DAMAGED)
        image.load()
        restart_time_limit()
        return image


def _image_size(file: Path) -> tuple[int, int]:
    """Width and height from the header of an image."""
    with _opened(file) as image:
        return image.size


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An image of Pillow after its header was read. Any error, also in the body, is a DataError that names the file."""
    from PIL import Image

    size = file_size(file, str(file))
    with decoder_errors(str(file)), Image.open(file, formats=FORMATS) as image:
        check_pixels(image, size, str(file))
        yield image


def frame_files(folder: str | Path) -> list[Path]:
    """The images of a folder in the natural order of their names."""
    files = (f for f in Path(folder).iterdir() if f.suffix.lower() in FRAME_SUFFIXES and not f.name.startswith("."))
    return sorted(files, key=lambda f: natural_key(f.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts `2` before `10`."""
    pieces = (piece for piece in re.split(r"(\d+)", name) if piece)
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]
