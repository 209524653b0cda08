"""Which implementation computes the loss: asked for by name, or picked, with the reason."""

from __future__ import annotations

from typing import NamedTuple

from mmcon.affinity import check_choice
from mmcon.losses.dense import dense_rows
from mmcon.losses.problem import WHERE, Problem, Rows

BACKENDS = ("auto", "dense", "tiled", "triton")
# Below this many pairs a whole matrix is 1 MiB in float32 and quicker than the bookkeeping of tiles.
SMALL = 512 * 512


class Choice(NamedTuple):
    """A backend and the reason why it was picked."""

    backend: str
    reason: str


def choose(problem: Problem) -> Choice:
    """What `auto` picks for a problem."""
    return Choice("dense", "the only one so far")


def compute(problem: Problem, backend: str) -> Rows:
    """The rows' losses by a backend."""
    check_choice(WHERE, "backend", backend, BACKENDS)
    return dense_rows(problem)
