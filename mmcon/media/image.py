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
- *odd EXIF tags*: an image whose tags cannot be read is taken as upright;
- *very large images*: DataError before decoding, above `max_pixels` or if the file is far too small for its pixels;
- *FIFOs, devices, sockets*: DataError, without opening them;
- *truncated or corrupt files*, and files that changed after their header was read: DataError with the name of the
  sample. Nothing is repaired silently.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media.decoding import decoder_errors, file_size, pillow_is_quiet
from mmcon.media.image_pixels import orientation_of, read_region, upright_size

_log = logging.getLogger(__name__)

Region = tuple[int, int, int, int]

MAX_PIXELS = 100 << 20
"""The largest accepted image by default: cameras have up to 102 megapixels. Decoding takes about 7 bytes a pixel."""

# Decoders that hold several copies of an image, or all its coefficients, at once; a third of the pixels is accepted.
_HUNGRY = ("WEBP", "AVIF", "JPEG2000")
SCALES = (1, 2, 4, 8)
"""A JPEG is decoded at one of these reductions."""

# Larger images of fewer bytes a pixel are bombs or cut off: the best compressors need a byte for some hundred pixels.
_SMALL_PIXELS, PIXELS_PER_BYTE = 1 << 24, 4096
# No format that starts other programs (EPS) or hands over to plug-ins (WMF, HDF5).
# fmt: off
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "DIB", "ICO", "PCX", "PSD", "DDS",
    "SGI", "QOI",
)
# fmt: on


