"""From an opened image of Pillow to an array: orientation, a region in strips, any mode to 8-bit RGB or gray.

Only the region is converted, a strip at a time. So the memory beside the decoded image and the result is that of a
strip, and a small region of a large image costs little.
"""

from __future__ import annotations

import io
import logging
import struct
from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_log = logging.getLogger(__name__)

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101  # tags of EXIF and TIFF
# By orientation: how the stored image is turned, whether rows and columns swap, and whether columns and rows are
# counted from the other end.
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: (Image.Transpose.ROTATE_180, False, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False, False),
    6: (Image.Transpose.ROTATE_270, True, False, True),
    7: (Image.Transpose.TRANSVERSE, True, True, True),
    8: (Image.Transpose.ROTATE_90, True, True, False),
}
_PNG_TAGS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_STRIP_PIXELS = 1 << 20


def orientation_of(image: Image.Image) -> int:
    """The orientation, 1 to 8, from the EXIF tags; 1 if they cannot be read, as image viewers have it."""
    is_png = image.format == "PNG"
    if is_png and "exif" not in image.info and _tags_may_follow(image):
        image.load()  # broken pixels raise here, outside the handling of tags
    try:
        # Pillow's own method for PNG decodes all pixels, whether or not something follows them.
        found = (Image.Image.getexif(image) if is_png else image.getexif()).get(_ORIENTATION, 1)
        return found if found in _TURNS else 1
    except Exception as error:  # odd tags raise struct.error, TypeError, AttributeError and others
        _log.info("EXIF tags that cannot be read (%s: %s): the image is taken as upright", type(error).__name__, error)
        return 1


def _tags_may_follow(image: Image.Image) -> bool:
    """Whether a PNG, before it is decoded, has tags or texts behind its pixels, or no end; heads of chunks are read."""
    file = getattr(image, "fp", None)
    if file is None:
        return False
    before, has_pixels = file.tell(), False
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND" or (has_pixels and kind in _PNG_TAGS):
                return kind != b"IEND"
            has_pixels |= kind == b"IDAT"
            file.seek(length + 4, io.SEEK_CUR)
        return True
    finally:
        file.seek(before)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The width and height of the image as it is shown; only the header is read, of a PNG the heads of all chunks."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # some versions of Pillow turn the size of a TIFF when they open it
        width, height = image.tag_v2.get(_WIDTH, width), image.tag_v2.get(_HEIGHT, height)
    return (height, width) if orientation_of(image) >= 5 else (width, height)


def read_region(
    image: Image.Image,
    region: tuple[int, int, int, int],
    full_size: tuple[int, int],
    *,
    channels: int,
    background: tuple[int, int, int],
) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a region of the upright image.

    Args:
        image: after `load`, at full scale or smaller.
        region: top, left, height and width, in pixels of the full upright image.
        full_size: the width and height of the full upright image.
        channels: 3 for RGB, 1 for gray.
        background: the color behind transparent pixels.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; save them as 8 or 16 bits")
    if image.mode == "I":  # of the whole image, so that all views of a sample fail or none
        low, high = cast(tuple[int, int], image.getextrema())
        if low < 0 or high > 65535:
            raise ValueError(f"numbers from {low} to {high}, beyond 16 bits")
    orientation = orientation_of(image)
    loaded = image.size[::-1] if orientation >= 5 else image.size
    left, right = _scaled_range(region[1], region[3], full_size[0], loaded[0])
    top, bottom = _scaled_range(region[0], region[2], full_size[1], loaded[1])
    height, width = bottom - top, right - left
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    step = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        box = left, top + start, right, top + stop
        strip = np.asarray(_flatten(_upright_crop(image, box, orientation), channels, background))
        pixels[start:stop] = strip if strip.ndim == 3 else strip[:, :, None]
    return pixels


def _scaled_range(start: int, length: int, full: int, loaded: int) -> tuple[int, int]:
    """A range of pixels at another scale: rounded, and at least one pixel."""
    first = min(round(start * (loaded / full)), loaded - 1)
    return first, max(round((start + length) * (loaded / full)), first + 1)


def _upright_crop(image: Image.Image, box: tuple[int, int, int, int], orientation: int) -> Image.Image:
    """A region (left, top, right, bottom) of the upright image, which is turned after it was cut out."""
    if orientation not in _TURNS:
        return image.crop(box)
    turn, swaps, flips_columns, flips_rows = _TURNS[orientation]
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if swaps else box
    if flips_columns:
        left, right = image.width - right, image.width - left
    if flips_rows:
        top, bottom = image.height - bottom, image.height - top
    return image.crop((left, top, right, bottom)).transpose(turn)


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Convert any mode of Pillow to 8-bit RGB or gray, and composite transparent pixels over the background."""
    if image.mode.startswith("I"):
        # Modes I and I;16 hold 16 bits, which Pillow's own conversion would clip at 255.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (*background, 255)), over)
    wanted = "RGB" if channels == 3 else "L"
    return image if image.mode == wanted else image.convert(wanted)
