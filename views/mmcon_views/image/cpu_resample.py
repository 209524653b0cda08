# pyright: reportGeneralTypeIssues=false
"""Compiled resampling of small stacked images on a CPU: `resample.taps` and its sums, an image at a time in the cache.

Imported by `cpu_kernels` only. Weights are computed in float64 in the order of `resample.taps`, and sums go tap by tap,
so that an image gets the same numbers in any batch.
"""

from __future__ import annotations

from math import floor
from typing import no_type_check

import numpy as np
from numba import njit

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
_exact = njit(**_OPTIONS)
# A product and its sum in one instruction, as in torch's `addcmul`.
_fused = njit(fastmath={"contract"}, **_OPTIONS)

ZERO, ONE = np.float32(0), np.float32(1)


@_exact
@no_type_check
def _filter(x, cubic):
    x = abs(x)
    if not cubic:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


@_exact
@no_type_check
def _taps(length, size, cubic, scale, starts, counts, weights):
    """For each of `size` output pixels, the first pixel, the number of taps and their weights."""
    step = length / size
    wide = max(step, 1.0)
    support = (2.0 if cubic else 1.0) * wide
    for i in range(size):
        center = (i + 0.5) * step
        first = max(floor(center - support + 0.5), 0)
        last = min(floor(center + support + 0.5), length)
        starts[i], counts[i] = first, last - first
        row = weights[i]
        total = 0.0
        for tap in range(last - first):
            row[tap] = _filter((first + tap - center + 0.5) / wide, cubic)
            total += row[tap]
        for tap in range(last - first):
            row[tap] = row[tap] / total * scale


@_fused
@no_type_check
def _sum_rows(source, out, starts, counts, weights):
    """Weighted sums of rows of `source`, one for each row of `out`."""
    for y in range(out.shape[0]):
        row = out[y]
        first, weight = np.uintp(starts[y]), np.float32(weights[y, 0])
        for k in range(row.size):
            row[k] = source[first, k] * weight
        for tap in range(1, counts[y]):
            at, weight = np.uintp(starts[y] + tap), np.float32(weights[y, tap])
            for k in range(row.size):
                row[k] += source[at, k] * weight


@_exact
@no_type_check
def resample(images, boxes, out, cubic, scale):
    """A region (top, left, height, width) of each image at the size of `out`.

    Args:
        images: bytes or floats `b c h w`, in any layout.
        boxes: the regions.
        out: the result `b c h w`, float32.
        cubic: Keys' cubic, or a triangle.
        scale: the factor of the values.
    """
    channels, height, width = out.shape[1:]
    most = images.shape[2] + images.shape[3]
    down, across = np.empty((height, most)), np.empty((width, most))
    starts, counts = np.empty((2, max(height, width)), np.int64), np.empty((2, max(height, width)), np.int64)
    for i in range(len(images)):
        top, left, h, w = boxes[i]
        _taps(h, height, cubic, scale, starts[0], counts[0], down)
        _taps(w, width, cubic, 1.0, starts[1], counts[1], across)
        region, rows = np.empty((h, w), np.float32), np.empty((height, w), np.float32)
        turned, columns = np.empty((w, height), np.float32), np.empty((width, height), np.float32)
        for c in range(channels):
            source = images[i, c, top : top + h, left : left + w]
            for y in range(h):
                for x in range(w):
                    region[y, x] = np.float32(source[y, x])
            _sum_rows(region, rows, starts[0], counts[0], down)
            # Columns are summed as rows of the turned image, so that the loops are along memory.
            for x in range(w):
                for y in range(height):
                    turned[x, y] = rows[y, x]
            _sum_rows(turned, columns, starts[1], counts[1], across)
            for y in range(height):
                for x in range(width):
                    value = columns[x, y]  # weights sum to 1 up to rounding
                    value = ZERO if value < ZERO else value
                    out[i, c, y, x] = ONE if value > ONE else value
