"""The laws of affinities: `check_affinity`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.affinity import Affinity
from mmcon.testing.laws import LawBroken, bitwise_equal, unchanged_global_randomness

#: Of the largest weight: factors and tiles sum in another order than the full matrix.
TOLERANCE = 1e-5


def check_affinity(affinity: Affinity) -> None:
    """Check an affinity against its laws.

    Args:
        affinity: made of tensors, or bound to tables, with at least two anchors and two candidates.

    Raises:
        LawBroken: a law does not hold.
    """
    rows, columns = affinity.shape
    if min(rows, columns) < 2:
        raise ValueError(f"check_affinity needs at least 2 anchors and 2 candidates, got {rows} and {columns}")
    with unchanged_global_randomness(affinity, "tile"):
        weights = affinity.tile(slice(0, rows), slice(0, columns))
    _weights_are_valid(affinity, weights)
    _tiles_make_the_matrix(affinity, weights)
    _declarations_are_true(affinity, weights)
    _row_sums_are_those_of_the_matrix(affinity, weights)
    _factors_make_the_matrix(affinity, weights)
    _wider_weights_are_the_same(affinity, weights)
    _parameters_have_gradients(affinity)


def _weights_are_valid(affinity: Affinity, weights: Shaped[Tensor, "..."]) -> None:
    """Weights are finite floats >= 0, one for each pair, and the same again."""
    if tuple(weights.shape) != affinity.shape or not weights.is_floating_point():
        observed = f"shape {affinity.shape}, but weights {weights.dtype} of shape {tuple(weights.shape)}"
        raise LawBroken(affinity, "a weight for each pair", observed)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise LawBroken(affinity, "weights are finite and >= 0", f"the least is {float(weights.min())}")
    if not bitwise_equal(affinity.dense(), weights):
        raise LawBroken(affinity, "weights are a function", "a second call has other weights")


def _tiles_make_the_matrix(affinity: Affinity, weights: Float[Tensor, "a c"]) -> None:
    rows, columns = affinity.shape
    for own in (slice(0, rows // 2), slice(rows // 2, rows), slice(rows - 1, rows)):
        for other in (slice(0, columns // 2), slice(columns // 2, columns)):
            if not _close(affinity.tile(own, other), weights[own, other]):
                raise LawBroken(affinity, "tiles make the matrix", f"the tile {own}, {other} differs")


def _declarations_are_true(affinity: Affinity, weights: Float[Tensor, "a c"]) -> None:
    """`symmetric` and `never_zero` are as the weights are: backends skip half of the tiles, or refuse denominators."""
    if affinity.symmetric and not (weights.shape[0] == weights.shape[1] and _close(weights, weights.T)):
        raise LawBroken(affinity, "symmetric is as declared", "W[i, j] differs from W[j, i]")
    if affinity.never_zero and not bool((weights > 0).all()):
        raise LawBroken(affinity, "never_zero is as declared", f"{int((weights == 0).sum())} weights are 0")


def _row_sums_are_those_of_the_matrix(affinity: Affinity, weights: Float[Tensor, "a c"]) -> None:
    for self_index in _self_indices(affinity):
        others = weights.clone()
        if self_index is not None:
            own = self_index >= 0
            others[own.nonzero()[:, 0], self_index[own]] = 0
        sums, valid = affinity.row_sums(self_index)
        if not torch.equal(valid, (others > 0).any(1)):
            observed = "an anchor counts as valid without a positive weight, or the reverse"
            raise LawBroken(affinity, "valid anchors have a positive", observed)
        if not _close(sums, others.sum(1, dtype=torch.float64)):
            raise LawBroken(affinity, "row sums are those of the matrix", f"{sums[:3].tolist()}, …")


def _self_indices(affinity: Affinity) -> Iterator[Int[Tensor, " a"] | None]:
    """No anchor among the candidates; and anchors at candidates of the same number, every third one missing."""
    yield None
    rows, columns = affinity.shape
    index = torch.arange(rows)
    yield torch.where((index % 3 == 2) | (index >= columns), -1, index)


def _factors_make_the_matrix(affinity: Affinity, weights: Float[Tensor, "a c"]) -> None:
    """The factors multiply a matrix as the weights do, and so do their transposes."""
    factors = affinity.factors()
    if factors is None:
        return
    rows, columns = affinity.shape
    wide = torch.float64
    product = sum((factor.matmul(torch.eye(columns, dtype=wide)) for factor in factors), torch.zeros(1, dtype=wide))
    turned = sum((f.transpose().matmul(torch.eye(rows, dtype=wide)) for f in factors), torch.zeros(1, dtype=wide))
    if not _close(product, weights):
        raise LawBroken(affinity, "factors make the matrix", "their sum differs from the weights")
    if not _close(turned, weights.T):
        raise LawBroken(affinity, "factors make the matrix", "their transposes differ from the transposed weights")


def _wider_weights_are_the_same(affinity: Affinity, weights: Float[Tensor, "a c"]) -> None:
    wide = affinity.with_dtype(torch.float64)
    if wide.shape != affinity.shape or not _close(wide.dense(), weights):
        raise LawBroken(affinity, "a wider dtype has the same weights", "with_dtype(torch.float64) gives others")


def _parameters_have_gradients(affinity: Affinity) -> None:
    """Every tensor of `parameters()` gets a gradient, and `map_parameters` replaces each of them."""
    parameters = list(affinity.parameters())
    if not parameters:
        return
    fresh = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    values = iter(fresh)
    mapped = affinity.map_parameters(lambda _: next(values))
    gradients = torch.autograd.grad(mapped.dense().sum(), fresh, allow_unused=True)
    if any(gradient is None for gradient in gradients):
        observed = f"{sum(g is None for g in gradients)} of {len(fresh)} get none through map_parameters"
        raise LawBroken(affinity, "parameters have gradients", observed)


def _close(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> bool:
    largest = max(1e-12, float(b.detach().abs().max())) if b.numel() else 1.0
    return a.shape == b.shape and float((a.detach().double() - b.detach().double()).abs().max()) <= TOLERANCE * largest
