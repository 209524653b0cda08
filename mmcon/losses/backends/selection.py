"""The selection of a backend: by name, or by the size and kind of the problem."""

from __future__ import annotations

from typing import NamedTuple

from mmcon.errors import InputError
from mmcon.losses.backends import symmetric
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.backends.tiled import tiled_losses
from mmcon.losses.problem import AnchorLosses, Problem
from mmcon.losses.settings import WHERE

#: Up to this many pairs a full matrix takes 1 MiB in float32 and is faster than the bookkeeping of tiles.
MAX_DENSE_PAIRS = 512 * 512
#: Presets whose weights the Triton kernels support: classes, over all candidates.
TRITON_PRESETS = ("supcon_out", "simclr", "clip", "clip_one_way", "multiple_negatives", "moco")


class BackendChoice(NamedTuple):
    """A backend and the reason for its selection."""

    backend: str
    reason: str


def supported_backends(preset: str) -> tuple[str, ...]:
    """The backends that support a preset."""
    return ("dense", "tiled", "triton") if preset in TRITON_PRESETS else ("dense", "tiled")


def choose_backend(problem: Problem) -> BackendChoice:
    """The backend that `auto` selects."""
    pairs = problem.affinity.shape[0] * problem.affinity.shape[1]
    if problem.anchors.is_cuda and pairs > MAX_DENSE_PAIRS:
        from mmcon.losses.backends import triton

        if (reason := triton.unsupported_reason(problem)) is None:
            return BackendChoice("triton", f"{pairs} pairs of rows on a GPU, with class weights over all candidates")
        return BackendChoice("tiled", f"{pairs} pairs are computed tile by tile; not triton: {reason}")
    if pairs <= MAX_DENSE_PAIRS:
        return BackendChoice("dense", f"{pairs} pairs are few enough for a full matrix")
    how = "each pair once, with shared exponentials" if symmetric.supports(problem) else "in the general form"
    return BackendChoice("tiled", f"{pairs} pairs are computed tile by tile, {how}")


def compute(problem: Problem) -> AnchorLosses:
    """The loss of each anchor, by the backend of the settings."""
    asked = problem.settings.backend
    backend = choose_backend(problem).backend if asked == "auto" else asked
    if backend != "triton":
        return {"dense": dense_losses, "tiled": tiled_losses}[backend](problem)
    from mmcon.losses.backends import triton

    if (reason := triton.unsupported_reason(problem)) is not None:
        fix = "use backend='tiled', which supports every setting in O(n) memory, or 'auto'"
        raise InputError(WHERE, expected="settings that backend 'triton' supports", got=reason, fix=fix)
    return triton.triton_losses(problem)
