"""Resample a span of a recording so that it equals the same span of the whole resampled recording.

Windowed-sinc interpolation as torchaudio defines it: six zero crossings on each side, a Hann window, and a rolloff of
0.99. Rates with a large common divisor take torchaudio's kernel, which has one filter for each phase. Others, such as
44,101 and 16,000 Hz, would need a kernel of 700 million entries; there the filter is evaluated at each output sample,
which is exact for any pair of rates and about ten times as slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.portable_math import on_one_thread

# torchaudio's kernel has about as many entries as the product of the two rates in lowest terms.
_LARGEST_KERNEL = 2_000_000
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99
_NUMBERS_AT_ONCE = 1 << 20


def resampled_length(length: int, old_hz: int, new_hz: int) -> int:
    """The number of samples after resampling, rounded up."""
    return -(-length * new_hz // old_hz)


@on_one_thread
def resample_span(
    read: Callable[[int, int], Float[Tensor, "c _"]], total: int, old_hz: int, new_hz: int, start: int, length: int
) -> Float[Tensor, "c {length}"]:
    """Resample a span.

    Args:
        read: reads samples at the old rate: (start, length) -> samples.
        total: the number of samples at the old rate; zeros follow, as they precede the first.
        old_hz: the rate of `read`.
        new_hz: the rate of the result.
        start: the first sample of the span, at the new rate.
        length: the number of samples of the span, at the new rate.
    """
    # In lowest terms the ratio gives the smallest kernel, and the blocks that make a span exact.
    g = math.gcd(old_hz, new_hz)
    old, new = old_hz // g, new_hz // g
    width = math.ceil(_ZERO_CROSSINGS * old / (_ROLLOFF * min(old, new)))
    by_kernel = old * new <= _LARGEST_KERNEL
    if by_kernel:
        # A block of `new` samples depends on a block of `old` samples and one filter width on both sides.
        margin = math.ceil((width + 1) / old) + 1
        first = max(0, start // new - margin) * old
        stop = (math.ceil((start + length) / new) + margin) * old
    else:
        first = max(0, start * old // new - width)
        stop = (start + length) * old // new + width + 2
    samples = read(first, max(0, min(stop, total) - first))
    if by_kernel:
        at = start - first // old * new
        return resampler(old, new)(samples)[:, at : at + length].contiguous()
    return _interpolate(samples, first, old, new, start, length, width)


@lru_cache(maxsize=32)
def resampler(old: int, new: int) -> nn.Module:
    """Torchaudio's windowed-sinc resampler for a pair of rates, cached."""
    import torchaudio

    g = math.gcd(old, new)
    return torchaudio.transforms.Resample(
        old // g, new // g, lowpass_filter_width=_ZERO_CROSSINGS, rolloff=_ROLLOFF, resampling_method="sinc_interp_hann"
    )


def _interpolate(
    samples: Float[Tensor, "c _"], first: int, old: int, new: int, start: int, length: int, width: int
) -> Float[Tensor, "c {length}"]:
    """Evaluate the filter at each output sample; `samples` begin at sample `first` of the recording."""
    taps = torch.arange(-width, width + 1)
    padded = nn.functional.pad(samples, (width + 1, 2 * width + 2))
    cutoff = min(old, new) * _ROLLOFF / old
    out, block = samples.new_zeros(len(samples), length), max(1, _NUMBERS_AT_ONCE // len(taps))
    for begin in range(0, length, block):
        at = torch.arange(start + begin, start + min(begin + block, length)) * old
        whole, fraction = at // new, (at % new).double() / new
        t = ((taps - fraction[:, None]) * cutoff).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = torch.cos(t * (math.pi / (2 * _ZERO_CROSSINGS))).square()
        weights = (torch.sinc(t) * window * cutoff).to(samples.dtype)
        index = (whole - first + width + 1)[:, None] + taps
        out[:, begin : begin + len(at)] = (padded[:, index] * weights).sum(-1)
    return out
