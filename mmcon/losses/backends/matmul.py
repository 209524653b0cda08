"""Matrix products of tiles by the fastest kernel available, for use outside autograd.

On a CPU, `torch.mm` of float32 calls MKL, which limits itself to 256-bit vectors on processors that are not Intel's: on
an AMD EPYC with AVX-512 it reached 200 GFLOP/s where oneDNN reached 430. PyTorch ships both. The oneDNN operator used
here is the one that `torch.compile` emits for linear layers; its float32 sums differ only in their order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def matmul_nt(a: Float[Tensor, "r d"], b: Float[Tensor, "c d"]) -> Float[Tensor, "r c"]:
    """`a @ b.T`."""
    return _one_dnn(a, b) if _supported(a, b) else a @ b.T


def matmul_nn(a: Float[Tensor, "r c"], b: Float[Tensor, "c d"]) -> Float[Tensor, "r d"]:
    """`a @ b`."""
    return _one_dnn(a, b.T) if _supported(a, b) else a @ b


def matmul_tn(a: Float[Tensor, "r c"], b: Float[Tensor, "r d"]) -> Float[Tensor, "c d"]:
    """`a.T @ b`."""
    return _one_dnn(b.T, a.T).T if _supported(a, b) else a.T @ b


def _supported(a: Float[Tensor, "_ _"], b: Float[Tensor, "_ _"]) -> bool:
    float32_on_cpu = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    return float32_on_cpu and _LINEAR is not None and torch.backends.mkldnn.enabled and 0 not in (*a.shape, *b.shape)


def _one_dnn(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    assert _LINEAR is not None
    return _LINEAR(a, b, None, "none", [], "")


def _linear_operator() -> Callable[..., Float[Tensor, "n m"]] | None:
    """The oneDNN operator, or None where this build of PyTorch lacks it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


_LINEAR = _linear_operator()
