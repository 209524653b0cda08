"""The weighted contrastive loss: one core, of which the family's members are settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcon.affinity import Affinity, Dense, SameLabel, SameSample, check_choice
from mmcon.errors import InputError
from mmcon.losses.backends.selection import Choice, choose, compute
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.problem import SCALES, WHERE, Problem, RowLosses, Similarity, prepare

REDUCTIONS = ("valid", "all", "sum", "none")
AffinityLike = Affinity | Tensor | Callable[..., Tensor]


def weighted_supcon(
    anchors: Tensor,
    candidates: Tensor | None,
    affinity: AffinityLike,
    *,
    temperature: float | Tensor,
    form: str = "out",
    denominator: str = "all",
    self_index: Tensor | None = None,
    negative_weights: AffinityLike | HardNegatives | None = None,
    row_normalize: bool = True,
    similarity: Similarity | None = None,
    scale: str = "none",
    no_positives: str = "exclude",
    reduction: str = "valid",
    backend: str = "auto",
) -> Tensor:
    """Contrast every anchor's positives, as strongly as they weigh, with its candidates.

    With `s_ij = ⟨anchor_i, candidate_j⟩ / temperature`, positive weights `W`, negative weights `V`, and self in
    neither:

        out:  ℓ_i = -Σ_j Ŵ_ij (s_ij - log D_ij)            Ŵ_ij = W_ij / Σ_j W_ij
        in:   ℓ_i = -log Σ_j Ŵ_ij e^{s_ij} + log D_i
        all:        D_i  = Σ_positives e^{s_ik} + Σ_negatives V_ik e^{s_ik}
        one:        D_ij = e^{s_ij} + Σ_negatives V_ik e^{s_ik}
        negatives:  D_i  = Σ_negatives V_ik e^{s_ik}

    With 0/1 weights, `out` and `in` are the two losses of Khosla et al. 2020 (eq. 2 and 3), without the factor
    temperature / base temperature of the released code. A pair is positive where W > 0 and negative where W = 0; a
    kernel that never reaches 0 has no negatives but those with V > 0.

    An anchor is valid when it has a positive (and, under `negatives`, a negative); others have loss 0. With no valid
    anchor the loss is 0 and so is its gradient.

    Args:
        anchors: `a d`, floating point; rows are taken as given, so scale them to unit length for cosine similarity.
            Half precision is computed in float32, also under autocast.
        candidates: `c d`; None: the anchors themselves, each left out of its own row.
        affinity: W, `a c`: an `Affinity`, a matrix, or a function of two tables of rows.
        temperature: a number or a scalar tensor, which receives its gradient. For unit rows float32 is safe to .001;
            in general while the largest |s| is below 1e5.
        form: `out` or `in`.
        denominator: `all`, `one` or `negatives`.
        self_index: the candidate that is the anchor itself, int64 `a`, or -1: for candidates gathered from processes.
        negative_weights: V, as an affinity, or `HardNegatives`; None: 1.
        row_normalize: whether weights are divided by their row's sum.
        similarity: a kernel `(r d, c d) -> r c` in place of the dot product; a Module's parameters receive gradients.
        scale: `temperature` multiplies the loss by it, as the published settings do.
        no_positives: `exclude` such anchors, or raise an `error`.
        reduction: `valid` (mean over valid anchors), `all` (over all anchors), `sum`, or `none` (`a`).
        backend: `dense`, `tiled`, `triton` or `auto`; see `explain_backend`.

    Returns:
        The loss, a scalar, or `a` with reduction `none`; in the precision it was computed in.

    Raises:
        InputError: on what does not fit, naming it.

    >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), dim=1)
    >>> round(weighted_supcon(z, None, SameLabel(torch.tensor([0, 0, 1, 1])), temperature=0.1).item(), 4)
    0.0003
    """
    check_choice(WHERE, "reduction", reduction, REDUCTIONS)
    settings = LossSettings(
        form, denominator, negative_weights, row_normalize, similarity, scale, no_positives, backend=backend
    )
    rows = row_losses(anchors, candidates, affinity, temperature=temperature, self_index=self_index, settings=settings)
    return reduce(rows, reduction)


@dataclass(frozen=True)
class LossSettings:
    """The knobs of `weighted_supcon` that stay the same from step to step."""

    form: str = "out"
    denominator: str = "all"
    negative_weights: Any = None
    row_normalize: bool = True
    similarity: Similarity | None = None
    scale: str = "none"
    no_positives: str = "exclude"
    backend: str = "auto"


def row_losses(
    anchors: Tensor,
    candidates: Tensor | None,
    affinity: AffinityLike,
    *,
    temperature: float | Tensor,
    self_index: Tensor | None,
    settings: LossSettings,
) -> RowLosses:
    """`weighted_supcon` before its reduction: each anchor's loss and whether it is valid."""
    check_choice(WHERE, "scale", settings.scale, SCALES)
    check_choice(WHERE, "no_positives", settings.no_positives, ("exclude", "error"))
    with torch.autocast(anchors.device.type, enabled=False):
        problem = _prepared(anchors, candidates, affinity, temperature, self_index, settings)
        losses, valid = compute(problem, settings.backend)
        if settings.no_positives == "error" and not bool(valid.all()):
            _refuse_lonely(valid)
        if settings.scale == "temperature":
            losses = losses * problem.temperature
    return RowLosses(losses, valid)


