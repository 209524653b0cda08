"""Handles on images: the header gives the size of an image; only the requested pixels are decoded.

    image = ImageHandle("photo.jpg")
    image.facts                                        # {"channels": 3, "height": 1536, "width": 2048}
    image.decode(region=(0, 512, 1024, 1024), size=(224, 224))

What a file may contain, and how it is handled:

- *orientation*: the EXIF tag is applied, also to the facts;
- *gray, palette, CMYK, YCbCr, …*: converted to RGB (to gray if `channels=1`);
- *alpha*: composited over `background`, by default white, so that colors of fully transparent pixels do not appear;
- *16 bits*: the upper 8 are kept; 32-bit integers beyond that range, and floats, raise DataError;
- *animations*: the first frame;
- *truncated or corrupt files*: DataError with the name of the sample. Nothing is repaired silently.
"""

from __future__ import annotations

import io
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from mmcon.errors import DataError, InputError

Region = tuple[int, int, int, int]
_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on swap height and width


@final
class ImageHandle:
    """An opened, undecoded image.

    Args:
        source: a path, the bytes of a file, an array `h w` or `h w c` (uint8, or 16 bits), or a uint8 tensor `c h w`.
        id: the name of the sample in messages; by default the path.
        channels: the channels that `decode` returns: 3 (RGB) or 1 (gray).
        background: the color, 0 to 255, behind transparent pixels.
    """

    def __init__(
        self,
        source: str | Path | bytes | Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."],
        *,
        id: str = "",
        channels: int = 3,
        background: tuple[int, int, int] = (255, 255, 255),
    ) -> None:
        if channels not in (1, 3):
            raise InputError("ImageHandle", expected="channels as 1 (gray) or 3 (RGB)", got=str(channels))
        self.source, self.channels, self.background = source, channels, background
        self.id = id or (str(source) if isinstance(source, str | Path) else f"an image from {type(source).__name__}")

    def __repr__(self) -> str:
        return f"ImageHandle({self.id!r})"

    @cached_property
    def facts(self) -> dict[str, int]:
        """Channels, height and width of the decoded image; only the header is read.

        Raises:
            DataError: the header cannot be read.
        """
        with self._open() as image:
            width, height = image.size
            try:
                # In a PNG the tag may follow the pixels, so that reading it may fail on broken pixels.
                turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise self._unreadable(error) from error
            if turned:
                width, height = height, width
        return {"channels": self.channels, "height": height, "width": width}

    def decode(self, region: Region | None = None, size: tuple[int, int] | None = None) -> UInt8[Tensor, "c h w"]:
        """Decode the pixels.

        Args:
            region: top, left, height and width of the requested region, in pixels of the full image; None: all.
            size: the height and width that the region will be resized to. A JPEG is then decoded at 1/2, 1/4 or 1/8 of
                its scale, as long as the region stays at least this large; its edges are rounded to the coarser pixels.

        Returns:
            The pixels in the layout of decoders (channels last in memory).

        Raises:
            DataError: the file cannot be decoded.
            InputError: the region is not inside the image.
        """
        facts = self.facts
        top, left, height, width = region or (0, 0, facts["height"], facts["width"])
        inside = top >= 0 and left >= 0 and top + height <= facts["height"] and left + width <= facts["width"]
        if not inside or height < 1 or width < 1:
            raise InputError(
                f"{self!r}.decode",
                expected=f"a region inside {facts['height']} × {facts['width']} pixels",
                got=f"top {top}, left {left}, height {height}, width {width}",
            )
        pixels = self._pixels(min(height // size[0], width // size[1]) if size and min(size) > 0 else 1)
        rows = _scaled_range(top, height, pixels.shape[0] / facts["height"])
        columns = _scaled_range(left, width, pixels.shape[1] / facts["width"])
        return torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1)

    def _pixels(self, shrink: int) -> UInt8[np.ndarray, "h w c"]:
        """Decode the full image; a JPEG at 1/shrink of its scale or larger."""
        with self._open() as image:
            width, height = image.size
            try:
                if shrink >= 2 and image.format == "JPEG":
                    # libjpeg scales before the inverse transform, which costs less than to decode all pixels.
                    image.draft(image.mode, (-(-width // shrink), -(-height // shrink)))
                upright = ImageOps.exif_transpose(image)
                flat = np.array(_flatten(upright, self.channels, self.background))
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise self._unreadable(error) from error
        return flat if flat.ndim == 3 else flat[:, :, None]

    def _open(self) -> Image.Image:
        try:
            with warnings.catch_warnings():
                # A photo beyond 90 megapixels is large, not an attack; at twice that Pillow still raises.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                if isinstance(self.source, bytes):
                    return Image.open(io.BytesIO(self.source))
                if isinstance(self.source, str | Path):
                    return Image.open(self.source)
                return Image.fromarray(self._array(self.source))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error

    def _array(self, source: Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."]) -> UInt8[np.ndarray, "h w *c"]:
        array = source.permute(1, 2, 0).cpu().numpy() if isinstance(source, Tensor) and source.dim() == 3 else source
        array = np.asarray(array)
        channels = array.shape[2] if array.ndim == 3 else 1
        if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape or array.dtype.kind not in "u":
            raise DataError(
                repr(self),
                expected="an array `h w` or `h w c`, or a tensor `c h w`, of 1, 3 or 4 channels of unsigned bytes",
                got=f"{array.dtype} of shape {array.shape}",
                fix="turn floats in [0, 1] to bytes with (x * 255).round().astype(np.uint8)",
            )
        if array.dtype != np.uint8:
            array = (array >> 8 * (array.dtype.itemsize - 1)).astype(np.uint8)
        return np.ascontiguousarray(array[:, :, 0] if channels == 1 and array.ndim == 3 else array)

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            repr(self),
            expected="a readable image",
            got=f"{type(error).__name__}: {error}",
            fix="open it in an image viewer; remove it, or save it again",
        )


def _scaled_range(start: int, length: int, scale: float) -> slice:
    """A range of pixels at another scale: rounded, and at least one pixel."""
    first = round(start * scale)
    return slice(first, max(round((start + length) * scale), first + 1))


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Convert any mode of Pillow to 8-bit RGB or gray, and composite transparent pixels over the background."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; save them as 8 or 16 bits")
    if image.mode.startswith("I"):
        # Modes I and I;16 hold 16 bits, which Pillow's own conversion would clip at 255.
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"numbers from {wide.min()} to {wide.max()}, beyond 16 bits")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (*background, 255)), over)
    return image.convert("RGB" if channels == 3 else "L")


def open_images(sources: Any, **options: Any) -> list[ImageHandle]:
    """Open several images; options as for ImageHandle."""
    return [source if isinstance(source, ImageHandle) else ImageHandle(source, **options) for source in sources]
