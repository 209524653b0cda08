"""The inputs of the weighted loss, checked once for all backends (`Problem`), and what a backend returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.affinity import Affinity, as_affinity, has_values
from mmcon.affinity.pairwise import Pairwise
from mmcon.errors import InputError
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.settings import WHERE, LossSettings, check_temperature


class AnchorLosses(NamedTuple):
    """The outputs of a backend.

    Attributes:
        losses: one for each anchor, 0 where the anchor is not valid.
        valid: whether the anchor has a positive and, with denominator `negatives`, a negative.
    """

    losses: Float[Tensor, " a"]
    valid: Bool[Tensor, " a"]


@dataclass(frozen=True)
class Problem:
    """The inputs of a backend.

    Attributes:
        anchors: float32 or float64.
        candidates: of the same dtype; the same tensor object where the anchors are the candidates.
        affinity: positive weights, `a c`.
        temperature: on the device of the anchors.
        self_index: the candidate that is the anchor itself, or -1.
        diagonal: whether each anchor is known to be its own candidate.
        has_self: whether any anchor may be a candidate.
        settings: as in `weighted_supcon`; its `negative_weights` have the shape `a c`.
    """

    anchors: Float[Tensor, "a d"]
    candidates: Float[Tensor, "c d"]
    affinity: Affinity
    temperature: Float[Tensor, ""]
    self_index: Int[Tensor, " a"]
    diagonal: bool
    has_self: bool
    settings: LossSettings

    @property
    def square(self) -> bool:
        """Whether the anchors are the candidates."""
        return self.candidates is self.anchors

    def is_diagonal(self) -> bool:
        """Whether the anchors are the candidates, each its own self; reads `self_index` where one was given."""
        if not self.square or self.diagonal:
            return self.diagonal
        return torch.equal(self.self_index, default_self_index(self.anchors, square=True))

    @property
    def negative_affinity(self) -> Affinity | None:
        """Weights of negatives that do not depend on the embeddings."""
        weights = self.settings.negative_weights
        return weights if isinstance(weights, Affinity) else None

    @property
    def hard_negatives(self) -> HardNegatives | None:
        """Weights of negatives that depend on the embeddings."""
        weights = self.settings.negative_weights
        return weights if isinstance(weights, HardNegatives) else None

    @property
    def is_softmax(self) -> bool:
        """Whether the denominator is the sum of all candidates' exponentials, positives and negatives alike."""
        return self.settings.denominator == "all" and self.settings.negative_weights is None

    @property
    def all_are_negatives(self) -> bool:
        """Whether negative weights alone define the negatives: the affinity is above 0 for every pair."""
        return self.negative_affinity is not None and self.affinity.infinite_support


def prepare(
    anchors: Shaped[Tensor, "..."],
    candidates: Shaped[Tensor, "..."] | None,
    affinity: object,
    *,
    temperature: float | Shaped[Tensor, "..."],
    self_index: Shaped[Tensor, "..."] | None,
    settings: LossSettings,
) -> Problem:
    """Check the inputs of a call and convert them for the backends; half precision becomes float32.

    Arguments are annotated for any shape, since they are checked here: `a d`, `c d`, a scalar, `a`.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or the settings need negatives that the affinity lacks.
    """
    given = anchors if candidates is None else candidates
    square = given is anchors
    _check_embeddings(anchors, given)
    anchors = _widened(anchors)
    pool = anchors if square else _widened(given).to(anchors.dtype)
    if settings.check_finite:
        for name, rows in (("anchors", anchors), ("candidates", pool))[: 1 if square else 2]:
            _check_finite_rows(name, rows)
    weights = _checked_weights(affinity, anchors, pool, "affinity")
    if isinstance(settings.negative_weights, Affinity):
        negative_weights = _checked_weights(settings.negative_weights, anchors, pool, "negative_weights")
        settings = replace(settings, negative_weights=negative_weights)
    problem = Problem(
        anchors=anchors,
        candidates=pool,
        affinity=weights,
        temperature=_checked_temperature(temperature, anchors),
        self_index=_checked_self_index(self_index, anchors, pool),
        diagonal=square and self_index is None,
        has_self=square or self_index is not None,
        settings=settings,
    )
    _check_negatives(problem)
    return problem


def default_self_index(anchors: Float[Tensor, "a d"], *, square: bool) -> Int[Tensor, " a"]:
    """The diagonal where the anchors are the candidates, else -1: no anchor is a candidate."""
    diagonal = torch.arange(len(anchors), device=anchors.device)
    return diagonal if square else torch.full_like(diagonal, -1)


def check_weights_again(affinity: object, settings: LossSettings) -> None:
    """Check the values of weights that were made in a compiled graph, where there were none to check."""
    for weights in (affinity, settings.negative_weights):
        if isinstance(weights, Affinity):
            weights.check_values()


def check_positives(valid: Bool[Tensor, " a"], settings: LossSettings) -> None:
    """Raise InputError for anchors without positives, if the settings say so."""
    if settings.no_positives == "exclude" or bool(valid.all()):
        return
    missing = (~valid).nonzero()[:, 0]
    raise InputError(
        WHERE,
        expected="a positive for every anchor",
        got=f"{len(missing)} of {len(valid)} anchors without one, first at rows {missing[:5].tolist()}",
        fix="sample two rows per class or two views per sample, or use no_positives='exclude'",
    )


