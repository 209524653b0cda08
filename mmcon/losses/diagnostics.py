"""Diagnostics of a batch: similarities, the composition of the gradient, and the InfoNCE bound where it holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.affinity import as_affinity
from mmcon.losses.loss_inputs import default_self_index

#: Anchors at a time, to bound memory.
CHUNK = 512
#: The share of negatives that counts as hardest.
HARDEST = 0.01


@dataclass(frozen=True)
class Diagnostics:
    """Means over valid anchors, as fractions and cosines (for unit rows).

    Attributes:
        valid_anchors: share of anchors with a positive.
        positives_per_anchor: number of positives.
        positive_similarity, negative_similarity: mean dot products.
        gradient_on_positives: share of Σ_j |∂ℓ/∂s_ij| of the out form that is at positives.
        gradient_on_hardest: share at the nearest 1 % of negatives (at least one).
        effective_positives_out, effective_positives_in: the effective number of positives that carry the gradient,
            `(Σ|g|)² / Σ g²`, in either form. The gradient of the in form is `P - X`, X the softmax over positives
            alone, and concentrates on positives that are already near; that of the out form is `P - Ŵ`.
        bound: the InfoNCE bound on mutual information in nats, or NaN where it does not hold.
    """

    valid_anchors: float
    positives_per_anchor: float
    positive_similarity: float
    negative_similarity: float
    gradient_on_positives: float
    gradient_on_hardest: float
    effective_positives_out: float
    effective_positives_in: float
    bound: float

    def metrics(self) -> dict[str, float]:
        """The numbers to log, without those that are NaN."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


@torch.no_grad()
def diagnose(
    anchors: Float[Tensor, "a d"],
    candidates: Float[Tensor, "c d"] | None,
    affinity: Any,
    *,
    temperature: float | Float[Tensor, ""],
    self_index: Int[Tensor, " a"] | None = None,
    independent_negatives: bool = False,
) -> Diagnostics:
    """Measure a batch under the loss over all candidates, without gradient.

    Args:
        anchors: this and the rest as in `weighted_supcon`.
        candidates: None: the anchors.
        affinity: positive weights, `a c`.
        temperature: above 0.
        self_index: the candidate that is the anchor itself, or -1.
        independent_negatives: whether negatives are sampled from the marginal, independently of the anchor. Uniform
            batches are; class-aware batches are not, and for a queue it is doubtful. Only then, and with one positive
            for each anchor, `log K - loss` is a lower bound of the information (Oord et al. 2018); K counts the
            positive.

    >>> z = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    >>> diagnose(z, None, SameLabel(torch.arange(8) // 2), temperature=0.1).positives_per_anchor
    1.0
    """
    weights = as_affinity(affinity)
    pool = anchors if candidates is None else candidates
    if self_index is None:
        self_index = default_self_index(anchors, square=candidates is None)
    chunks = []
    for start in range(0, len(anchors), CHUNK):
        rows = slice(start, min(start + CHUNK, len(anchors)))
        not_self = self_index[rows, None] != torch.arange(len(pool), device=pool.device)
        w = weights.tile(rows, slice(0, len(pool))).to(anchors.dtype) * not_self
        chunks.append(_measure((anchors[rows] @ pool.T).to(w.dtype), w, not_self, torch.as_tensor(temperature)))
    measured = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]} if chunks else {}
    return _summary(measured, independent_negatives)


def _measure(
    similarity: Float[Tensor, "r c"],
    w: Float[Tensor, "r c"],
    not_self: Bool[Tensor, "r c"],
    temperature: Float[Tensor, ""],
) -> dict[str, Shaped[Tensor, " r"]]:
    """The quantities of each anchor, by name."""
    positive, negative = w > 0, not_self & ~(w > 0)
    valid = positive.any(1)
    empty = float("-inf")
    s = similarity / temperature.to(similarity)
    log_denominator = torch.where(valid, torch.where(not_self, s, empty).logsumexp(1), 0)[:, None]
    p = torch.where(not_self & valid[:, None], s - log_denominator, empty).exp()
    target = w / torch.where(valid, w.sum(1), 1)[:, None]
    inner_logits = torch.where(valid[:, None] & positive, s + w.log(), empty)
    positive_softmax = torch.where(valid[:, None], inner_logits, 0).softmax(1) * positive
    gradient_out, gradient_in = (p - target).abs() * positive, (p - positive_softmax).abs() * positive
    gradient_negatives = p * negative
    by_hardness = gradient_negatives.sort(dim=1, descending=True).values
    count = (negative.sum(1) * HARDEST).ceil().clamp_min(1)[:, None]
    hardest = (by_hardness * (torch.arange(s.shape[1], device=s.device) < count)).sum(1)
    # Anchors without any gradient have shares of 0, not NaN.
    mass = (gradient_out.sum(1) + gradient_negatives.sum(1)).clamp_min(torch.finfo(s.dtype).tiny)
    return {
        "valid": valid,
        "positives": positive.sum(1),
        "negatives": negative.sum(1),
        "positive_similarity": (similarity * positive).sum(1) / positive.sum(1).clamp_min(1),
        "negative_similarity": (similarity * negative).sum(1) / negative.sum(1).clamp_min(1),
        "on_positives": gradient_out.sum(1) / mass,
        "on_hardest": hardest / mass,
        "effective_out": _effective_number(gradient_out),
        "effective_in": _effective_number(gradient_in),
        "loss": log_denominator[:, 0] - (target * s).sum(1),
    }


def _effective_number(mass: Float[Tensor, "r c"]) -> Float[Tensor, " r"]:
    squares = mass.square().sum(1)
    return torch.where(squares > 0, mass.sum(1).square() / torch.where(squares > 0, squares, 1), 0)


def _summary(measured: dict[str, Shaped[Tensor, " a"]], independent_negatives: bool) -> Diagnostics:
    valid = measured["valid"] if measured else torch.zeros(0, dtype=torch.bool)
    count = int(valid.sum())

    def mean(name: str) -> float:
        return float(measured[name][valid].double().mean()) if count else math.nan

    bound = math.nan
    if count and independent_negatives and bool((measured["positives"] == 1).all()):
        bound = float((measured["negatives"] + 1).double().log().mean()) - mean("loss")
    return Diagnostics(
        valid_anchors=count / max(len(valid), 1),
        positives_per_anchor=mean("positives"),
        positive_similarity=mean("positive_similarity"),
        negative_similarity=mean("negative_similarity"),
        gradient_on_positives=mean("on_positives"),
        gradient_on_hardest=mean("on_hardest"),
        effective_positives_out=mean("effective_out"),
        effective_positives_in=mean("effective_in"),
        bound=bound,
    )
