"""What a step's gradient is made of, and the information bound where there is one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmcon.affinity import as_affinity

CHUNK = 512
HARDEST = 0.01


@dataclass(frozen=True)
class Diagnostics:
    """Means over valid anchors, as fractions and cosines (for unit rows).

    Attributes:
        valid_anchors: share of anchors with a positive.
        positives_per_anchor: how many they have.
        positive_similarity, negative_similarity: mean dot products.
        gradient_on_positives: share of Σ_j |∂ℓ/∂s_ij| of the out form that lies on positives.
        gradient_on_hardest: share that lies on the nearest 1 % of negatives (at least one).
        effective_positives_out, effective_positives_in: by how many positives the gradient on positives is carried,
            `(Σ|g|)² / Σ g²`, in either form. The in form's follows `P - X`, X the softmax over positives alone, and so
            leans on those that are near already; the out form's follows `P - Ŵ` and keeps all at work.
        bound: the InfoNCE bound on mutual information in nats, or NaN where it is not one.
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
        """Numbers to log; the bound only where it is one."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


@torch.no_grad()
def diagnose(
    anchors: Tensor,
    candidates: Tensor | None,
    affinity: Any,
    *,
    temperature: float | Tensor,
    self_index: Tensor | None = None,
    independent_negatives: bool = False,
) -> Diagnostics:
    """Measure a batch under the loss over all candidates, without gradient, some rows at a time.

    Args:
        anchors: `a d`, and like the rest as in `weighted_supcon`.
        candidates: `c d`, or None.
        affinity: `a c`.
        temperature: above 0.
        self_index: `a`, or None.
        independent_negatives: whether negatives are drawn from the marginal, independently of the anchor: so for
            uniform batches; not for class-aware ones, and doubtful for a queue. Only then, and with one positive an
            anchor, `log K - loss` bounds the information from below (Oord et al. 2018), K counting the positive.
    """
    weights = as_affinity(affinity)
    pool = anchors if candidates is None else candidates
    if self_index is None:
        own = torch.arange(len(anchors), device=anchors.device)
        self_index = own if candidates is None else torch.full_like(own, -1)
    parts = []
    for start in range(0, len(anchors), CHUNK):
        rows = slice(start, min(start + CHUNK, len(anchors)))
        others = self_index[rows, None] != torch.arange(len(pool), device=pool.device)
        w = weights.tile(rows, slice(0, len(pool))).to(anchors.dtype) * others
        parts.append(_measure((anchors[rows] @ pool.T).to(w.dtype), w, others, torch.as_tensor(temperature)))
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    return _summary(rows, independent_negatives)


def _measure(x: Tensor, w: Tensor, others: Tensor, temperature: Tensor) -> dict[str, Tensor]:
    positive, negative = w > 0, others & ~(w > 0)
    valid = positive.any(1)
    empty = float("-inf")
    s = x / temperature.to(x)
    log_all = torch.where(valid, torch.where(others, s, empty).logsumexp(1), 0)[:, None]
    p = torch.where(others & valid[:, None], s - log_all, empty).exp()
    share = w / torch.where(valid, w.sum(1), 1)[:, None]
    near = torch.where(valid[:, None] & positive, s + w.log(), empty)
    inner = torch.where(valid[:, None], near, 0).softmax(1) * positive
    out, within = (p - share).abs() * positive, (p - inner).abs() * positive
    on_negatives = p * negative
    hardest = on_negatives.sort(dim=1, descending=True).values
    count = (negative.sum(1) * HARDEST).ceil().clamp_min(1)[:, None]
    top = (hardest * (torch.arange(x.shape[1], device=x.device) < count)).sum(1)
    mass = (out.sum(1) + on_negatives.sum(1)).clamp_min(torch.finfo(x.dtype).tiny)
    return {
        "valid": valid,
        "positives": positive.sum(1),
        "negatives": negative.sum(1),
        "positive_similarity": (x * positive).sum(1) / positive.sum(1).clamp_min(1),
        "negative_similarity": (x * negative).sum(1) / negative.sum(1).clamp_min(1),
        "on_positives": out.sum(1) / mass,
        "on_hardest": top / mass,
        "effective_out": _effective(out),
        "effective_in": _effective(within),
        "loss": log_all[:, 0] - (share * s).sum(1),
    }


def _effective(mass: Tensor) -> Tensor:
    squares = mass.square().sum(1)
    return torch.where(squares > 0, mass.sum(1).square() / torch.where(squares > 0, squares, 1), 0)


def _summary(rows: dict[str, Tensor], independent: bool) -> Diagnostics:
    valid = rows["valid"] if rows else torch.zeros(0, dtype=torch.bool)
    count = int(valid.sum())

    def mean(name: str) -> float:
        return float(rows[name][valid].double().mean()) if count else math.nan

    bound = math.nan
    if count and independent and bool((rows["positives"] == 1).all()):
        bound = float((rows["negatives"] + 1).double().log().mean()) - mean("loss")
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
