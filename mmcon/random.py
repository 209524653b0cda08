"""Keyed (counter-based) random numbers: each draw is a hash of (seed, epoch, sample, occurrence, view) and a name.

In probability theory a random variable is an ordinary function X(ω): the outcome ω is random, the function is not. Here
the key is ω. A draw such as `k.uniform("area")` is a random variable, and a view generator is a random function: `draw`
turns keys into parameters, and `apply` is a deterministic function of samples and parameters. Three rules follow.

1. A draw depends only on its key and its name: not on earlier draws, the batch, the worker, the rank or the device.
   Keys and draws are on the CPU.
2. The fields of a key are hashed together, never added, so that (1, 2) and (2, 1) differ. Draws are named, never
   counted, so that an added draw does not change the others.
3. Draws use only integers, + − × ÷ √, and fixed polynomials for the logarithm and the exponential
   (`mmcon.portable_math`), since library functions differ between vector widths. So a draw has the same bits on every
   machine.

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
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.portable_math import exp, log, normal_quantile

FIELDS = ("seed", "epoch", "sample", "occurrence", "view")
"""The fields of a key, in the order in which they are mixed."""

FieldValues = int | Shaped[Tensor, "..."] | Sequence[int]

# SplitMix64's increment as a signed 64-bit integer (torch multiplies int64 modulo 2^64).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
# Mixing is done in NumPy, which has unsigned integers and takes a third of torch's time for few numbers.
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def keys(
    *,
    seed: FieldValues = 0,
    epoch: FieldValues = 0,
    sample: FieldValues = 0,
    view: FieldValues = 0,
    occurrence: FieldValues = 0,
    step: int | None = None,
) -> Keys:
    """Make a table of keys, one per view of a sample; single numbers are repeated to the length of the other fields.

    Args:
        seed: the seed of the run.
        epoch: the epoch, or any counter whose values should have independent draws.
        sample: stable identities of the samples (see `stable_id`), not their positions.
        view: the number of the view of the sample.
        occurrence: distinguishes repeats of a sample in an epoch.
        step: the global step, for generators of scope "batch".

    Raises:
        InputError: a field has other values than integers, or lengths differ.
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
    """A table of keys: five fields per row, and a path of names. It is indexed like a tensor.

    A draw depends on the row, the path and the name of the draw. All methods that draw return one value (or a tensor of
    the given shape) per row. The value of a row does not depend on the other rows or on their order.

    Attributes:
        fields: int64: seed, epoch, sample, occurrence, view.
        path: the names of the `child` calls that made this table, in order.
        dropped: fields that are not hashed, in the order of `FIELDS`.
        step: the global step, or None.
        of_batch: whether the keys are shared by a whole global batch (see `for_batch`).
    """

    fields: Int[Tensor, "n 5"]
    path: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    step: int | None = None
    of_batch: bool = False
    _state: Int[Tensor, " n"] | None = None

    @property
    def state(self) -> Int[Tensor, " n"]:
        """The hashed keys, one int64 word per row, computed once. Names of children and draws are hashed into it."""
        if self._state is None:
            object.__setattr__(self, "_state", _mix_fields(self.fields, self.dropped))
        assert self._state is not None
        return self._state

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, rows: Any) -> Keys:
        """Select rows by slice, indices or mask; a single index returns a table of one row."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1 or None)
        return replace(self, fields=self.fields[rows], _state=self.state[rows])

    def __repr__(self) -> str:
        shown = ", ".join(self.describe(i) for i in range(min(len(self), 3)))
        return f"Keys(n={len(self)}: {shown}{', …' if len(self) > 3 else ''})"

    def describe(self, row: int = 0) -> str:
        """One row as Python code that makes the same key, for error messages and logs."""
        values = ", ".join(f"{name}={int(value)}" for name, value in zip(FIELDS, self.fields[row], strict=True))
        at = f", step={self.step}" if self.step is not None else ""
        path = "".join(f".child({name!r})" for name in self.path)
        drop = f".drop({', '.join(map(repr, self.dropped))})" if self.dropped else ""
        drop = ".for_batch()" if self.of_batch else drop
        return f"keys({values}{at}){drop}{path}"

    def child(self, name: str) -> Keys:
        """Keys of a named child, whose draws are independent of those of this table and of other children.

        The name is hashed into the key. So the order of the names in a path matters, and an added child does not change
        the draws of the others.
        """
        return replace(self, path=(*self.path, name), _state=_absorb(self.state, name_hash(name)))

    def drop(self, *names: str) -> Keys:
        """Keys without the named fields: rows that differ only in these fields have the same draws.

        A tag is hashed in place of a dropped field, so these draws are independent of those with the field.

        Raises:
            InputError: a field is unknown, or the keys have a path.
        """
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
        """Keys that depend only on the seed and the global step: all rows of a global batch have the same draw.

        Raises:
            InputError: the keys have no step.
        """
        if self.step is None:
            raise InputError(
                "Keys.for_batch",
                expected="keys that know the global step",
                got="step=None",
                fix="mmcon.keys(..., step=global_step); loaders set it",
            )
        only_seed = replace(self, path=(), dropped=tuple(f for f in FIELDS if f != "seed"), of_batch=True, _state=None)
        batch_keys = replace(only_seed, _state=_absorb(only_seed.state, self.step))
        for name in self.path:
            batch_keys = batch_keys.child(name)
        return batch_keys

    def bits(self, name: str, *shape: int) -> Int[Tensor, "n ..."]:
        """Draw int64 words of 64 random bits: per row, the SplitMix64 sequence that starts at the named child."""
        start = _absorb(self.state, name_hash(name))
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, dtype=torch.int64) * _GOLDEN
        return _mix64(start[:, None] + counter).view(len(self), *shape)

    def ragged_bits(self, name: str, counts: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """Draw `counts[i]` words for row i, concatenated: the first words that `bits` would draw for the row."""
        start = _absorb(self.state, name_hash(name))
        ends = torch.cumsum(counts, 0)
        total = int(ends[-1]) if len(ends) else 0
        counter = torch.arange(1, total + 1) - torch.repeat_interleave(ends - counts, counts)
        return _mix64(counter.mul_(_GOLDEN).add_(torch.repeat_interleave(start, counts)))

    def uniform(
        self, name: str, low: float = 0.0, high: float = 1.0, *, shape: Sequence[int] = ()
    ) -> Float64[Tensor, "n ..."]:
        """Draw uniforms in [low, high), of 53 random bits each."""
        unit = _unit(self.bits(name, *shape))
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(
        self, name: str, mean: float = 0.0, std: float = 1.0, *, shape: Sequence[int] = ()
    ) -> Float64[Tensor, "n ..."]:
        """Draw normally distributed numbers, by the inverse distribution function of one uniform each; all finite."""
        # The inverse distribution function takes one uniform; Box-Muller takes two and a cosine.
        inside = (_unit(self.bits(name, *shape)) + 2.0**-54).clamp(max=1 - 2.0**-53)  # neither 0 nor 1
        return mean + std * normal_quantile(inside)

    def log_uniform(self, name: str, low: float, high: float, *, shape: Sequence[int] = ()) -> Float64[Tensor, "n ..."]:
        """Draw numbers whose logarithm is uniform between log(low) and log(high)."""
        if not 0 < low <= high:
            raise InputError("Keys.log_uniform", expected="0 < low <= high", got=f"low={low}, high={high}")
        a, b = _log_of(low), _log_of(high)
        return exp(a + (b - a) * self.uniform(name, shape=shape))

    def integers(
        self,
        name: str,
        low: int | Int[Tensor, "..."],
        high: int | Int[Tensor, "..."],
        *,
        shape: Sequence[int] = (),
    ) -> Int[Tensor, "n ..."]:
        """Draw integers in [low, high); bounds may be tensors that broadcast to the shape of the draws.

        The bias of scaling 53 bits is below 2^-20 for ranges up to 2^32.
        """
        span = torch.as_tensor(high) - torch.as_tensor(low)
        if bool((span <= 0).any()):
            raise InputError("Keys.integers", expected="low < high", got=f"low={low}, high={high}", key=self.describe())
        # Scaled, not rejected: each draw takes one word whatever the range, so that draws stay at their positions.
        return torch.floor(self.uniform(name, shape=shape) * span).to(torch.int64) + torch.as_tensor(low)

    def bernoulli(
        self, name: str, p: float | Float[Tensor, "..."], *, shape: Sequence[int] = ()
    ) -> Bool[Tensor, "n ..."]:
        """Draw booleans that are true with probability p."""
        return self.uniform(name, shape=shape) < p

    def choice(
        self, name: str, weights: Sequence[float | int] | int, *, shape: Sequence[int] = ()
    ) -> Int[Tensor, "n ..."]:
        """Draw indices 0..k-1: uniformly if `weights` is the number k, else in proportion to k weights."""
        if isinstance(weights, int):
            return self.integers(name, 0, weights, shape=shape)
        edges = torch.tensor(weights, dtype=torch.float64)
        if edges.numel() == 0 or bool((edges < 0).any()) or not float(edges.sum()) > 0:
            raise InputError("Keys.choice", expected="weights >= 0 with a positive sum", got=str(list(weights)))
        # Python adds in a fixed order; a vectorized sum may round differently on another machine.
        total, cumulative = 0.0, []
        for weight in edges.tolist():
            total += weight
            cumulative.append(total)
        bounds = torch.tensor(cumulative[:-1], dtype=torch.float64)
        return torch.searchsorted(bounds, self.uniform(name, shape=shape) * total, right=True)

    def permutation(self, name: str, k: int) -> Int[Tensor, "n {k}"]:
        """Draw a permutation of 0..k-1: the sort order of k random words (ties by index)."""
        return torch.argsort(self.bits(name, k), dim=-1, stable=True)


def stable_id(name: str | bytes | int) -> int:
    """The 64-bit id of a sample from its name in the source: an integer is unchanged, text is hashed (`name_hash`)."""
    return name if isinstance(name, int) else name_hash(name)


@lru_cache(maxsize=65536)
def name_hash(name: str | bytes) -> int:
    """Hash a name to a signed 64-bit integer (blake2b, 8 bytes, little-endian)."""
    return int.from_bytes(_digest(name), "little", signed=True)


def stable_ids(names: Iterable[str | bytes | int]) -> Int[Tensor, " n"]:
    """The 64-bit ids of many samples, int64."""
    listed = list(names)
    texts = [name for name in listed if not isinstance(name, int)]
    if len(texts) < len(listed):
        return torch.tensor([stable_id(name) for name in listed], dtype=torch.int64)
    # Without the cache of `name_hash`: the names differ, and there may be a million.
    return torch.from_numpy(np.frombuffer(b"".join(map(_digest, texts)), dtype="<i8").astype(np.int64))


def _digest(name: str | bytes) -> bytes:
    # Not Python's `hash`, which differs between processes.
    # A file name that is not UTF-8 has surrogates, which only `surrogatepass` encodes; other texts are unchanged.
    data = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return hashlib.blake2b(data, digest_size=8).digest()


def _integers(name: str, value: FieldValues) -> Int[Tensor, "..."]:
    """Convert a field to an int64 tensor with at most one axis."""
    column = torch.as_tensor(value)
    if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool or column.dim() > 1:
        raise InputError(
            "keys",
            expected=f"{name} as a whole number or a sequence of them",
            got=f"{column.dtype} of shape {tuple(column.shape)}",
        )
    return column.to("cpu", torch.int64)


def _unit(bits: Int[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """The upper 53 bits as float64 in [0, 1)."""
    # 53 bits are the mantissa of a float64: with more, the largest numbers would round up to 1.
    return torch.from_numpy((bits.numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53)


def _mix64(z: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's mixing function: a bijection in which every input bit changes half of the output bits."""
    mixed = z.numpy().view(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return torch.from_numpy((mixed ^ (mixed >> np.uint64(31))).view(np.int64))


def _absorb(state: Int[Tensor, " n"], word: Int[Tensor, " n"] | int) -> Int[Tensor, " n"]:
    """Hash another word into the state. The order of words matters."""
    return _mix64((state ^ word) + _GOLDEN)


def _mix_fields(fields: Int[Tensor, "n 5"], dropped: tuple[str, ...]) -> Int[Tensor, " n"]:
    """Hash the fields in order; a dropped field is replaced by a tag."""
    state = torch.full((len(fields),), name_hash("mmcon"), dtype=torch.int64)
    for i, name in enumerate(FIELDS):
        state = _absorb(state, name_hash(f"without {name}") if name in dropped else fields[:, i])
    return state


@lru_cache
def _log_of(x: float) -> float:
    """The logarithm of a bound, cached: the call on one number takes as long as a draw of 512 numbers."""
    return float(log(torch.tensor(x, dtype=torch.float64)))