def reduce(rows: RowLosses, reduction: str) -> Tensor:
    """Losses of anchors to what is asked for."""
    if reduction == "none":
        return rows.losses
    if reduction == "sum":
        return rows.losses.sum()
    count = rows.valid.sum() if reduction == "valid" else torch.tensor(len(rows.losses))
    return rows.losses.sum() / count.to(rows.losses).clamp_min(1)


def explain_backend(anchors: Tensor, candidates: Tensor | None, affinity: AffinityLike, **settings: Any) -> Choice:
    """Which backend `auto` picks for a call of `weighted_supcon`, and why."""
    temperature, self_index = settings.pop("temperature"), settings.pop("self_index", None)
    settings.pop("reduction", None)
    return choose(_prepared(anchors, candidates, affinity, temperature, self_index, LossSettings(**settings)))


def _prepared(
    anchors: Tensor,
    candidates: Tensor | None,
    affinity: AffinityLike,
    temperature: float | Tensor,
    self_index: Tensor | None,
    settings: LossSettings,
) -> Problem:
    return prepare(
        anchors,
        candidates,
        affinity,
        temperature=temperature,
        form=settings.form,
        denominator=settings.denominator,
        self_index=self_index,
        negative_weights=settings.negative_weights,
        row_normalize=settings.row_normalize,
        similarity=settings.similarity,
    )


def _refuse_lonely(valid: Tensor) -> None:
    lonely = (~valid).nonzero()[:, 0]
    raise InputError(
        WHERE,
        expected="a positive for every anchor",
        got=f"{len(lonely)} of {len(valid)} anchors without one, first at rows {lonely[:5].tolist()}",
        fix="sample at least two rows a class or two views a sample, or use no_positives='exclude'",
    )


class SupConLoss(torch.nn.Module):
    """Supervised contrastive loss, with the call of SupContrast's `SupConLoss`.

    What differs from that code, each on purpose: features are scaled to unit length here (`normalize=False` takes
    them as given: similarity is then a dot product, and the safe range of temperature shrinks with the square of
    their norm); anchors without positives leave the mean (`reduction="all"` counts them as 0); the loss is not
    multiplied by temperature / base temperature.

    Args:
        temperature: divides similarities.
        form: `out` (the sum over positives outside the logarithm) or `in`.
        denominator: `all`, `one` or `negatives`.
        normalize: whether to scale features to unit length; a zero vector stays zero.
        reduction: `valid`, `all`, `sum` or `none`.
        backend: `dense`, `tiled`, `triton` or `auto`.

    >>> features = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0))
    >>> loss = SupConLoss(temperature=0.1)(features, labels=torch.arange(8) // 2)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        form: str = "out",
        denominator: str = "all",
        normalize: bool = True,
        reduction: str = "valid",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature, self.form, self.denominator = temperature, form, denominator
        self.normalize, self.reduction, self.backend = normalize, reduction, backend

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The loss of `b` samples seen in `v` views.

        Args:
            features: `b v d`; further axes are flattened into d.
            labels: of samples, integers `b`; without labels and mask, views of one sample are positives (SimCLR).
            mask: weights of sample pairs >= 0, `b b`, graded or asymmetric if wished; an entry above 0 is a positive.

        Returns:
            A scalar, or `v·b` values, view-major, with reduction `none`.
        """
        rows = view_major(features)
        if self.normalize:
            wide = rows if rows.dtype == torch.float64 else rows.float()
            rows = torch.nn.functional.normalize(wide, dim=1)
        affinity = _affinity_of_views(features.shape[0], features.shape[1], labels, mask, features.device)
        return weighted_supcon(
            rows,
            None,
            affinity,
            temperature=self.temperature,
            form=self.form,
            denominator=self.denominator,
            reduction=self.reduction,
            backend=self.backend,
        )


def view_major(features: Tensor) -> Tensor:
    """Rows `(v b) d` of features `b v d`: all samples' first view, then their second."""
    if features.ndim < 3:
        raise InputError(
            "SupConLoss",
            expected="features `b v d`",
            got=f"shape {tuple(features.shape)}",
            fix="features.unsqueeze(1) for one view, or torch.stack([view_1, view_2], dim=1)",
        )
    return features.flatten(2).transpose(0, 1).flatten(0, 1)


def _affinity_of_views(b: int, v: int, labels: Tensor | None, mask: Tensor | None, device: torch.device) -> Affinity:
    if labels is not None and mask is not None:
        raise InputError("SupConLoss", expected="labels or a mask", got="both")
    if mask is not None:
        if mask.shape != (b, b):
            raise InputError("SupConLoss", expected=f"a mask `b b` of {(b, b)}", got=f"shape {tuple(mask.shape)}")
        return Dense(mask, rows=torch.arange(b, device=device).repeat(v))
    if labels is None:
        return SameSample(torch.arange(b, device=device).repeat(v))
    labels = labels.reshape(-1)
    if len(labels) != b:
        raise InputError("SupConLoss", expected=f"{b} labels, one a sample", got=f"{len(labels)}")
    return SameLabel(labels.repeat(v))
