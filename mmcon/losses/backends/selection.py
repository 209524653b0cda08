"""Which implementation computes the loss: asked for by name, or picked, with the reason."""

from __future__ import annotations

from typing import NamedTuple

from mmcon.affinity import check_choice
from mmcon.errors import InputError
from mmcon.losses.backends import symmetric
from mmcon.losses.backends.dense import dense_rows
from mmcon.losses.backends.tiled import tiled_rows
from mmcon.losses.problem import WHERE, Problem, RowLosses

BACKENDS = ("auto", "dense", "tiled", "triton")
# Below this many pairs a whole matrix is 1 MiB in float32 and quicker than the bookkeeping of tiles.
SMALL = 512 * 512
# Presets whose weights the kernels of `triton` read: classes, over all candidates.
BY_TRITON = ("supcon_out", "simclr", "clip", "clip_one_way", "multiple_negatives", "moco")


class Choice(NamedTuple):
    """A backend and the reason why it was picked."""

    backend: str
    reason: str


def offered(preset: str) -> tuple[str, ...]:
    """The backends that serve a preset."""
    return ("dense", "tiled", "triton") if preset in BY_TRITON else ("dense", "tiled")


def choose(problem: Problem) -> Choice:
    """What `auto` picks for a problem."""
    pairs = problem.affinity.shape[0] * problem.affinity.shape[1]
    if problem.anchors.is_cuda and pairs > SMALL:
        from mmcon.losses.backends import triton

        if (reason := triton.refusal(problem)) is None:
            return Choice("triton", f"{pairs} pairs of rows on a GPU, with class weights over all candidates")
        return Choice("tiled", f"{pairs} pairs are visited tile by tile; not triton: {reason}")
    if pairs <= SMALL:
        return Choice("dense", f"{pairs} pairs are few enough for a whole matrix")
    how = "each pair once, with shared exponentials" if symmetric.fits(problem) else "in the general form"
    return Choice("tiled", f"{pairs} pairs are visited tile by tile, {how}")


def compute(problem: Problem, backend: str) -> RowLosses:
    """The rows' losses by a backend."""
    check_choice(WHERE, "backend", backend, BACKENDS)
    picked = choose(problem).backend if backend == "auto" else backend
    if picked != "triton":
        return {"dense": dense_rows, "tiled": tiled_rows}[picked](problem)
    from mmcon.losses.backends import triton

    if (reason := triton.refusal(problem)) is not None:
        fix = "use backend='tiled', which serves every setting in O(n) memory, or 'auto'"
        raise InputError(WHERE, expected="what backend 'triton' offers", got=reason, fix=fix)
    return triton.triton_rows(problem)
