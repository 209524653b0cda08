"""The selection of a backend: by name, or by the size and kind of the problem."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from mmcon.affinity import transforms_active
from mmcon.errors import InputError
from mmcon.losses.backends import plain
from mmcon.losses.backends.autograd_node import ForwardPass, PassKind
from mmcon.losses.backends.dense import dense_both, dense_losses
from mmcon.losses.backends.tiled import restored, tiled_both, tiled_losses, tiled_pass
from mmcon.losses.backends.triton import ClassWeights, supported_weights, triton_losses
from mmcon.losses.loss_inputs import AnchorLosses, Problem
from mmcon.losses.settings import WHERE

#: Up to this many pairs a full matrix takes 1 MiB in float32 and is faster than the bookkeeping of tiles.
MAX_DENSE_PAIRS = 512 * 512
#: Presets that the Triton kernels support: weights of classes, negatives of weight 1.
TRITON_PRESETS = (
    "supcon_out", "supcon_in", "simclr", "sincere", "dcl", "clip", "clip_one_way", "cmc", "multiple_negatives",
)  # fmt: skip


class BackendChoice(NamedTuple):
    """A backend and the reason for its selection."""

    backend: str
    reason: str


def supported_backends(preset: str) -> tuple[str, ...]:
    """The backends that support a preset."""
    return ("dense", "tiled", "triton") if preset in TRITON_PRESETS else ("dense", "tiled")


def choose_backend(problem: Problem) -> BackendChoice:
    """The backend that `auto` selects."""
    return _choice(problem, _class_weights(problem))


def compute(problem: Problem) -> AnchorLosses:
    """The loss of each anchor, by the backend of the settings."""
    backend, weights = _resolve(problem)
    if isinstance(weights, ClassWeights):
        return triton_losses(problem, weights)
    return {"dense": dense_losses, "tiled": tiled_losses}[backend](problem)


def first_pass(problem: Problem) -> tuple[AnchorLosses, ForwardPass | None]:
    """The losses by the backend of the settings, and the pass of `tiled`; None of another backend."""
    backend, _ = _resolve(problem)
    if backend != "tiled":
        return compute(problem), None
    found = tiled_pass(problem)
    return found.losses(), found


def losses_of_pass(problem: Problem, kind: PassKind, saved: Float[Tensor, "_ a"]) -> AnchorLosses:
    """The losses of a problem whose `first_pass` saved some numbers; those of other backends are computed again."""
    return compute(problem) if kind == PassKind.OTHER else restored(problem, kind, saved).losses()


def compute_both(problem: Problem, reverse: Problem) -> tuple[AnchorLosses, AnchorLosses]:
    """The losses of both directions of a pair of modalities, of dot products at one temperature.

    The backends `dense` and `tiled` compute each similarity once; `triton` computes it for each direction.
    """
    backend, weights = _resolve(problem)
    if isinstance(weights, ClassWeights):
        return compute(problem), compute(reverse)
    return {"dense": dense_both, "tiled": tiled_both}[backend](problem, reverse)


def _resolve(problem: Problem) -> tuple[str, ClassWeights | None]:
    """The backend of a call, with the weights for `triton`."""
    asked, weights = problem.settings.backend, _class_weights(problem)
    backend = _choice(problem, weights).backend if asked == "auto" else asked
    if problem.anchors.is_meta:
        backend = "dense"  # without values there are shapes alone, which full matrices give
    elif backend != "dense" and transforms_active():
        raise InputError(
            WHERE,
            expected="backend 'dense' or 'auto' under torch.func",
            got=f"backend {asked!r}",
            fix="full matrices have every derivative: backend='dense'",
        )
    if backend != "triton":
        return backend, None
    if not isinstance(weights, ClassWeights):
        fix = "use backend='tiled', which supports every setting in O(n) memory, or 'auto'"
        raise InputError(WHERE, expected="settings that backend 'triton' supports", got=weights, fix=fix)
    return backend, weights


def _class_weights(problem: Problem) -> ClassWeights | str:
    """The weights for the Triton kernels, or why these are not used; computed once, since it sorts the labels."""
    asked, (a, c) = problem.settings.backend, problem.affinity.shape
    if asked == "triton" or (asked == "auto" and problem.anchors.is_cuda and a * c > MAX_DENSE_PAIRS):
        return supported_weights(problem)
    return "not asked for"


def _choice(problem: Problem, weights: ClassWeights | str) -> BackendChoice:
    pairs = problem.affinity.shape[0] * problem.affinity.shape[1]
    if pairs <= MAX_DENSE_PAIRS:
        return BackendChoice("dense", f"{pairs} pairs are few enough for a full matrix")
    if transforms_active() or problem.anchors.is_meta:
        return BackendChoice("dense", "torch.func transforms and the meta device need full matrices")
    if isinstance(weights, ClassWeights):
        return BackendChoice("triton", f"{pairs} pairs of rows on a GPU, with class weights")
    if problem.anchors.is_cuda:
        return BackendChoice("tiled", f"{pairs} pairs are computed tile by tile; not triton: {weights}")
    how = "in the general form"
    if plain.supports(problem):
        how = "each pair once, with shared exponentials" if problem.square else "with one exponential a pair"
    return BackendChoice("tiled", f"{pairs} pairs are computed tile by tile, {how}")
