"""Rank-N-Contrast, a loss for continuous labels outside the weighted family."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcon.errors import InputError
from mmcon.losses.loss_inputs import default_self_index
from mmcon.losses.reduction import reduce_losses
from mmcon.losses.settings import check_temperature

#: Anchors at a time. The backward pass recomputes each chunk, so that memory is O(CHUNK · c).
CHUNK = 256


def rank_n_contrast(
    anchors: Float[Tensor, "a d"],
    labels: Shaped[Tensor, "..."],
    *,
    temperature: float | Float[Tensor, ""],
    candidates: Float[Tensor, "c d"] | None = None,
    candidate_labels: Shaped[Tensor, "..."] | None = None,
    self_index: Int[Tensor, " a"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """Rank-N-Contrast for continuous labels (Zha et al. 2023, eq. 2).

    With `s_ij = -‖z_i - z_j‖₂ / temperature` and label distances `d_ij`, every candidate is a positive, and its
    denominator holds the candidates at the same or a larger label distance:

        ℓ_i = -1/|C_i| Σ_{j ∈ C_i} ( s_ij - log Σ_{k ∈ C_i, d_ik >= d_ij} e^{s_ik} ),    C_i all candidates but self

    Args:
        anchors: taken as given; the paper does not normalize them.
        labels: of anchors, numbers `a` or `a k`.
        temperature: above 0; a tensor receives its gradient.
        candidates: None: the anchors, each left out of its own row.
        candidate_labels: of candidates, `c` or `c k`.
        self_index: the candidate that is the anchor itself, or -1.
        reduction: `mean` over anchors, `sum`, or `none`.

    Returns:
        A scalar, or `a` losses; 0 for an anchor without candidates.

    Raises:
        InputError: a temperature of 0 or below, or labels that do not match the rows.

    >>> z, y = torch.eye(4), torch.tensor([0.0, 1.0, 2.0, 4.0])
    >>> round(rank_n_contrast(z, y, temperature=2.0).item(), 4)
    0.6888
    """
    check_temperature("rank_n_contrast", temperature)
    pool = anchors if candidates is None else candidates
    pool_labels = labels if candidate_labels is None else candidate_labels
    if len(labels) != len(anchors) or len(pool_labels) != len(pool):
        got = f"{len(labels)} and {len(pool_labels)} for {len(anchors)} anchors and {len(pool)} candidates"
        raise InputError("rank_n_contrast", expected="one label a row", got=got)
    if self_index is None:
        self_index = default_self_index(anchors, square=candidates is None)
    chunks = zip(anchors.split(CHUNK), labels.split(CHUNK), self_index.split(CHUNK), strict=True)
    losses = [
        checkpoint(_chunk_losses, z, pool, y, pool_labels, index, torch.as_tensor(temperature), use_reentrant=False)
        for z, y, index in chunks
    ]
    return reduce_losses("rank_n_contrast", torch.cat(losses), reduction)  # pyright: ignore


def _chunk_losses(
    z: Float[Tensor, "r d"],
    pool: Float[Tensor, "c d"],
    labels: Shaped[Tensor, "r ..."],
    pool_labels: Shaped[Tensor, "c ..."],
    self_index: Int[Tensor, " r"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, " r"]:
    # Rounding may make the square of a small distance negative.
    squares = (z.square().sum(1)[:, None] + pool.square().sum(1) - 2 * z @ pool.T).clamp_min(0)
    # At a distance of 0 the gradient of the root is undefined; 0 is used, as for any vector norm.
    distinct = squares > 1e-12
    s = -torch.where(distinct, torch.where(distinct, squares, 1).sqrt(), 0) / temperature
    y, pool_y = (x.to(torch.float64).reshape(len(x), -1) for x in (labels, pool_labels))
    # The faster computation by matrix products rounds, and equal label distances must stay equal.
    distance = torch.cdist(y, pool_y, compute_mode="donot_use_mm_for_euclid_dist")
    not_self = self_index[:, None] != torch.arange(len(pool), device=z.device)
    # The anchor itself gets the smallest label distance, and so comes last in the order, after all denominators.
    distance = distance.masked_fill(~not_self, -1)
    # From the farthest label to the nearest, each denominator is a running sum: O(c log c) for an anchor, not O(c²).
    ordered, order = distance.sort(dim=1, descending=True)
    ranked = s.gather(1, order)
    kept = ordered >= 0
    sums = torch.where(kept, ranked, torch.finfo(s.dtype).min).logcumsumexp(1)
    # Equal distances share a denominator: the one at the last of them.
    last = torch.searchsorted(-ordered.contiguous(), -ordered.contiguous(), right=True) - 1
    terms = torch.where(kept, sums.gather(1, last) - ranked, 0)
    return terms.sum(1) / kept.sum(1).clamp_min(1)