def check_single_backward(backend: str) -> None:
    """Raise InputError if a backward pass is recorded: a second derivative through it would be silently wrong."""
    if torch.is_grad_enabled():
        raise InputError(
            WHERE,
            expected="a backward pass without create_graph",
            got=f"create_graph=True with backend {backend!r}",
            fix="use backend='dense' for second derivatives",
        )


def _widened(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _check_embeddings(anchors: Shaped[Tensor, "..."], candidates: Shaped[Tensor, "..."]) -> None:
    for name, rows in (("anchors", anchors), ("candidates", candidates)):
        if rows.ndim != 2 or not rows.is_floating_point():
            raise InputError(
                WHERE,
                expected=f"{name} `{name[0]} d`, floating point",
                got=f"{rows.dtype} of shape {tuple(rows.shape)}",
                fix="flatten views into rows, features.transpose(0, 1).flatten(0, 1), or use SupConLoss",
            )
        if rows.shape[1] != anchors.shape[1] or rows.device != anchors.device:
            got = f"widths {anchors.shape[1]} and {rows.shape[1]} on {anchors.device} and {rows.device}"
            raise InputError(WHERE, expected="anchors and candidates of one width on one device", got=got)


def _check_finite_rows(name: str, rows: Float[Tensor, "n d"]) -> None:
    """Raise InputError for NaN or infinite rows on the CPU; on a GPU the check would wait for the device."""
    # A sum is one pass without memory. It may overflow for finite rows, so that only then each entry is looked at.
    if rows.is_cuda or not has_values(rows) or math.isfinite(float(rows.detach().sum())):
        return
    wrong = (~rows.detach().isfinite().all(1)).nonzero()[:, 0].tolist()
    if wrong:
        raise InputError(
            WHERE,
            expected=f"finite {name}",
            got=f"{len(wrong)} of {len(rows)} rows with NaN or infinity, first at rows {wrong[:5]}",
            fix="look for an overflow in half precision or a division by 0 in the model; check_finite=False skips this",
        )


def _checked_weights(
    weights: object, anchors: Float[Tensor, "a d"], candidates: Float[Tensor, "c d"], name: str
) -> Affinity:
    affinity = as_affinity(weights)
    shape = (len(anchors), len(candidates))
    if affinity.shape != shape:
        raise InputError(
            WHERE,
            expected=f"{name} for {shape[0]} anchors and {shape[1]} candidates",
            got=f"one for {affinity.shape[0]} and {affinity.shape[1]}",
            fix="give one label (time, weight) a row; rows are view-major: all samples' first view, then their second",
        )
    # Weights on a GPU are not computed for their device alone: each launch takes time.
    values = affinity.values()[0][0] if isinstance(affinity, Pairwise) else affinity.tile(slice(0, 1), slice(0, 1))
    device = values.device
    if device != anchors.device:
        got, fix = f"{name} on {device}, embeddings on {anchors.device}", f"labels.to({str(anchors.device)!r})"
        raise InputError(WHERE, expected="all tensors on one device", got=got, fix=fix)
    return affinity.with_dtype(anchors.dtype)


def _checked_temperature(
    temperature: float | Shaped[Tensor, "..."], anchors: Float[Tensor, "a d"]
) -> Float[Tensor, ""]:
    if not isinstance(temperature, Tensor):
        # Checked on the host, and filled in on the device: a copy would wait for it.
        check_temperature(WHERE, temperature)
        return torch.full((), float(temperature), dtype=anchors.dtype, device=anchors.device)
    check_temperature(WHERE, temperature)
    return temperature.to(anchors.device, anchors.dtype).reshape(())


def _checked_self_index(
    self_index: Shaped[Tensor, "..."] | None, anchors: Float[Tensor, "a d"], candidates: Float[Tensor, "c d"]
) -> Int[Tensor, " a"]:
    a, c = len(anchors), len(candidates)
    if self_index is None:
        return default_self_index(anchors, square=candidates is anchors)
    fits = self_index.shape == (a,) and not self_index.is_floating_point() and self_index.device == anchors.device
    checked = fits and a > 0 and has_values(self_index)
    if not fits or (checked and not -1 <= int(self_index.min()) <= int(self_index.max()) < c):
        got = f"{self_index.dtype} of shape {tuple(self_index.shape)} on {self_index.device}"
        raise InputError(WHERE, expected=f"self_index of {a} candidate columns from 0 to {c - 1}, or -1", got=got)
    return self_index


def _check_negatives(problem: Problem) -> None:
    """Raise InputError if the settings need negatives, and the affinity is above 0 for every pair."""
    if not problem.affinity.never_zero:
        return
    if problem.hard_negatives is not None:
        raise InputError(WHERE, expected="negatives to weight", got="an affinity that never reaches 0")
    if problem.settings.denominator != "all" and problem.negative_affinity is None:
        raise InputError(
            WHERE,
            expected=f"negatives for denominator {problem.settings.denominator!r}",
            got="an affinity that never reaches 0, so that every pair is positive",
            fix="give the kernel a floor, pass negative_weights, or use denominator='all'",
        )
