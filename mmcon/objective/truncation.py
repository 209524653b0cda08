"""Matryoshka embeddings: the loss of leading dimensions, beside the loss of all (Kusupati et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import ConfigError
from mmcon.losses.settings import LossSettings
from mmcon.objective.block_losses import BlockInputs

# Leading dimensions of a unit row that are shorter than this consist of rounding errors (eight of float32).
_NO_DIRECTION = 1e-6


def truncation_weights(
    dims: Sequence[int], weights: Sequence[float] | None, settings: LossSettings
) -> dict[int, float]:
    """The weight of the loss of each number of leading dimensions.

    Args:
        dims: the numbers of dimensions.
        weights: one a number; None: 1 each.
        settings: of the objective.

    Raises:
        ConfigError: numbers below 1 or given twice, weights that do not fit them, or a similarity of whole embeddings.
    """
    if not isinstance(dims, Sequence) or not all(isinstance(dim, int) and dim > 0 for dim in dims):
        got = str([*dims]) if isinstance(dims, Sequence) else repr(dims)
        raise ConfigError("Objective", expected="truncate: different numbers of dimensions above 0", got=got)
    numbers = [*dims]
    if len(set(numbers)) < len(numbers):
        raise ConfigError("Objective", expected="truncate: different numbers of dimensions above 0", got=str(numbers))
    given = [1.0] * len(numbers) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(numbers) or not all(0 <= weight < math.inf for weight in given):
        expected = f"truncate_weights: a finite number >= 0 for each of {len(numbers)} in truncate"
        raise ConfigError("Objective", expected=expected, got=str(given))
    if numbers and settings.similarity is not None:
        fix = "leave out truncate or similarity"
        raise ConfigError("Objective(truncate=...)", expected="the dot product", got="a similarity", fix=fix)
    return dict(zip(numbers, given, strict=True))


def truncated(inputs: Mapping[str, BlockInputs], dim: int) -> dict[str, BlockInputs]:
    """The blocks with rows of their first `dim` dimensions at length one; all else is shared.

    A row whose first dimensions are 0 has no direction in them: it becomes 0, with a gradient of 0.

    Raises:
        ConfigError: the rows of a block have `dim` dimensions or fewer.
    """
    # Rows that are one tensor in several blocks stay one, so that both directions of a pair share their similarities.
    found: dict[int, Float[Tensor, "_ k"]] = {}

    def first(rows: Float[Tensor, "n d"], label: str) -> Float[Tensor, "n k"]:
        if not dim < rows.shape[1]:
            raise ConfigError(
                "Objective",
                expected=f"truncate below {rows.shape[1]}, the width of {label}",
                got=str(dim),
                fix="all dimensions are always part of the loss; give fewer",
            )
        if id(rows) not in found:
            wide = rows if rows.dtype.itemsize >= 4 else rows.float()
            leading = wide[:, :dim]
            unit = torch.nn.functional.normalize(leading, dim=1)
            # `normalize` has a gradient of 1e12 at 0, which clipping would turn into a step for this row alone.
            has_direction = leading.detach().norm(dim=1, keepdim=True) > _NO_DIRECTION
            found[id(rows)] = torch.where(has_direction, unit, 0)
        return found[id(rows)]

    def shortened(label: str, block: BlockInputs) -> BlockInputs:
        candidates = None if block.candidates is None else first(block.candidates, label)
        return block._replace(anchors=first(block.anchors, label), candidates=candidates)

    return {label: shortened(label, block) for label, block in inputs.items()}


def label_of_truncated(label: str, dim: int) -> str:
    """The name of a block of leading dimensions in logs."""
    return f"{label}[:{dim}]"
