"""What contrastive losses are compared with: cross-entropy, max-margin, triplet."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcon.errors import InputError


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of a linear classifier, mean over rows.

    Args:
        logits: `n k`.
        labels: class indices `n`.
        label_smoothing: share of the target spread over all classes.
    """
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def max_margin(features: Tensor, classes: Tensor, labels: Tensor, *, margin: int = 4) -> Tensor:
    """Large-margin softmax (Liu et al. 2016, eq. 4 to 6), the "max margin" row of the SupCon paper's table.

    Cross-entropy in which the right class's logit `‖w‖ ‖x‖ cos θ` becomes `‖w‖ ‖x‖ ψ(θ)`, with
    `ψ(θ) = (-1)^k cos(margin · θ) - 2k` on `[kπ/margin, (k + 1)π/margin]`.

    Args:
        features: `n d`.
        classes: the classifier's weights, `k d`, no bias.
        labels: class indices `n`.
        margin: m >= 1; 1 is plain cross-entropy.
    """
    if margin < 1:
        raise InputError("max_margin", expected="an integer margin >= 1", got=str(margin))
    logits = features @ classes.T
    norms = features.norm(dim=1) * classes[labels].norm(dim=1)
    cosine = logits.gather(1, labels[:, None])[:, 0] / norms.clamp_min(torch.finfo(norms.dtype).eps)
    cosine = cosine.clamp(-1, 1)
    # cos(mθ) by Chebyshev's recursion: no arc cosine, whose gradient is infinite at ±1.
    before, multiple = torch.ones_like(cosine), cosine
    for _ in range(margin - 1):
        before, multiple = multiple, 2 * cosine * multiple - before
    k = (torch.arccos(cosine.detach()) * margin / torch.pi).floor().clamp_max(margin - 1)
    psi = torch.where(k % 2 == 0, 1.0, -1.0) * multiple - 2 * k
    target = torch.nn.functional.one_hot(labels, len(classes)).bool()
    return cross_entropy(torch.where(target, (norms * psi)[:, None], logits), labels)


def triplet(embeddings: Tensor, labels: Tensor, *, margin: float, mining: str = "hard") -> Tensor:
    """Triplet loss `max(0, d(a, p) - d(a, n) + margin)` on Euclidean distances within a batch (Hermans et al. 2017).

    Args:
        embeddings: `n d`.
        labels: class indices `n`.
        margin: >= 0.
        mining: `hard`: each anchor's farthest positive and nearest negative, mean over anchors that have both; `all`:
            mean over the triplets of which the loss is above 0. `all` needs n³ memory.

    Returns:
        A scalar; 0 without a triplet.
    """
    if mining not in ("hard", "all"):
        raise InputError("triplet", expected="mining hard or all", got=repr(mining))
    squares = (embeddings[:, None] - embeddings).square().sum(2)
    distance = torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same
    if mining == "hard":
        has_both = positive.any(1) & negative.any(1)
        far = torch.where(positive, distance, float("-inf")).amax(1)
        near = torch.where(negative, distance, float("inf")).amin(1)
        losses = torch.where(has_both, (torch.where(has_both, far - near, 0) + margin).clamp_min(0), 0)
        return losses.sum() / has_both.sum().clamp_min(1)
    triplets = positive[:, :, None] & negative[:, None, :]
    losses = torch.where(triplets, distance[:, :, None] - distance[:, None, :] + margin, 0).clamp_min(0)
    return losses.sum() / (losses > 0).sum().clamp_min(1)
