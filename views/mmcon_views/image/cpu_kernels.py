# pyright: reportGeneralTypeIssues=false
"""Compiled loops of image views on a CPU: an image passes through all steps of a chain while it is in the cache.

A module that is imported only where it runs (`one_pass`), since it needs numba. Numbers are float32 throughout, and
constants therefore named: literals of Python would be float64. `no_type_check` keeps the import hook of jaxtyping from
wrapping what numba compiles.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from mmcon_views.image.cpu_resample import resample as resample
from mmcon_views.image.one_pass import BLUR, BRIGHTNESS, CONTRAST, FLIP, GRAY, HUE, NOTHING, SATURATION, SOLARIZE

ZERO, ONE, TWO, THREE, WHITE, TINY = (np.float32(number) for number in (0, 1, 2, 3, 255, 1e-12))
RED, GREEN, BLUE = (np.float32(weight) for weight in (0.2989, 0.587, 0.114))
# Indices that are sums are `uintp`: of a signed one each access would check the sign, and loops would not vectorize.
# Pixels at a time: the three channels of a strip stay in the first-level cache.
STRIP = 2048

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
_exact = njit(**_OPTIONS)
# Products and sums of the blur in one instruction; sums of a row in lanes.
_fused = njit(fastmath={"contract"}, **_OPTIONS)
_in_lanes = njit(fastmath={"reassoc"}, **_OPTIONS)


@_exact
@no_type_check
def _unit(value):
    value = ZERO if value < ZERO else value
    return ONE if value > ONE else value


@_exact
@no_type_check
def _scale(channel, factor, add):
    for k in range(channel.size):
        channel[k] = _unit(channel[k] * factor + add)


@_exact
@no_type_check
def _saturate(red, green, blue, factor, rest):
    for k in range(red.size):
        add = (red[k] * RED + green[k] * GREEN + blue[k] * BLUE) * rest
        red[k] = _unit(red[k] * factor + add)
        green[k] = _unit(green[k] * factor + add)
        blue[k] = _unit(blue[k] * factor + add)


@_exact
@no_type_check
def _turned(angle, chroma, low, high, turn):
    """A channel after the rotation of the hue: see `color.hue_`."""
    value = abs(abs(angle + chroma * turn) - THREE * chroma) + (low - chroma)
    value = low if value < low else value
    return high if value > high else value


@_exact
@no_type_check
def _rotate(red, green, blue, turns):
    of_red, of_green, of_blue = turns[0], turns[1], turns[2]
    for k in range(red.size):
        r, g, b = red[k], green[k], blue[k]
        high, low = (g, b) if g > b else (b, g)
        high = r if r > high else high
        low = r if r < low else low
        chroma, difference = high - low, g - b
        angle = abs(difference)
        steep = chroma if chroma > TINY else TINY
        angle += (high - r) * (THREE - TWO * (angle / steep))
        angle = -angle if difference < ZERO else angle
        red[k] = _turned(angle, chroma, low, high, of_red)
        green[k] = _turned(angle, chroma, low, high, of_green)
        blue[k] = _turned(angle, chroma, low, high, of_blue)


@_exact
@no_type_check
def _gray(red, green, blue):
    for k in range(red.size):
        value = red[k] * RED + green[k] * GREEN + blue[k] * BLUE
        red[k] = value
        green[k] = value
        blue[k] = value


@_exact
@no_type_check
def _solarize(channel, threshold):
    for k in range(channel.size):
        channel[k] = ONE - channel[k] if channel[k] >= threshold else channel[k]


@_in_lanes
@no_type_check
def _sum(row):
    total = ZERO
    for k in range(row.size):
        total += row[k]
    return total


@_exact
@no_type_check
def _gray_mean(image):
    """The mean of the gray image: sums of rows, then of rows' sums, in float64."""
    means = np.zeros(3)
    for c in range(3):
        for y in range(image.shape[1]):
            means[c] += _sum(image[c, y])
    pixels = image.shape[1] * image.shape[2]
    return np.float32((means[0] * 0.2989 + means[1] * 0.587 + means[2] * 0.114) / pixels)


