"""Geometry of an embedding space: alignment, uniformity, and the modality gap."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mmcon.errors import InputError
from mmcon.evaluation import similarity_blocks


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, power: float = 2.0) -> float:
    """E ‖x − y‖^power over positive pairs of normalized rows (Wang and Isola 2020, eq. 1); 0 is perfect.

    Args:
        first: row i and row i of `second` are a positive pair.
        second: the other member of each pair.
        power: exponent of the distance.
    """
    return (normalize(first, dim=1) - normalize(second, dim=1)).norm(dim=1).pow(power).mean().item()


def uniformity(rows: Float[Tensor, "n d"], *, t: float = 2.0) -> float:
    """Logarithm of E e^{−t ‖x − y‖²} over distinct pairs of normalized rows (Wang and Isola 2020, eq. 2).

    Lower is more uniform.

    Raises:
        InputError: there are fewer than two rows.
    """
    x, n = normalize(rows, dim=1).double(), len(rows)
    if n < 2:
        raise InputError("uniformity", expected="at least two rows", got=f"{n}")
    # Block by block in float64: the sum has n² terms that may differ by e^{4t}.
    total = 0.0
    for block in torch.arange(n).split(max(1, similarity_blocks.BLOCK_SIZE // n)):
        # ‖x − y‖² = 2 − 2 x·y for normalized rows.
        kernel = (2 * t * (x[block] @ x.T - 1)).exp()
        total += float(kernel.sum() - kernel[torch.arange(len(block)), block].sum())
    return math.log(total / (n * (n - 1)))


def modality_gap(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """Distance between the centroids of two sets of normalized rows (Liang et al. 2022, "Mind the gap")."""
    return (normalize(first, dim=1).mean(0) - normalize(second, dim=1).mean(0)).norm().item()