@final
class ImageHandle:
    """An opened, undecoded image.

    Args:
        source: a path, the bytes of a file, an array `h w` or `h w c` (uint8, or 16 bits), a uint8 tensor `c h w`, or
            an image of Pillow.
        id: the name of the sample in messages; by default the path.
        channels: the channels that `decode` returns: 3 (RGB) or 1 (gray).
        background: the color, 0 to 255, behind transparent pixels.
        max_pixels: the largest accepted image, up to Pillow's own limit; WebP, AVIF, JPEG 2000 and progressive JPEG up
            to a third of it, since their decoders take more memory. An encoded image has at most 8 bytes for each of
            these pixels.
    """

    def __init__(
        self,
        source: str | Path | bytes | Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."] | Image.Image,
        *,
        id: str = "",
        channels: int = 3,
        background: tuple[int, int, int] = (255, 255, 255),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if channels not in (1, 3):
            raise InputError("ImageHandle", expected="channels as 1 (gray) or 3 (RGB)", got=str(channels))
        self.source, self.channels, self.background, self.max_pixels = source, channels, background, max_pixels
        # Known once the header was read: whether it is a JPEG, one without need of a conversion, and the file then.
        self._is_jpeg, self._is_upright_rgb, self._file_then = False, False, ()
        self.id = id or (str(source) if isinstance(source, str | Path) else f"an image from {type(source).__name__}")

    def __repr__(self) -> str:
        return f"ImageHandle({self.id!r})"

    @property
    def content(self) -> tuple[Hashable, ...]:
        """Equal for handles that decode the same pixels: of one file, or of one object, in the same way."""
        source = self.source if isinstance(self.source, str | Path) else id(self.source)
        return source, self.channels, self.background, self.max_pixels

    @cached_property
    def facts(self) -> dict[str, int]:
        """Channels, height and width of the decoded image; only the header is read.

        Raises:
            DataError: the header cannot be read.
        """
        self._file_then = self._file_now()
        with self._opened() as image:
            width, height = upright_size(image)
            self._is_jpeg = image.format == "JPEG"
            self._is_upright_rgb = image.mode == "RGB" and orientation_of(image) == 1
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
        return self.decode_regions([(region, size)])[0]

    def decode_regions(
        self, regions: Sequence[tuple[Region | None, tuple[int, int] | None]]
    ) -> list[UInt8[Tensor, "c h w"]]:
        """Decode several regions, each with its size, as `decode` would; the file is decoded once for each scale.

        Raises:
            DataError: the file cannot be decoded.
            InputError: a region is not inside the image.
        """
        by_scale: dict[int, list[int]] = {}
        checked = []
        for number, (region, size) in enumerate(regions):
            checked.append(self._check_region(region))
            by_scale.setdefault(self._scale(checked[-1], size), []).append(number)
        pixels: dict[int, Tensor] = {}
        for scale, numbers in by_scale.items():
            whole = self._whole_jpeg() if scale == 1 else None
            if whole is not None:
                for number in numbers:
                    top, left, height, width = checked[number]
                    pixels[number] = whole[:, top : top + height, left : left + width]
                continue
            with self._checked() as (image, upright):
                if scale > 1:
                    # libjpeg scales before the inverse transform, which costs less than to decode all pixels.
                    image.draft(image.mode, (image.width // scale, image.height // scale))
                image.load()
                for number in numbers:
                    options: Any = {"channels": self.channels, "background": self.background}
                    found = read_region(image, checked[number], upright, **options)
                    pixels[number] = torch.from_numpy(found).permute(2, 0, 1)
        return [pixels[number] for number in range(len(regions))]

    def _whole_jpeg(self) -> UInt8[Tensor, "3 h w"] | None:
        """An upright JPEG in color by torchvision: the same pixels as by Pillow, which copies them twice more.

        Its header is not read again, unless the file was changed.
        """
        if not (self._is_jpeg and self._is_upright_rgb and self.channels == 3) or self._file_now() != self._file_then:
            return None
        from torchvision.io import decode_jpeg

        with decoder_errors(repr(self)):
            try:
                # Not torchvision's `read_file`, whose process ends where a file is cut off while it is read.
                if isinstance(self.source, bytes):
                    file = np.frombuffer(bytearray(self.source), np.uint8)
                else:
                    file = np.fromfile(cast(str, self.source), np.uint8)
                whole = decode_jpeg(torch.from_numpy(file))
            # Pillow reads some files that torchvision does not, and names the fault of others. Without its extension
            # for images, torchvision lacks the function.
            except (OSError, RuntimeError, AttributeError) as error:
                _log.info("%r: torchvision does not decode it (%s), Pillow is tried", self, error)
                return None
        size = self.facts["height"], self.facts["width"]
        return whole if isinstance(whole, Tensor) and whole.shape == (3, *size) else None

    def _file_now(self) -> tuple[int, ...]:
        """What changes with the file: its number on the disk, size and time of change. Nothing if there is none."""
        if not isinstance(self.source, str | Path):
            return ()
        try:
            status = os.stat(self.source)
        except (OSError, ValueError):  # `file_size` tells which
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _check_region(self, region: Region | None) -> Region:
        facts = self.facts
        top, left, height, width = region or (0, 0, facts["height"], facts["width"])
        inside = top >= 0 and left >= 0 and top + height <= facts["height"] and left + width <= facts["width"]
        if not inside or height < 1 or width < 1:
            raise InputError(
                f"{self!r}.decode",
                expected=f"a region inside {facts['height']} × {facts['width']} pixels",
                got=f"top {top}, left {left}, height {height}, width {width}",
            )
        return top, left, height, width

    def _scale(self, region: Region, size: tuple[int, int] | None) -> int:
        """The reduction, 1, 2, 4 or 8, at which a JPEG is decoded for a region that is resized to a size."""
        shrink = min(region[2] // size[0], region[3] // size[1]) if size and min(size) > 0 else 1
        if shrink < 2 or not self._is_jpeg:
            return 1
        # The whole image has at least these sides after the reduction.
        sides = [self.facts[name] // -(-self.facts[name] // shrink) for name in ("height", "width")]
        return max(scale for scale in SCALES if scale <= min(sides))

    @contextmanager
    def _checked(self) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
        """The image, not yet decoded, and the width and height of the full upright image."""
        facts = self.facts
        with self._opened() as image:
            upright = upright_size(image)
            if upright != (facts["width"], facts["height"]):
                got = f"{upright[1]} × {upright[0]}"
                expected = f"{facts['height']} × {facts['width']} pixels, as its header said before"
                raise DataError(repr(self), expected=expected, got=got, fix="do not replace files during a run")
            yield image, upright

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        """The image after its header was read; any error becomes a DataError, also one in the body of the statement."""
        fix = "open it in an image viewer; remove it, or save it again"
        with decoder_errors(repr(self), expected="a readable image", fix=fix), pillow_is_quiet():
            if isinstance(self.source, Image.Image):
                yield self.source.copy()  # decoding at a scale would change the caller's image
                return
            if not isinstance(self.source, str | Path | bytes):
                yield Image.fromarray(self._array(self.source))
                return
            file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
            size = len(self.source) if isinstance(self.source, bytes) else file_size(self.source, repr(self))
            if size > 8 * self.max_pixels:
                raise _too_large(repr(self), f"at most {8 * self.max_pixels:,} bytes", f"{size:,}")
            with Image.open(file, formats=FORMATS) as image:
                check_pixels(image, size, repr(self), self.max_pixels)
                yield image

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


def check_pixels(image: Image.Image, file_size: int, where: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise DataError before pixels are decoded that would take too much memory.

    Args:
        image: after its header was read.
        file_size: the bytes of the file.
        where: the sample in the message.
        max_pixels: see `ImageHandle`.
    """
    pixels, kind = image.width * image.height, image.format
    limit = max_pixels // (3 if kind in _HUNGRY or "progressive" in image.info else 1)
    if pixels > limit:
        raise _too_large(where, f"at most {limit:,} pixels ({kind})", f"{image.height:,} × {image.width:,}")
    if pixels > max(_SMALL_PIXELS, PIXELS_PER_BYTE * file_size):
        expected = f"a byte for {PIXELS_PER_BYTE:,} pixels"
        raise _too_large(where, expected, f"{file_size:,} bytes for {pixels:,} pixels")


def _too_large(where: str, expected: str, got: str) -> DataError:
    fix = "remove the file or scale it down, or raise the limit with max_pixels"
    return DataError(where, expected=f"an image of {expected}", got=got, fix=fix)


def open_images(sources: Any, **options: Any) -> list[ImageHandle]:
    """Open several images; options as for ImageHandle."""
    return [source if isinstance(source, ImageHandle) else ImageHandle(source, **options) for source in sources]