@_exact
@no_type_check
def _flip(image):
    h, w = image.shape[1:]
    for c in range(3):
        for y in range(h):
            row = image[c, y]
            for k in range(w // 2):
                row[k], row[w - 1 - k] = row[w - 1 - k], row[k]


# --- blur ------------------------------------------------------------------------------------------------------------


@_exact
@no_type_check
def _inside(at, size, constant):
    """The row of a reflected image or, of a constant border, the row after the last."""
    if at < 0 or at >= size:
        at = size if constant else -at if at < 0 else 2 * size - 2 - at
    return np.uintp(at)


@_fused
@no_type_check
def _blur_column(out, source, y, weights, reach, constant):
    """One row of the columns' convolution; rows are indices, since a slice for each would take longer than its sums."""
    h, w, y0 = source.shape[0] - 1, np.uintp(out.size), np.uintp(y)
    for k in range(w):
        out[k] = source[y0, k] * weights[0]
    tap = 1
    while tap + 1 <= reach:  # two at a time: the sums are loaded and stored half as often
        a, b = _inside(y - tap, h, constant), _inside(y + tap, h, constant)
        c, d = _inside(y - tap - 1, h, constant), _inside(y + tap + 1, h, constant)
        near, far = weights[tap], weights[tap + 1]
        for k in range(w):
            out[k] += (source[a, k] + source[b, k]) * near + (source[c, k] + source[d, k]) * far
        tap += 2
    if tap == reach:
        a, b, near = _inside(y - tap, h, constant), _inside(y + tap, h, constant), weights[tap]
        for k in range(w):
            out[k] += (source[a, k] + source[b, k]) * near


@_fused
@no_type_check
def _blur_row(out, padded, weights, reach):
    """One row's convolution from a row with `reach` more pixels on each side."""
    w, center = np.uintp(out.size), np.uintp(reach)
    for k in range(w):
        out[k] = padded[center + k] * weights[0]
    tap = 1
    while tap + 1 <= reach:
        a, b = np.uintp(reach - tap), np.uintp(reach + tap)
        c, d = np.uintp(reach - tap - 1), np.uintp(reach + tap + 1)
        near, far = weights[tap], weights[tap + 1]
        for k in range(w):
            out[k] += (padded[a + k] + padded[b + k]) * near + (padded[c + k] + padded[d + k]) * far
        tap += 2
    if tap == reach:
        near, b = weights[tap], np.uintp(2 * reach)
        for k in range(w):
            out[k] += (padded[k] + padded[b + k]) * near
    for k in range(w):  # weights may sum to slightly above 1
        out[k] = ONE if out[k] > ONE else out[k]


@_exact
@no_type_check
def _blur(image, weights, reach, outside):
    """Columns, then rows, with reflected borders or, unless `outside` is NaN, that gray."""
    h, w = image.shape[1:]
    constant = not np.isnan(outside)
    source = np.empty((h + 1, w), np.float32)
    source[h] = outside
    padded = np.empty(w + 2 * reach, np.float32)
    middle = padded[reach : reach + w]
    for c in range(3):
        source[:h] = image[c]
        for y in range(h):
            _blur_column(middle, source, y, weights, reach, constant)
            for k in range(reach):
                padded[reach - 1 - k] = outside if constant else padded[reach + k + 1]
                padded[reach + w + k] = outside if constant else padded[reach + w - 2 - k]
            _blur_row(image[c, y], padded, weights, reach)


# --- an image through its steps --------------------------------------------------------------------------------------


@_exact
@no_type_check
def _load_planes(source, image, mirrored):
    h, w = image.shape[1:]
    last = np.uintp(w - 1)
    for c in range(3):
        for y in range(h):
            row, out = source[(c * h + y) * w : (c * h + y + 1) * w], image[c, y]
            if mirrored:
                for k in range(np.uintp(w)):
                    out[last - k] = np.float32(row[k]) / WHITE
            else:
                for k in range(np.uintp(w)):
                    out[k] = np.float32(row[k]) / WHITE


@_exact
@no_type_check
def _load_interleaved(source, image, mirrored):
    h, w = image.shape[1:]
    last, step, one, two = np.uintp(w - 1), np.uintp(3), np.uintp(1), np.uintp(2)
    for y in range(h):
        row, red, green, blue = source[3 * y * w : 3 * (y + 1) * w], image[0, y], image[1, y], image[2, y]
        if mirrored:
            for k in range(np.uintp(w)):
                red[last - k] = np.float32(row[step * k]) / WHITE
                green[last - k] = np.float32(row[step * k + one]) / WHITE
                blue[last - k] = np.float32(row[step * k + two]) / WHITE
        else:
            for k in range(np.uintp(w)):
                red[k] = np.float32(row[step * k]) / WHITE
                green[k] = np.float32(row[step * k + one]) / WHITE
                blue[k] = np.float32(row[step * k + two]) / WHITE


@_exact
@no_type_check
def _adjust(image, codes, values, begin, end, mean):
    """The steps from `begin` to `end`, strip by strip; each result of a pixel depends on that pixel and the mean."""
    pixels = image.shape[1] * image.shape[2]
    flat = image.reshape(3, pixels)
    for start in range(0, pixels, STRIP):
        stop = min(start + STRIP, pixels)
        red, green, blue = flat[0, start:stop], flat[1, start:stop], flat[2, start:stop]
        for step in range(begin, end):
            code, value = codes[step], values[step]
            if code in (BRIGHTNESS, CONTRAST):
                add = mean * value[1] if code == CONTRAST else ZERO
                _scale(red, value[0], add)
                _scale(green, value[0], add)
                _scale(blue, value[0], add)
            elif code == SATURATION:
                _saturate(red, green, blue, value[0], value[1])
            elif code == HUE:
                _rotate(red, green, blue, value)
            elif code == GRAY:
                _gray(red, green, blue)
            elif code == SOLARIZE:
                _solarize(red, value[0])
                _solarize(green, value[0])
                _solarize(blue, value[0])


@_exact
@no_type_check
def _run_steps(image, begin, codes, values, weights, reach, outside):
    while begin < codes.size:
        code, end = codes[begin], begin + 1
        if code == FLIP:
            _flip(image)
        elif code == BLUR:
            _blur(image, weights, reach, outside)
        elif code != NOTHING:
            mean = _gray_mean(image) if code == CONTRAST else ZERO
            # A contrast needs the mean after the steps before it, and a flip or a blur all pixels.
            while end < codes.size and codes[end] != CONTRAST and codes[end] != FLIP and codes[end] != BLUR:
                end += 1
            _adjust(image, codes, values, begin, end, mean)
        begin = end


@_exact
@no_type_check
def run(source, interleaved, images, codes, values, weights, reaches, outside):
    """Each image through its steps: in place, or from bytes (`c h w` or interleaved `h w c`) if `source` has them."""
    for i in range(len(images)):
        # A flip that comes first happens as the bytes are read.
        mirrored = source.size > 0 and codes[i, 0] == FLIP
        if source.size > 0:
            if interleaved:
                _load_interleaved(source[i], images[i], mirrored)
            else:
                _load_planes(source[i], images[i], mirrored)
        _run_steps(images[i], 1 if mirrored else 0, codes[i], values[i], weights[i], reaches[i], outside)
