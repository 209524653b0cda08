"""SigLIP, a loss of independent pairs outside the weighted family."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcon.affinity import Affinity, as_affinity
from mmcon.errors import InputError
from mmcon.losses.reduction import reduce_losses
from mmcon.losses.settings import check_temperature

#: Anchors at a time. The backward pass recomputes each chunk, so that memory is O(CHUNK · c).
CHUNK = 256


def siglip(
    anchors: Float[Tensor, "a d"],
    candidates: Float[Tensor, "c d"],
    affinity: Affinity | Shaped[Tensor, "..."],
    *,
    temperature: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
    reduction: str = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """SigLIP: a binary classification of every pair, without a softmax (Zhai et al. 2023, eq. 1).

        ℓ_i = -Σ_j log σ( y_ij (⟨a_i, c_j⟩ / temperature + bias) ),        y_ij = 1 where W > 0, else -1

    Args:
        anchors: unit rows.
        candidates: unit rows.
        affinity: positive weights `a c`; only their sign counts.
        temperature: above 0; a tensor receives its gradient. The paper starts at .1.
        bias: a tensor receives its gradient. The paper starts at -10.
        reduction: `mean` over anchors, `sum`, or `none`.

    Returns:
        A scalar, or `a` losses.

    Raises:
        InputError: a temperature of 0 or below, or an affinity of another shape.

    >>> z = torch.eye(3)
    >>> round(siglip(z, z, torch.eye(3), temperature=0.1, bias=-10.0).item(), 4)
    0.6932
    """
    check_temperature("siglip", temperature)
    weights = as_affinity(affinity)
    if weights.shape != (len(anchors), len(candidates)):
        raise InputError("siglip", expected=f"an affinity of {(len(anchors), len(candidates))}", got=str(weights.shape))

    def chunk_losses(start: int) -> Float[Tensor, " r"]:
        rows = slice(start, min(start + CHUNK, len(anchors)))
        sign = (weights.tile(rows, slice(0, len(candidates))) > 0).to(anchors.dtype) * 2 - 1
        logits = anchors[rows] @ candidates.T / temperature + bias
        # softplus, not the logarithm of a sigmoid: the latter underflows to 0 for large negative arguments.
        # From its default threshold of 20 on it is the identity, which is off by 2e-9.
        return torch.nn.functional.softplus(-sign * logits, threshold=50).sum(1)

    losses = [checkpoint(chunk_losses, start, use_reentrant=False) for start in range(0, len(anchors), CHUNK)]
    return reduce_losses("siglip", torch.cat(losses), reduction)  # pyright: ignore
