"""The autograd node of a loss that is computed tile by tile, and what its backward pass needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmcon.losses.backends.exponentials import PairTiles
from mmcon.losses.loss_inputs import AnchorLosses, check_single_backward

#: The most numbers of an anchor that `ForwardPass.saved` has.
SAVED_ROWS = 9


class PassKind(IntEnum):
    """How a forward pass was computed: by which path over tiles, or by another backend, which is computed again."""

    OTHER = 0
    PLAIN = 1
    WEIGHTS = 2
    GROUPED = 3
    WHOLE = 4


class ForwardPass(ABC):
    """A complete forward pass over tiles: the sums with which the backward pass begins."""

    @property
    @abstractmethod
    def kind(self) -> PassKind:
        """The path of the pass."""

    @abstractmethod
    def losses(self) -> AnchorLosses:
        """The loss of each anchor, with its node of the autograd graph."""

    @abstractmethod
    def saved(self) -> Float[Tensor, "k a"]:
        """The numbers of each anchor from which the pass is made again (`tiled.restored`), up to `SAVED_ROWS`."""


class BackwardState(ABC):
    """What the backward pass needs beside the embeddings."""

    @property
    @abstractmethod
    def pairs(self) -> PairTiles:
        """The pairs of the loss."""

    @abstractmethod
    def of_rows(
        self, gradients: Sequence[Shaped[Tensor, " _"]], *, of_candidates: bool
    ) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
        """The gradients of anchors and of candidates times the temperature, from those of the losses.

        Args:
            gradients: of the losses of each direction.
            of_candidates: whether those of the candidates are asked for.
        """


class LossNode(torch.autograd.Function):
    """Losses that are known, with a gradient for the embeddings and the temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        state: BackwardState,
        anchors: Float[Tensor, "a d"],
        candidates: Float[Tensor, "c d"] | None,
        temperature: Float[Tensor, ""],
        *losses: Float[Tensor, " _"],
    ) -> tuple[Float[Tensor, " _"], ...]:
        """The losses of each direction; candidates are None where they are the anchors."""
        ctx.state = state
        ctx.save_for_backward(anchors, candidates)  # which checks that they have not changed
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " _"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        """The gradients of the arguments of `forward`."""
        check_single_backward("tiled")
        anchors, _ = ctx.saved_tensors
        pairs: PairTiles = ctx.state.pairs
        of_anchors, of_candidates = ctx.state.of_rows(gradients, of_candidates=ctx.needs_input_grad[2])
        # Σ_ij G_ij ⟨a_i, c_j⟩; where the anchors are the candidates, each pair was added from both ends.
        of_inverse = (anchors * of_anchors).sum() / (2 if pairs.square else 1)
        of_temperature = -of_inverse * pairs.inverse * pairs.inverse
        of_anchors.mul_(pairs.inverse)
        if pairs.square or of_candidates is None:
            return None, of_anchors, None, of_temperature, *(None for _ in gradients)
        return None, of_anchors, of_candidates.mul_(pairs.inverse), of_temperature, *(None for _ in gradients)
