"""Logarithm, exponential and normal quantile with the same bits on every machine.

Keyed draws may use only float64 operations that IEEE 754 rounds exactly: + − × ÷ √. A library's log, exp or cosine
differs in its last bit between vector widths and versions, so these functions are fixed polynomials and rational
functions instead, evaluated in a fixed order.

`one_thread` does the same for library routines on one machine: sums, Fourier transforms and convolutions round
differently with another number of intra-op threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

_F = TypeVar("_F", bound=Callable)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block with one intra-op thread, as worker processes do, and restore the number after it."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def on_one_thread(function: _F) -> _F:
    """A function that runs with one intra-op thread."""

    @functools.wraps(function)
    def run(*args, **options):
        with one_thread():
            return function(*args, **options)

    return run  # type: ignore[return-value]


def log(x: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Natural logarithm of x > 0, with a relative error below 1e-14.

    x = m 2^e with m in [√½, √2); log m = 2 artanh((m-1)/(m+1)) by its series.
    """
    m, e = torch.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = torch.where(low, m * 2, m), torch.where(low, e - 1, e)
    s = (m - 1) / (m + 1)
    # s² <= .0295, so that the first omitted term is below 2e-20.
    series = _polynomial(s * s, [1 / (2 * i + 1) for i in range(12)])
    return e.to(torch.float64) * 0.6931471805599453 + 2 * s * series


def exp(x: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Exponential of x in [-700, 700], with a relative error below 1e-13.

    x = k log 2 + r with |r| <= (log 2)/2; exp r by its series, and 2^k by setting the exponent bits.
    """
    whole = torch.floor(x * 1.4426950408889634 + 0.5)
    # log 2 in two parts: the first has trailing zero bits, so that its product with a whole number is exact.
    rest = (x - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10
    # |r| <= .347, so that the first omitted term is below 5e-18.
    series = _polynomial(rest, [1 / math.factorial(i) for i in range(14)])
    power_of_two = (whole.to(torch.int64) + 1023 << 52).view(torch.float64)
    return series * power_of_two


def normal_quantile(p: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Inverse of the standard normal distribution function for p in (0, 1): algorithm AS 241 of Wichura 1988."""
    q = p - 0.5
    # By the smaller tail, since the logarithm of a number near 1 keeps few digits; 1 - p is exact for p >= 1/2.
    r = torch.sqrt(-log(torch.minimum(p, 1 - p)))
    near_center = 0.180625 - q * q
    # Not q · (P / Q): the order of operations decides the last bit, which keyed draws keep.
    in_center = q * _polynomial(near_center, _CENTER[0]) / _polynomial(near_center, _CENTER[1])
    outside = torch.copysign(torch.where(r <= 5.0, _ratio(r - 1.6, _MIDDLE), _ratio(r - 5.0, _TAIL)), q)
    return torch.where(q.abs() <= 0.425, in_center, outside)


# Numerator and denominator, constant term first: PPND16 of Wichura 1988, "Algorithm AS 241: the percentage points of
# the normal distribution", with a relative error of about 1e-16.
_CENTER = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
     0.0265321895265761230930, 0.00124266094738807843860, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def _ratio(x: Float64[Tensor, "..."], coefficients: tuple[Sequence[float], Sequence[float]]) -> Float64[Tensor, "..."]:
    """The rational function with the given numerator and denominator."""
    return _polynomial(x, coefficients[0]) / _polynomial(x, coefficients[1])


def _polynomial(x: Float64[Tensor, "..."], coefficients: Sequence[float]) -> Float64[Tensor, "..."]:
    """A polynomial by Horner's rule; the coefficients begin with the constant term."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        # Two operations, never a fused one, which would round once where the processor has it.
        total = total * x + c
    return total
