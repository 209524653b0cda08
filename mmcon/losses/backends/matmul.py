"""Products of a tile with rows, by the quickest kernel that is there.

`torch.mm` of float32 on a CPU is MKL's, which keeps to 256-bit vectors on processors of another maker: on an AMD EPYC
with AVX-512 it reached 200 GFLOP/s where oneDNN reached 430. PyTorch carries both; oneDNN's is the operator that
`torch.compile` emits for linear layers; its float32 sums are the same up to their order. For use outside autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T`, `r d, c d -> r c`."""
    return _one_dnn(a, b) if _served(a, b) else a @ b.T


def times(tile: Tensor, rows: Tensor) -> Tensor:
    """`tile @ rows`, `r c, c d -> r d`."""
    return _one_dnn(tile, rows.T) if _served(tile, rows) else tile @ rows


def transposed_times(tile: Tensor, rows: Tensor) -> Tensor:
    """`tile.T @ rows`, `r c, r d -> c d`."""
    return _one_dnn(rows.T, tile.T).T if _served(tile, rows) else tile.T @ rows


def _served(a: Tensor, b: Tensor) -> bool:
    plain = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    return plain and _LINEAR is not None and torch.backends.mkldnn.enabled and 0 not in (*a.shape, *b.shape)


def _one_dnn(a: Tensor, b: Tensor) -> Tensor:
    assert _LINEAR is not None
    return _LINEAR(a, b, None, "none", [], "")


def _find() -> Callable[..., Tensor] | None:
    """The operator, where this build of PyTorch has it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


_LINEAR = _find()
