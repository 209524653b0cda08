"""Keyed randomness: a random function is an ordinary function of a key.

Three rules hold everywhere in the house.

1. A draw is a function of its key and its name, and of nothing else: not of earlier draws, the batch, the worker, the
   process or the device. Keys live on the CPU and so do draws.
2. The fields of a key are *mixed*, never added, so that (1, 2) and (2, 1) differ; draws are *named*, never counted, so
   that adding one shifts no other.
3. Draws use integers and + − × ÷ √ alone; where a logarithm or a cosine is needed, a fixed polynomial in float64, since
   library functions differ between vector widths. So a draw is the same bits on any machine.

>>> k = keys(seed=0, epoch=3, sample=[11, 12], view=1)
>>> k.child("crop").uniform("area", 0.08, 1.0).shape
torch.Size([2])

Mixing is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcon.errors import InputError

FIELDS = ("seed", "epoch", "sample", "occurrence", "view")

# SplitMix64's constants as signed 64-bit integers (torch multiplies int64 modulo 2^64).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
# Mixing itself is done by NumPy, which has unsigned integers and a third of torch's cost for a call on few numbers.
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def keys(
    *,
    seed: int | Tensor | Sequence[int] = 0,
    epoch: int | Tensor | Sequence[int] = 0,
    sample: int | Tensor | Sequence[int] = 0,
    view: int | Tensor | Sequence[int] = 0,
    occurrence: int | Tensor | Sequence[int] = 0,
    step: int | None = None,
) -> Keys:
    """Make a table of keys, one a sample; single numbers are repeated to the length of the others.

    Args:
        seed: the run's seed.
        epoch: the epoch, or any counter that should give new draws.
        sample: stable identities of the samples (see `stable_id`), not positions.
        view: which view of the sample.
        occurrence: tells repeats of one sample in an epoch apart.
        step: the global step, for generators whose scope is the batch.

    Returns:
        Keys with `n` rows.

    Raises:
        InputError: a field is not of whole numbers, or lengths differ.
    """
    columns = [
        _integers(name, value) for name, value in zip(FIELDS, (seed, epoch, sample, occurrence, view), strict=True)
    ]
    lengths = {len(column) for column in columns if column.dim()}
    if len(lengths) > 1:
        got = {name: len(c) for name, c in zip(FIELDS, columns, strict=True) if c.dim()}
        raise InputError("keys", expected="fields of one length (or single numbers)", got=str(got))
    n = lengths.pop() if lengths else 1
    return Keys(torch.stack([column.expand(n) for column in columns], dim=1), step=step)


@dataclass(frozen=True, eq=False)
class Keys:
    """A table of keys: five fields a row, and the path of names that leads to the draw at hand.

    Attributes:
        fields: `n 5` int64: seed, epoch, sample, occurrence, view.
        path: names from the root of the chain to here.
        dropped: fields that are left out of the mixing, in the order of `FIELDS`.
        step: the global step, or None.
        of_batch: whether the keys are those of a whole global batch (see `for_batch`).
    """

    fields: Tensor
    path: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    step: int | None = None
    of_batch: bool = False
    _state: Tensor | None = None

    @property
    def state(self) -> Tensor:
        """The mixed key, `n` int64, from which draws are made."""
        if self._state is None:
            object.__setattr__(self, "_state", _mix_fields(self.fields, self.dropped))
        assert self._state is not None
        return self._state

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, rows: Any) -> Keys:
        """Rows, by slice, positions or mask; a single position keeps the axis."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1 or None)
        return replace(self, fields=self.fields[rows], _state=self.state[rows])

    def __repr__(self) -> str:
        shown = ", ".join(self.describe(i) for i in range(min(len(self), 3)))
        return f"Keys(n={len(self)}: {shown}{', …' if len(self) > 3 else ''})"

    def describe(self, row: int = 0) -> str:
        """One row as a line of code that makes it again, for messages and records."""
        values = ", ".join(f"{name}={int(value)}" for name, value in zip(FIELDS, self.fields[row], strict=True))
        at = f", step={self.step}" if self.step is not None else ""
        path = "".join(f".child({name!r})" for name in self.path)
        drop = f".drop({', '.join(map(repr, self.dropped))})" if self.dropped else ""
        drop = ".for_batch()" if self.of_batch else drop
        return f"keys({values}{at}){drop}{path}"

    def child(self, name: str) -> Keys:
        """The independent stream of a named part."""
        return replace(self, path=(*self.path, name), _state=_absorb(self.state, name_hash(name)))

    def drop(self, *names: str) -> Keys:
        """Keys that do not depend on the named fields, so that rows which differ in them alone share their draws."""
        unknown = set(names) - set(FIELDS)
        if unknown:
            raise InputError("Keys.drop", expected=f"fields among {FIELDS}", got=str(sorted(unknown)))
        if self.path:
            raise InputError(
                "Keys.drop",
                expected="keys without a path",
                got=f"path {self.path}",
                fix="drop fields before naming children",
            )
        dropped = tuple(name for name in FIELDS if name in names or name in self.dropped)
        return replace(self, dropped=dropped, _state=None)

    def for_batch(self) -> Keys:
        """Keys that depend on the seed and the global step alone: one draw for a whole global batch."""
        if self.step is None:
            raise InputError(
                "Keys.for_batch",
                expected="keys that know the global step",
                got="step=None",
                fix="mmcon.keys(..., step=global_step); loaders set it",
            )
        dropped = replace(self, path=(), dropped=tuple(f for f in FIELDS if f != "seed"), of_batch=True, _state=None)
        path = self.path
        at_step = replace(dropped, _state=_absorb(dropped.state, self.step))
        for name in path:
            at_step = at_step.child(name)
        return at_step

    def bits(self, name: str, *shape: int) -> Tensor:
        """Draw 64 random bits a number, `n *shape` int64: the SplitMix64 stream that starts at the named child."""
        start = _absorb(self.state, name_hash(name))
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, dtype=torch.int64) * _GOLDEN
        return _mix64(start[:, None] + counter).view(len(self), *shape)

    def ragged_bits(self, name: str, counts: Tensor) -> Tensor:
        """Draw `counts[i]` words for row i, all rows one after another: the first words that `bits` would draw."""
        start = _absorb(self.state, name_hash(name))
        ends = torch.cumsum(counts, 0)
        counter = torch.arange(1, int(ends[-1]) + 1 if len(ends) else 1) - torch.repeat_interleave(
            ends - counts, counts
        )
        return _mix64(counter.mul_(_GOLDEN).add_(torch.repeat_interleave(start, counts)))

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, *, shape: Sequence[int] = ()) -> Tensor:
        """Draw uniforms in [low, high), `n *shape` float64, of 53 random bits."""
        unit = _unit(self.bits(name, *shape))
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, name: str, mean: float = 0.0, std: float = 1.0, *, shape: Sequence[int] = ()) -> Tensor:
        """Draw normals, `n *shape` float64: the inverse distribution function of one uniform each, all finite."""
        half_open = _unit(self.bits(name, *shape)) + 2.0**-54
        return mean + std * normal_quantile(half_open.clamp(max=1 - 2.0**-53))

    def log_uniform(self, name: str, low: float, high: float, *, shape: Sequence[int] = ()) -> Tensor:
        """Draw numbers whose logarithm is uniform between those of low and high, `n *shape` float64."""
        if not 0 < low <= high:
            raise InputError("Keys.log_uniform", expected="0 < low <= high", got=f"low={low}, high={high}")
        a, b = _log_of(low), _log_of(high)
        return exp(a + (b - a) * self.uniform(name, shape=shape))

    def integers(self, name: str, low: int | Tensor, high: int | Tensor, *, shape: Sequence[int] = ()) -> Tensor:
        """Draw whole numbers in [low, high), `n *shape` int64; bounds may be tensors that broadcast to that shape.

        The bias of scaling 53 bits is below 2^-20 for ranges up to 2^32.
        """
        span = torch.as_tensor(high) - torch.as_tensor(low)
        if bool((span <= 0).any()):
            raise InputError("Keys.integers", expected="low < high", got=f"low={low}, high={high}", key=self.describe())
        return torch.floor(self.uniform(name, shape=shape) * span).to(torch.int64) + torch.as_tensor(low)

    def bernoulli(self, name: str, p: float | Tensor, *, shape: Sequence[int] = ()) -> Tensor:
        """Draw booleans that are true with probability p, `n *shape` bool."""
        return self.uniform(name, shape=shape) < p

    def choice(self, name: str, weights: Sequence[float | int] | int, *, shape: Sequence[int] = ()) -> Tensor:
        """Draw positions 0..k-1, `n *shape` int64, evenly (an int k) or in proportion to weights."""
        if isinstance(weights, int):
            return self.integers(name, 0, weights, shape=shape)
        edges = torch.tensor(weights, dtype=torch.float64)
        if edges.numel() == 0 or bool((edges < 0).any()) or not float(edges.sum()) > 0:
            raise InputError("Keys.choice", expected="weights >= 0 with a positive sum", got=str(list(weights)))
        # Summed by Python, in order: a vectorised sum may round otherwise on another machine.
        total, cumulative = 0.0, []
        for weight in edges.tolist():
            total += weight
            cumulative.append(total)
        bounds = torch.tensor(cumulative[:-1], dtype=torch.float64)
        return torch.searchsorted(bounds, self.uniform(name, shape=shape) * total, right=True)

    def permutation(self, name: str, k: int) -> Tensor:
        """Draw a permutation of 0..k-1 a row, `n k` int64: the order of k random words (ties go by position)."""
        return torch.argsort(self.bits(name, k), dim=-1, stable=True)


