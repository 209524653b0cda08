"""Which implementation computes the loss: asked for by name, or picked, with the reason."""

from __future__ import annotations

from typing import NamedTuple

from mmcon.affinity import check_choice
from mmcon.losses import triangle
from mmcon.losses.dense import dense_rows
from mmcon.losses.problem import WHERE, Problem, Rows
from mmcon.losses.tiled import tiled_rows

BACKENDS = ("auto", "dense", "tiled", "triton")
# Below this many pairs a whole matrix is 1 MiB in float32 and quicker than the bookkeeping of tiles.
SMALL = 512 * 512


class Choice(NamedTuple):
    """A backend and the reason why it was picked."""

    backend: str
    reason: str


def choose(problem: Problem) -> Choice:
    """What `auto` picks for a problem."""
    pairs = problem.affinity.shape[0] * problem.affinity.shape[1]
    if pairs <= SMALL:
        return Choice("dense", f"{pairs} pairs are few enough for a whole matrix")
    how = "each pair once, with shared exponentials" if triangle.fits(problem) else "by rows, in the general form"
    return Choice("tiled", f"{pairs} pairs are visited tile by tile, {how}")


def compute(problem: Problem, backend: str) -> Rows:
    """The rows' losses by a backend."""
    check_choice(WHERE, "backend", backend, BACKENDS)
    picked = choose(problem).backend if backend == "auto" else backend
    return {"dense": dense_rows, "tiled": tiled_rows}[picked](problem)
