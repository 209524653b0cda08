"""The supervised contrastive loss with pair weights: `weighted_supcon` (function) and `SupConLoss` (module).

`SupConLoss` has the interface of SupContrast. SimCLR, CLIP and others are settings of the loss (`presets`). `forms`
computes the forms `out` and `in` line by line; the backends that work tile by tile return the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmcon.affinity import Affinity, Dense, SameLabel, SameSample
from mmcon.affinity.pairwise import Numbers, as_column
from mmcon.errors import InputError
from mmcon.losses.backends.selection import BackendChoice, choose_backend, compute, compute_both
from mmcon.losses.compilation import losses_in_graph, outside_graphs
from mmcon.losses.loss_inputs import AnchorLosses, check_positives, check_weights_again, prepare
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.settings import OPTIONS, LossSettings, Similarity, check_temperature

AffinityLike = Affinity | Tensor | Callable[..., Tensor]


def weighted_supcon(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: AffinityLike,
    *,
    temperature: float | Shaped[Tensor, "..."],
    form: str = "out",
    denominator: str = "all",
    self_index: Shaped[Tensor, "..."] | None = None,
    negative_weights: AffinityLike | HardNegatives | None = None,
    row_normalize: bool = True,
    similarity: Similarity | None = None,
    scale: str = "none",
    no_positives: str = "exclude",
    reduction: str = "valid",
    backend: str = "auto",
    check_finite: bool = True,
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """The weighted contrastive loss, with s_ij = ⟨anchor_i, candidate_j⟩ / temperature and Ŵ_ij = W_ij / Σ_j W_ij.

        out:  ℓ_i = -Σ_j Ŵ_ij (s_ij - log D_ij)         all:        D_i  = Σ_positives e^{s_ik} + N_i
        in:   ℓ_i = -log Σ_j Ŵ_ij e^{s_ij} + log D_i    one:        D_ij = e^{s_ij} + N_i
        N_i = Σ_negatives V_ik e^{s_ik}                 negatives:  D_i  = N_i

    Equal weights give eq. 2 (out) and 3 (in) of Khosla et al. 2020. Pairs with W > 0 are positive, others negative.

    Args:
        anchors: `a d`, taken as given: unit rows for cosine similarity. Half precision is computed in float32.
        candidates: `c d`; None: the anchors, each left out of its own row.
        affinity: W `a c`: an `Affinity`, a matrix, or a function of two tables.
        temperature: a number, or a scalar that receives its gradient. Unit rows are safe in float32 to .001.
        form: `out` or `in`.
        denominator: `all`, `one` or `negatives`.
        self_index: int64 `a`, the candidate that is the anchor itself, or -1.
        negative_weights: V, like `affinity`, or `HardNegatives`; None: 1.
        row_normalize: Ŵ is W divided by its row sum; False: Ŵ = W. The embeddings are never normalized here.
        similarity: a kernel `(a d, c d) -> a c` in place of the dot product; a Module's parameters receive gradients.
        scale: `temperature` multiplies the loss by it, as the published settings do.
        no_positives: `exclude` such anchors, which have loss 0, from the mean, or raise an `error`.
        reduction: `valid` (mean over anchors with positives), `all` (mean over all), `sum`, or `none`.
        backend: `dense`, `tiled`, `triton` or `auto` (see `explain_backend`).
        check_finite: refuse NaN and infinite rows by number; not on a GPU, which would wait, or under `torch.func`.

    Returns:
        A scalar, or `a` losses; float32, or float64 for float64 anchors.

    Raises:
        InputError: shapes, devices, values or settings that do not fit.

    >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), dim=1)
    >>> round(weighted_supcon(z, None, SameLabel(torch.tensor([0, 0, 1, 1])), temperature=0.1).item(), 4)
    0.0003
    """
    options = {"form": form, "denominator": denominator, "negative_weights": negative_weights,
               "row_normalize": row_normalize, "similarity": similarity, "scale": scale, "no_positives": no_positives,
               "reduction": reduction, "backend": backend, "check_finite": check_finite}  # fmt: skip
    if torch.compiler.is_compiling():
        return _reduced_in_graph(anchors, candidates, affinity, temperature, self_index, options)
    return _reduced_eagerly(anchors, candidates, affinity, temperature, self_index, LossSettings(**options))


def _reduced_eagerly(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: AffinityLike,
    temperature: float | Shaped[Tensor, "..."],
    self_index: Shaped[Tensor, "..."] | None,
    settings: LossSettings,
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    return reduce(anchor_losses(anchors, candidates, affinity, temperature, self_index, settings), settings)


def _reduced_in_graph(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: AffinityLike,
    temperature: float | Shaped[Tensor, "..."],
    self_index: Shaped[Tensor, "..."] | None,
    options: dict[str, Any],
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """`weighted_supcon` under `torch.compile`."""
    found = losses_in_graph(anchors, candidates, affinity, temperature, self_index, list(options.items()))
    if found is None:
        return _reduced_outside(anchors, candidates, affinity, temperature, self_index, options)
    losses, valid = found
    if options["scale"] == "temperature":
        losses = losses * temperature
    return _reduced(losses, valid, options["reduction"])


@outside_graphs
def _reduced_outside(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: AffinityLike,
    temperature: float | Shaped[Tensor, "..."],
    self_index: Shaped[Tensor, "..."] | None,
    options: dict[str, Any],
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """`weighted_supcon` after the graph that made its arguments, where affinities did not check their values."""
    settings = LossSettings(**options)
    check_weights_again(affinity, settings)
    return _reduced_eagerly(anchors, candidates, affinity, temperature, self_index, settings)


def anchor_losses(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: AffinityLike,
    temperature: float | Shaped[Tensor, "..."],
    self_index: Shaped[Tensor, "..."] | None,
    settings: LossSettings,
) -> AnchorLosses:
    """`weighted_supcon` before its reduction: the loss of each anchor, and whether the anchor is valid."""
    # Under autocast the products would be in half precision. The meta device has no autocast.
    with torch.autocast("cpu" if anchors.is_meta else anchors.device.type, enabled=False):
        problem = prepare(
            anchors, candidates, affinity, temperature=temperature, self_index=self_index, settings=settings
        )
        losses, valid = compute(problem)
        if settings.scale == "temperature":
            losses = losses * problem.temperature
    return AnchorLosses(losses, valid)


def both_directions(
    first: Shaped[Tensor, "..."],
    second: Shaped[Tensor, "..."],
    affinities: tuple[AffinityLike, AffinityLike],
    temperature: float | Shaped[Tensor, "..."],
    settings: LossSettings,
) -> tuple[AnchorLosses, AnchorLosses]:
    """`anchor_losses` of the rows `first` against `second` and of `second` against `first`.

    Each similarity is computed once, where the backend and the settings allow.

    Args:
        first: `a d`, none of which is a row of `second`.
        second: `c d`.
        affinities: `a c` and `c a`.
        temperature: of both directions.
        settings: of both directions, without negative weights that are an affinity and without a similarity.
    """
    with torch.autocast("cpu" if first.is_meta else first.device.type, enabled=False):
        sides = zip(((first, second), (second, first)), affinities, strict=True)
        problem, reverse = (
            prepare(a, c, affinity, temperature=temperature, self_index=None, settings=settings)
            for (a, c), affinity in sides
        )
        found = compute_both(problem, reverse)
        scale = problem.temperature if settings.scale == "temperature" else None
    one, other = (AnchorLosses(x if scale is None else x * scale, valid) for x, valid in found)
    return one, other


def reduce(found: AnchorLosses, settings: LossSettings) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """Apply `no_positives` and `reduction`."""
    check_positives(found.valid, settings)
    return _reduced(found.losses, found.valid, settings.reduction)


def _reduced(
    losses: Float[Tensor, " a"], valid: Bool[Tensor, " a"], reduction: str
) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    count = valid if reduction == "valid" else torch.ones_like(valid)
    return losses.sum() / count.sum().to(losses).clamp_min(1)


def explain_backend(
    anchors: Float[Tensor, "a d"],
    candidates: Float[Tensor, "c d"] | None,
    affinity: AffinityLike,
    *,
    temperature: float | Float[Tensor, ""],
    self_index: Shaped[Tensor, " a"] | None = None,
    **settings: Any,
) -> BackendChoice:
    """The backend that `auto` selects for a call of `weighted_supcon`, and the reason."""
    return choose_backend(
        prepare(
            anchors, candidates, affinity,
            temperature=temperature, self_index=self_index, settings=LossSettings(**settings),
        )
    )  # fmt: skip


class SupConLoss(torch.nn.Module):
    """Supervised contrastive loss with the interface of SupContrast's `SupConLoss`.

    It differs from that code in three conventions: features are scaled to unit length here; anchors without positives
    leave the mean (`reduction="all"` counts them as 0); the loss is not multiplied by temperature / base temperature.

    Args:
        temperature: divides similarities: a number, a scalar tensor, or a module that returns one, such as
            `LearnableTemperature`.
        form: `out` (the sum over positives outside the logarithm) or `in`.
        denominator: `all`, `one` or `negatives`.
        normalize: whether to scale features to unit length; a zero vector stays zero. Without it the similarity is a
            dot product, and the safe range of temperature shrinks with the square of the features' norm.
        reduction: `valid`, `all`, `sum` or `none`.
        backend: `dense`, `tiled`, `triton` or `auto`.
        check_finite: refuse NaN and infinite features, as in `weighted_supcon`.

    Raises:
        InputError: a setting is unknown, or a temperature is not above 0.

    >>> features = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0))
    >>> loss = SupConLoss(temperature=0.1)(features, labels=torch.arange(8) // 2)
    """

    def __init__(
        self,
        temperature: float | Shaped[Tensor, "..."] | torch.nn.Module = 0.1,
        form: str = "out",
        denominator: str = "all",
        normalize: bool = True,
        reduction: str = "valid",
        backend: str = "auto",
        check_finite: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(temperature, torch.nn.Module):
            check_temperature("SupConLoss", temperature)
        self.temperature, self.normalize = temperature, normalize
        self.settings = LossSettings(
            form=form, denominator=denominator, reduction=reduction, backend=backend, check_finite=check_finite
        )

    def forward(
        self,
        features: Shaped[Tensor, "..."],
        labels: Numbers | None = None,
        mask: Numbers | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " n"]:
        """The loss of `b` samples in `v` views.

        Args:
            features: `b v d`, or `b d` for one view; further axes are flattened into d.
            labels: of samples, integers `b` in a tensor, an array or a list; without labels and mask, views of one
                sample are positives (SimCLR).
            mask: weights of sample pairs >= 0, `b b`, graded or asymmetric if needed; pairs above 0 are positive.

        Returns:
            A scalar, or `v·b` values, view-major, with reduction `none`.

        Raises:
            InputError: shapes that do not fit, labels that are not integers, both labels and a mask, or neither of
                them for one view.
        """
        features = features[:, None] if features.ndim == 2 else features
        rows = view_major(features)
        if self.normalize:
            # Unit rows in bfloat16 are off by up to .2 %, which a division by T = .1 turns into hundredths of a logit.
            wide = rows if rows.dtype == torch.float64 else rows.float()
            rows = torch.nn.functional.normalize(wide, dim=1)
        affinity = _affinity_of_views(features.shape[0], features.shape[1], labels, mask, features.device)
        temperature = self.temperature() if isinstance(self.temperature, torch.nn.Module) else self.temperature
        if torch.compiler.is_compiling():
            options = {name: getattr(self.settings, name) for name in OPTIONS}
            return _reduced_in_graph(rows, None, affinity, temperature, None, options)
        return _reduced_eagerly(rows, None, affinity, temperature, None, self.settings)


def view_major(features: Shaped[Tensor, "..."]) -> Float[Tensor, "n d"]:
    """Rows `(v b) d` of features `b v d`: the first view of all samples, then the second."""
    if features.ndim < 3:
        raise InputError(
            "SupConLoss",
            expected="features `b v d`, or `b d`",
            got=f"shape {tuple(features.shape)}",
            fix="torch.stack([view_1, view_2], dim=1) for views that are `b d`",
        )
    return rearrange(features, "b v ... -> (v b) (...)")


def _affinity_of_views(b: int, v: int, labels: Numbers | None, mask: Numbers | None, device: torch.device) -> Affinity:
    samples = repeat(torch.arange(b, device=device), "b -> (v b)", v=v)
    if labels is not None and mask is not None:
        raise InputError("SupConLoss", expected="labels or a mask", got="both")
    if mask is not None:
        weights = _as_tensor("mask", mask, device)
        if weights.shape != (b, b):
            raise InputError("SupConLoss", expected=f"a mask `b b` of {(b, b)}", got=f"shape {tuple(weights.shape)}")
        return Dense(weights, rows=samples)
    if labels is None:
        if v == 1:
            got, fix = "one view a sample, and neither labels nor a mask", "pass labels, or two views as `b v d`"
            raise InputError("SupConLoss", expected="positives", got=got, fix=fix)
        return SameSample(samples)
    numbers = _as_tensor("labels", labels, device).reshape(-1)
    if len(numbers) != b:
        raise InputError("SupConLoss", expected=f"{b} labels, one a sample", got=f"{len(numbers)}")
    return SameLabel(repeat(numbers, "b -> (v b)", v=v))


def _as_tensor(name: str, values: Numbers, device: torch.device) -> Shaped[Tensor, "..."]:
    """A tensor is unchanged, so that one on another device is an error; arrays and lists have no device."""
    return values if isinstance(values, Tensor) else as_column(f"SupConLoss, {name}", values).to(device)
