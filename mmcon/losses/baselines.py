"""Losses to compare contrastive learning with: cross-entropy, max-margin, triplet."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.affinity import check_choice, has_values
from mmcon.errors import InputError


def check_labels(where: str, labels: Int[Tensor, " n"], classes: int | None = None) -> None:
    """Raise InputError for labels below 0, or of no class; on a GPU labels are not read, since that would wait.

    A negative label, such as -1 for "unlabeled", would be the last class, or a class of its own.

    Args:
        where: the component, for the message.
        labels: class indices.
        classes: the number of classes; None: any.
    """
    if labels.is_cuda or not has_values(labels) or not len(labels):
        return
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or (classes is not None and high >= classes):
        expected = "labels from 0" if classes is None else f"labels from 0 to {classes - 1}"
        fix = "leave out samples without a label" if low < 0 else "a classifier with as many outputs as classes"
        raise InputError(where, expected=expected, got=f"labels from {low} to {high}", fix=fix)


def cross_entropy(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], *, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Softmax cross-entropy of a linear classifier, mean over rows.

    Args:
        logits: of k classes.
        labels: class indices.
        label_smoothing: the probability of the target that is spread over all classes.

    Raises:
        InputError: a label is not among the classes (labels on a GPU are not read).

    >>> round(cross_entropy(torch.eye(2), torch.tensor([0, 1])).item(), 4)
    0.3133
    """
    check_labels("cross_entropy", labels, logits.shape[1])
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def max_margin(
    features: Float[Tensor, "n d"], class_weights: Float[Tensor, "k d"], labels: Int[Tensor, " n"], *, margin: int = 4
) -> Float[Tensor, ""]:
    """Large-margin softmax (Liu et al. 2016, eq. 4 to 6), the "max margin" row of the SupCon paper's table.

    It is the cross-entropy of `margin_logits`.

    Args:
        features: of the encoder.
        class_weights: of the linear classifier, without bias.
        labels: class indices.
        margin: m >= 1; 1 is plain cross-entropy.

    Returns:
        The mean over rows.

    Raises:
        InputError: a margin below 1.

    >>> round(max_margin(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=2).item(), 4)
    0.3133
    """
    return cross_entropy(margin_logits(features, class_weights, labels, margin=margin), labels)


def margin_logits(
    features: Float[Tensor, "n d"], class_weights: Float[Tensor, "k d"], labels: Int[Tensor, " n"], *, margin: int
) -> Float[Tensor, "n k"]:
    """The logits of large-margin softmax (Liu et al. 2016, eq. 4 to 6).

    The logit of the true class, `‖w‖ ‖x‖ cos θ`, becomes `‖w‖ ‖x‖ ψ(θ)`, with
    `ψ(θ) = (-1)^k cos(margin · θ) - 2k` on `[kπ/margin, (k + 1)π/margin]`.

    Args:
        features: of the encoder.
        class_weights: of the linear classifier, without bias.
        labels: class indices.
        margin: m >= 1; 1 gives the plain logits.

    Raises:
        InputError: a margin below 1, or a label that is not among the classes.
    """
    if margin < 1:
        raise InputError("max_margin", expected="an integer margin >= 1", got=str(margin))
    check_labels("max_margin", labels, len(class_weights))
    logits = features @ class_weights.T
    norms = features.norm(dim=1) * class_weights[labels].norm(dim=1)
    cosine = logits.gather(1, labels[:, None])[:, 0] / norms.clamp_min(torch.finfo(norms.dtype).eps)
    # Rounding may exceed 1, where the arc cosine is NaN.
    cosine = cosine.clamp(-1, 1)
    # cos(mθ) by Chebyshev's recursion: it avoids the arc cosine, whose gradient is infinite at ±1.
    previous, multiple = torch.ones_like(cosine), cosine
    for _ in range(margin - 1):
        previous, multiple = multiple, 2 * cosine * multiple - previous
    k = (torch.arccos(cosine.detach()) * margin / torch.pi).floor().clamp_max(margin - 1)
    psi = torch.where(k % 2 == 0, 1.0, -1.0) * multiple - 2 * k
    target = torch.nn.functional.one_hot(labels, len(class_weights)).bool()
    return torch.where(target, (norms * psi)[:, None], logits)


def triplet(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, margin: float, mining: str = "hard"
) -> Float[Tensor, ""]:
    """Triplet loss `max(0, d(a, p) - d(a, n) + margin)` on Euclidean distances within a batch (Hermans et al. 2017).

    Args:
        embeddings: rows of any norm.
        labels: class indices.
        margin: >= 0.
        mining: `hard`: each anchor's farthest positive and nearest negative, mean over anchors that have both; `all`:
            mean over the triplets whose loss is above 0. `all` needs n³ memory.

    Returns:
        A scalar; 0 without a triplet.

    Raises:
        InputError: an unknown `mining`, or a label below 0.

    >>> z = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    >>> triplet(z, torch.tensor([0, 0, 1, 1]), margin=2.0).item()
    0.375
    """
    check_choice("triplet", "mining", mining, ("hard", "all"))
    check_labels("triplet", labels)
    # From differences, in n² memory: the form by products loses the digits of small distances. The gradient is 0 at 0.
    wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    if not len(labels):
        return wide.sum()  # 0, in the graph: a rank without samples takes part in the backward pass
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same
    if mining == "hard":
        has_both = positive.any(1) & negative.any(1)
        farthest = torch.where(positive, distance, float("-inf")).amax(1)
        nearest = torch.where(negative, distance, float("inf")).amin(1)
        losses = torch.where(has_both, (torch.where(has_both, farthest - nearest, 0) + margin).clamp_min(0), 0)
        return losses.sum() / has_both.sum().clamp_min(1)
    triplets = positive[:, :, None] & negative[:, None, :]
    losses = torch.where(triplets, distance[:, :, None] - distance[:, None, :] + margin, 0).clamp_min(0)
    return losses.sum() / (losses > 0).sum().clamp_min(1)
