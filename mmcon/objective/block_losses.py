"""The losses of all blocks of a step: the two directions of a pair of modalities share their similarities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from mmcon.affinity import Affinity
from mmcon.losses.loss_inputs import AnchorLosses
from mmcon.losses.settings import LossSettings
from mmcon.losses.supcon import anchor_losses, both_directions


class BlockInputs(NamedTuple):
    """The arguments of `anchor_losses` for a block."""

    anchors: Float[Tensor, "a d"]
    candidates: Float[Tensor, "c d"] | None
    affinity: Affinity
    temperature: float | Float[Tensor, ""]
    self_index: Int[Tensor, " a"] | None
    settings: LossSettings


def losses_of_blocks(inputs: Mapping[str, BlockInputs]) -> dict[str, AnchorLosses]:
    """The loss of each anchor, by block."""
    found: dict[str, AnchorLosses] = {}
    for name, block in inputs.items():
        if name in found:
            continue
        reverse = next((n for n, b in inputs.items() if n != name and n not in found and _are_reverse(block, b)), None)
        if reverse is None or block.candidates is None:
            found[name] = anchor_losses(*block)
            continue
        affinities = block.affinity, inputs[reverse].affinity
        found[name], found[reverse] = both_directions(
            block.anchors, block.candidates, affinities, block.temperature, block.settings
        )
    return found


def _are_reverse(block: BlockInputs, other: BlockInputs) -> bool:
    """Whether the similarities of one are those of the other, transposed: the same rows, one temperature, one form."""
    same_rows = block.candidates is other.anchors and other.candidates is block.anchors
    if not same_rows or block.settings.similarity is not None or block.settings != other.settings:
        return False
    one, two = block.temperature, other.temperature
    same_temperature = one is two or (not isinstance(one, Tensor) and not isinstance(two, Tensor) and one == two)
    own_index = block.self_index is not None or other.self_index is not None
    return same_temperature and not own_index and not isinstance(block.settings.negative_weights, Affinity)
