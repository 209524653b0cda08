"""Two losses outside the weighted family, with paths of their own: Rank-N-Contrast and SigLIP.

Both go through rows a chunk at a time and recompute chunks in the backward pass, so memory is O(chunk · n).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcon.affinity import Affinity, as_affinity, as_number
from mmcon.errors import InputError

CHUNK = 256


def rank_n_contrast(
    anchors: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor,
    candidates: Tensor | None = None,
    candidate_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Rank-N-Contrast for continuous labels (Zha et al. 2023, eq. 2).

    With `s_ij = -‖z_i - z_j‖₂ / temperature` and label distances `d_ij`, every candidate is a positive against those at
    least as far in label:

        ℓ_i = -1/|C_i| Σ_{j ∈ C_i} ( s_ij - log Σ_{k ∈ C_i, d_ik >= d_ij} e^{s_ik} ),    C_i all candidates but self

    Args:
        anchors: `a d`, taken as given; the paper's are not normalised.
        labels: of anchors, numbers `a` or `a k`.
        temperature: above 0; a tensor receives its gradient.
        candidates: `c d`; None: the anchors, each left out of its own row.
        candidate_labels: of candidates.
        self_index: the candidate that is the anchor itself, or -1.
        reduction: `mean` over anchors, `sum`, or `none`.

    Returns:
        A scalar, or `a` losses; 0 for an anchor without candidates.
    """
    _check_temperature("rank_n_contrast", temperature)
    pool = anchors if candidates is None else candidates
    pool_labels = labels if candidate_labels is None else candidate_labels
    if len(labels) != len(anchors) or len(pool_labels) != len(pool):
        got = f"{len(labels)} and {len(pool_labels)} for {len(anchors)} anchors and {len(pool)} candidates"
        raise InputError("rank_n_contrast", expected="one label a row", got=got)
    if self_index is None:
        own = torch.arange(len(anchors), device=anchors.device)
        self_index = own if candidates is None else torch.full_like(own, -1)
    losses = [
        checkpoint(_ranked, z, pool, y, pool_labels, own, torch.as_tensor(temperature), use_reentrant=False)
        for z, y, own in zip(anchors.split(CHUNK), labels.split(CHUNK), self_index.split(CHUNK), strict=True)
    ]
    return _reduced("rank_n_contrast", torch.cat(losses), reduction)  # pyright: ignore


def _ranked(z: Tensor, pool: Tensor, y: Tensor, pool_y: Tensor, own: Tensor, temperature: Tensor) -> Tensor:
    squares = (z.square().sum(1)[:, None] + pool.square().sum(1) - 2 * z @ pool.T).clamp_min(0)
    # At a distance of 0 the gradient of the root is not defined; 0 is taken, as for any vector norm.
    apart = squares > 1e-12
    s = -torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0) / temperature
    y, pool_y = (x.to(torch.float64).reshape(len(x), -1) for x in (y, pool_y))
    distance = torch.cdist(y, pool_y, compute_mode="donot_use_mm_for_euclid_dist")
    others = own[:, None] != torch.arange(len(pool), device=z.device)
    distance = distance.masked_fill(~others, -1)
    ordered, order = distance.sort(dim=1, descending=True)
    ranked = s.gather(1, order)
    kept = ordered >= 0
    floor = torch.finfo(s.dtype).min
    sums = torch.where(kept, ranked, floor).logcumsumexp(1)
    # Equal distances share a denominator: the one at the last of them.
    last = torch.searchsorted(-ordered.contiguous(), -ordered.contiguous(), right=True) - 1
    terms = torch.where(kept, sums.gather(1, last) - ranked, 0)
    return terms.sum(1) / kept.sum(1).clamp_min(1)


def siglip(
    anchors: Tensor,
    candidates: Tensor,
    affinity: Affinity | Tensor,
    *,
    temperature: float | Tensor,
    bias: float | Tensor,
    reduction: str = "mean",
) -> Tensor:
    """SigLIP: every pair is a decision of its own (Zhai et al. 2023, eq. 1).

        ℓ_i = -Σ_j log σ( y_ij (⟨a_i, c_j⟩ / temperature + bias) ),        y_ij = 1 where W > 0, else -1

    Args:
        anchors: `a d`, unit rows.
        candidates: `c d`, unit rows.
        affinity: who belongs together, `a c`.
        temperature: above 0; a tensor receives its gradient. The paper starts at .1.
        bias: a tensor receives its gradient. The paper starts at -10.
        reduction: `mean` over anchors, `sum`, or `none`.

    Returns:
        A scalar, or `a` losses.
    """
    _check_temperature("siglip", temperature)
    weights = as_affinity(affinity)
    if weights.shape != (len(anchors), len(candidates)):
        raise InputError("siglip", expected=f"an affinity of {(len(anchors), len(candidates))}", got=str(weights.shape))

    def chunk(start: int) -> Tensor:
        rows = slice(start, min(start + CHUNK, len(anchors)))
        sign = (weights.tile(rows, slice(0, len(candidates))) > 0).to(anchors.dtype) * 2 - 1
        logits = anchors[rows] @ candidates.T / temperature + bias
        return torch.nn.functional.softplus(-sign * logits).sum(1)

    losses = [checkpoint(chunk, start, use_reentrant=False) for start in range(0, len(anchors), CHUNK)]
    return _reduced("siglip", torch.cat(losses), reduction)  # pyright: ignore


def _check_temperature(where: str, temperature: float | Tensor) -> None:
    if not as_number(temperature) > 0:
        raise InputError(where, expected="temperature above 0", got=str(as_number(temperature)))


def _reduced(where: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise InputError(where, expected="reduction one of mean, sum, none", got=repr(reduction))
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()
