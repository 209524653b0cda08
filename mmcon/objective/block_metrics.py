"""The metrics of each block in one step of the objective."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BlockMetrics(NamedTuple):
    """The metrics of a block over all ranks; tensors, so that the step does not wait for the device.

    Attributes:
        loss: the mean before the weight of the block.
        anchors: the number of anchors.
        valid: the number of anchors with a positive.
    """

    loss: Float[Tensor, ""]
    anchors: Float[Tensor, ""]
    valid: Float[Tensor, ""]

    @staticmethod
    def empty(device: torch.device) -> BlockMetrics:
        """The metrics of a block without anchors or candidates."""
        zero = torch.zeros((), device=device)
        return BlockMetrics(zero, zero, zero)


class ObjectiveMetrics(dict[str, BlockMetrics]):
    """The metrics of the last step by block, `space/anchors>candidates`."""

    def metrics(self) -> dict[str, float]:
        """The numbers to log: the loss and the share of valid anchors of each block, and the number of empty blocks."""
        logged = {}
        for name, block in self.items():
            logged[f"loss/{name}"] = float(block.loss)
            logged[f"valid_anchors/{name}"] = float(block.valid / block.anchors.clamp_min(1))
        return {**logged, "empty_blocks": float(sum(int(block.valid) == 0 for block in self.values()))}
