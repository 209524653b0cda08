"""One call of the weighted loss, checked: what every backend is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmcon.affinity import Affinity, as_affinity, as_number, check_choice
from mmcon.errors import InputError
from mmcon.losses.negative_weights import HardNegatives

WHERE = "weighted_supcon"
FORMS = ("out", "in")
DENOMINATORS = ("all", "one", "negatives")
SCALES = ("none", "temperature")
Similarity = Callable[[Tensor, Tensor], Tensor]


class RowLosses(NamedTuple):
    """What a backend returns: `losses` of anchors, `a`, 0 where not valid, and `valid`, bool `a`."""

    losses: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Problem:
    """Anchors, candidates and weights, ready to compute.

    Attributes:
        anchors: `a d`, float32 or float64.
        candidates: `c d`; the very same tensor where anchors are the candidates.
        affinity: positive weights, `a c`.
        temperature: a scalar tensor on the anchors' device.
        form, denominator, row_normalize, similarity: as in `weighted_supcon`.
        self_index: the candidate that is the anchor itself, int64 `a`, or -1.
        negatives: weights of negatives in the denominator, `a c`, or hard-negative weighting, or None for 1.
    """

    anchors: Tensor
    candidates: Tensor
    affinity: Affinity
    temperature: Tensor
    form: str
    denominator: str
    self_index: Tensor
    negatives: Affinity | HardNegatives | None
    row_normalize: bool
    similarity: Similarity | None

    @property
    def square(self) -> bool:
        """Whether anchors are the candidates."""
        return self.candidates is self.anchors

    @property
    def all_are_negatives(self) -> bool:
        """With a kernel that never reaches 0, negative weights alone say who is a negative."""
        return self.affinity.never_zero and isinstance(self.negatives, Affinity)


def prepare(
    anchors: Tensor,
    candidates: Tensor | None,
    affinity: object,
    *,
    temperature: float | Tensor,
    form: str,
    denominator: str,
    self_index: Tensor | None,
    negative_weights: object,
    row_normalize: bool,
    similarity: Similarity | None,
) -> Problem:
    """Check a call and bring it into the form that backends read. Half precision becomes float32 here."""
    check_choice(WHERE, "form", form, FORMS)
    check_choice(WHERE, "denominator", denominator, DENOMINATORS)
    _check_embeddings(anchors, candidates)
    square = candidates is None or candidates is anchors
    anchors = _widened(anchors)
    weights = _checked_weights(affinity, anchors, anchors if square else candidates, "affinity")
    negatives = negative_weights
    if negatives is not None and not isinstance(negatives, HardNegatives):
        negatives = _checked_weights(negatives, anchors, anchors if square else candidates, "negative_weights")
    problem = Problem(
        anchors=anchors,
        candidates=anchors if square else _widened(candidates).to(anchors.dtype),  # pyright: ignore
        affinity=weights,
        temperature=_checked_temperature(temperature, anchors),
        form=form,
        denominator=denominator,
        self_index=_checked_self(self_index, anchors, None if square else candidates),
        negatives=negatives,  # pyright: ignore
        row_normalize=row_normalize,
        similarity=similarity,
    )
    _check_combination(problem)
    return problem


def _widened(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _check_embeddings(anchors: Tensor, candidates: Tensor | None) -> None:
    for name, rows in (("anchors", anchors), ("candidates", candidates)):
        if rows is None:
            continue
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


def _checked_weights(weights: object, anchors: Tensor, candidates: Tensor | None, name: str) -> Affinity:
    affinity = as_affinity(weights)
    shape = (anchors.shape[0], candidates.shape[0])  # pyright: ignore
    if affinity.shape != shape:
        raise InputError(
            WHERE,
            expected=f"{name} for {shape[0]} anchors and {shape[1]} candidates",
            got=f"one for {affinity.shape[0]} and {affinity.shape[1]}",
            fix="give one label (time, weight) a row; rows are view-major: all samples' first view, then their second",
        )
    some = affinity.tile(slice(0, 1), slice(0, 1))
    if some.device != anchors.device:
        got = f"{name} on {some.device}, embeddings on {anchors.device}"
        raise InputError(
            WHERE, expected="all tensors on one device", got=got, fix=f"labels.to({str(anchors.device)!r})"
        )
    return affinity


def _checked_temperature(temperature: float | Tensor, anchors: Tensor) -> Tensor:
    value = torch.as_tensor(temperature, dtype=anchors.dtype, device=anchors.device)
    if value.numel() != 1 or not 0 < as_number(value) < float("inf"):
        got = f"shape {tuple(value.shape)}" if value.numel() != 1 else str(as_number(value))
        raise InputError(WHERE, expected="one temperature above 0", got=got, fix="usual values are .04 to .2")
    return value.reshape(())


def _checked_self(self_index: Tensor | None, anchors: Tensor, candidates: Tensor | None) -> Tensor:
    a = anchors.shape[0]
    if self_index is None:
        own = torch.arange(a, device=anchors.device)
        return own if candidates is None else torch.full_like(own, -1)
    c = a if candidates is None else candidates.shape[0]
    fits = self_index.shape == (a,) and not self_index.is_floating_point() and self_index.device == anchors.device
    if not fits or (a and not -1 <= int(self_index.min()) <= int(self_index.max()) < c):
        got = f"{self_index.dtype} of shape {tuple(self_index.shape)} on {self_index.device}"
        raise InputError(WHERE, expected=f"self_index of {a} candidate columns from 0 to {c - 1}, or -1", got=got)
    return self_index


def _check_combination(problem: Problem) -> None:
    if problem.form == "in" and problem.denominator == "one":
        raise InputError(
            WHERE,
            expected="the in form with denominator 'all' or 'negatives'",
            got="'one'",
            fix="a denominator for each positive needs the sum outside the logarithm: form='out'",
        )
    apart = problem.denominator != "all"
    if apart and problem.affinity.never_zero and problem.negatives is None:
        raise InputError(
            WHERE,
            expected=f"negatives for denominator {problem.denominator!r}",
            got="an affinity that never reaches 0, so that every pair is positive",
            fix="give the kernel a floor, pass negative_weights, or use denominator='all'",
        )
    if isinstance(problem.negatives, HardNegatives):
        problem.negatives.check(problem.form, problem.denominator)
        if problem.affinity.never_zero:
            raise InputError(WHERE, expected="negatives to weight", got="an affinity that never reaches 0")


def refuse_double_backward(backend: str) -> None:
    """Called in a backward pass: recorded for a second one, its result would be silently wrong."""
    if torch.is_grad_enabled():
        raise InputError(
            WHERE,
            expected="one backward pass",
            got=f"create_graph=True with backend {backend!r}",
            fix="a gradient of a gradient is offered by backend='dense'",
        )