def stable_id(name: str | bytes | int) -> int:
    """The 64-bit identity of a sample, from a source's own id: blake2b of the text, little-endian, signed.

    Whole numbers stand for themselves.
    """
    if isinstance(name, int):
        return name
    return name_hash(name)


@lru_cache(maxsize=65536)
def name_hash(name: str | bytes) -> int:
    """Hash a name to a signed 64-bit integer (blake2b, 8 bytes, little-endian)."""
    data = name.encode() if isinstance(name, str) else name
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def stable_ids(names: Iterable[str | bytes | int]) -> Tensor:
    """The identities of many samples, `n` int64."""
    return torch.tensor([stable_id(name) for name in names], dtype=torch.int64)


def _integers(name: str, value: int | Tensor | Sequence[int]) -> Tensor:
    column = torch.as_tensor(value)
    if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool or column.dim() > 1:
        raise InputError(
            "keys",
            expected=f"{name} as a whole number or a row of them",
            got=f"{column.dtype} of shape {tuple(column.shape)}",
        )
    return column.to("cpu", torch.int64)


def _unit(bits: Tensor) -> Tensor:
    """The upper 53 bits as float64 in [0, 1)."""
    return torch.from_numpy((bits.numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53)


def _mix64(z: Tensor) -> Tensor:
    mixed = z.numpy().view(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return torch.from_numpy((mixed ^ (mixed >> np.uint64(31))).view(np.int64))


def _absorb(state: Tensor, word: Tensor | int) -> Tensor:
    return _mix64((state ^ word) + _GOLDEN)


def _mix_fields(fields: Tensor, dropped: tuple[str, ...]) -> Tensor:
    state = torch.full((len(fields),), name_hash("mmcon"), dtype=torch.int64)
    for i, name in enumerate(FIELDS):
        state = _absorb(state, name_hash(f"without {name}") if name in dropped else fields[:, i])
    return state


# --- functions in + − × ÷ √ alone ------------------------------------------------------------------------------------


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's rule, constant term first in `coefficients`."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def log(x: Tensor) -> Tensor:
    """Natural logarithm of float64 > 0, the same bits everywhere; relative error below 1e-14.

    x = m 2^e with m in [√½, √2); log m = 2 artanh((m-1)/(m+1)) by its series.
    """
    m, e = torch.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = torch.where(low, m * 2, m), torch.where(low, e - 1, e)
    s = (m - 1) / (m + 1)
    series = _polynomial(s * s, [1 / (2 * i + 1) for i in range(12)])
    return e.to(torch.float64) * 0.6931471805599453 + 2 * s * series


@lru_cache
def _log_of(x: float) -> float:
    """Logarithm of a bound, which is the same in every batch: as a tensor of one it costs as much as drawing 512."""
    return float(log(torch.tensor(x, dtype=torch.float64)))


def exp(x: Tensor) -> Tensor:
    """Exponential of float64 in [-700, 700], the same bits everywhere; relative error below 1e-13."""
    whole = torch.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10
    series = _polynomial(rest, [1 / math.factorial(i) for i in range(14)])
    power_of_two = (whole.to(torch.int64) + 1023 << 52).view(torch.float64)
    return series * power_of_two


# Wichura 1988, "Algorithm AS 241: the percentage points of the normal distribution", PPND16: relative error 1e-16.
_CENTRE = (
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


def normal_quantile(p: Tensor) -> Tensor:
    """Inverse of the standard normal distribution function for float64 p in (0, 1) (Wichura 1988, AS 241)."""
    q = p - 0.5
    tail = torch.minimum(p, 1 - p)
    r = torch.sqrt(-log(tail))
    centre = 0.180625 - q * q
    in_centre = q * _polynomial(centre, _CENTRE[0]) / _polynomial(centre, _CENTRE[1])
    in_middle = _polynomial(r - 1.6, _MIDDLE[0]) / _polynomial(r - 1.6, _MIDDLE[1])
    in_tail = _polynomial(r - 5.0, _TAIL[0]) / _polynomial(r - 5.0, _TAIL[1])
    outside = torch.copysign(torch.where(r <= 5.0, in_middle, in_tail), q)
    return torch.where(q.abs() <= 0.425, in_centre, outside)
