"""The modality pairs (blocks) of an objective, with affinity, temperature and weight filled in.

They are computed once for each set of modalities that a batch has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.affinity import Affinity, as_affinity, as_number
from mmcon.errors import ConfigError
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.settings import LossSettings
from mmcon.objective.block_checks import check_blocks, check_shared_samples, check_unique_labels, has_both_sides
from mmcon.objective.pair_blocks import Block, Name, blocks_by_space
from mmcon.sources.base import Source
from mmcon.sources.joined import modality_pair_counts

#: The name of a setting that applies to all spaces; it is part of the state dict.
EVERY_SPACE = "every space"


@dataclass(frozen=True)
class SpaceBlock:
    """A block in one space with its settings resolved.

    Attributes:
        anchors, candidates: the names of its rows.
        weight: multiplies the loss of the block.
        affinity: positive weights, by column names.
        temperature: a module that returns it.
        settings: of the loss, with negative weights by column names.
    """

    anchors: tuple[Name, ...]
    candidates: tuple[Name, ...]
    weight: float
    affinity: Affinity
    temperature: nn.Module
    settings: LossSettings


@dataclass(frozen=True)
class BlockTable:
    """The blocks of an objective, and the settings by space that they refer to.

    Attributes:
        blocks: with affinities and temperature modules; None: every ordered pair in every space.
        union: one block a space in place of the pairs.
        affinities, temperatures: by `name_of_space`.
        settings: of the loss.
    """

    blocks: tuple[Block, ...] | None
    union: bool
    affinities: Mapping[str, Affinity]
    temperatures: Mapping[str, nn.Module] | nn.ModuleDict
    settings: LossSettings
    _resolved: dict[frozenset[Name], dict[str, SpaceBlock | None]] = field(default_factory=dict, repr=False)

    def resolve(self, names: Iterable[Name]) -> Mapping[str, SpaceBlock | None]:
        """The blocks by label, None where a side has no rows; computed once for each set of names.

        Raises:
            ConfigError: two blocks have the same sides in one space, or a block has no affinity or temperature.
        """
        present = frozenset(names)
        if present not in self._resolved:
            blocks = list(blocks_by_space(self.blocks, self.union, present))
            check_unique_labels(block.label(space) for space, block in blocks)
            self._resolved[present] = {
                block.label(space): self._resolve_block(space, block, present) for space, block in blocks
            }
        return self._resolved[present]

    def check(self, spaces: Mapping[str, Iterable[str]], source: Any, views: Mapping[str, int] | None) -> None:
        """Raise ConfigError for blocks that a model or its data can never fill; see `Objective.check`."""
        check_blocks(self.blocks, spaces, views)
        names = [(space, modality) for space, modalities in spaces.items() for modality in modalities]
        counts = modality_pair_counts(source) if isinstance(source, Source) and self.blocks is not None else None
        blocks = list(blocks_by_space(self.blocks, self.union, names))
        check_unique_labels(block.label(space) for space, block in blocks)
        for space, block in blocks:
            if has_both_sides(space, block, spaces):
                affinity, _ = self._affinity(space, block), self._temperature(space, block)
                if counts is not None:
                    check_shared_samples(block.label(space), block, affinity, counts, source.name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The learnable parameters of positive and negative weights, each once."""
        weights = [*self.affinities.values(), self.settings.negative_weights]
        for block in self.blocks or ():
            weights += [block.affinity, block.negative_weights]
        found = {id(p): p for w in weights if isinstance(w, Affinity) for p in w.parameters()}
        return (parameter for parameter in found.values() if isinstance(parameter, nn.Parameter))

    def _resolve_block(self, space: str, block: Block, present: frozenset[Name]) -> SpaceBlock | None:
        sides = (tuple((space, name) for name in side if (space, name) in present) for side in block.sides)
        anchors, candidates = sides
        if not anchors or not candidates:
            return None
        settings = self.settings
        if block.negative_weights is not None:
            settings = replace(settings, negative_weights=block.negative_weights)
        affinity, temperature = self._affinity(space, block), self._temperature(space, block)
        return SpaceBlock(anchors, candidates, block.weight, affinity, temperature, settings)

    def _affinity(self, space: str, block: Block) -> Affinity:
        if block.affinity is not None:
            return block.affinity
        return self.affinities[_known_name("an affinity", self.affinities, space)]

    def _temperature(self, space: str, block: Block) -> nn.Module:
        if block.temperature is not None:
            return block.temperature
        return self.temperatures[_known_name("a temperature", self.temperatures, space)]


class FixedTemperature(nn.Module):
    """A temperature given as a number or a parameter, with the interface of `LearnableTemperature`."""

    def __init__(self, value: float | Float[Tensor, ""]) -> None:
        super().__init__()
        if as_number(value) <= 0:
            raise ConfigError("Objective", expected="temperature above 0", got=str(as_number(value)))
        self.value = value

    def forward(self) -> float | Float[Tensor, ""]:
        """The value."""
        return self.value


def as_blocks(blocks: Sequence[Block | Mapping[str, Any]] | None) -> tuple[Block, ...] | None:
    """Blocks from their fields; affinities and temperatures are converted to objects and modules."""
    if blocks is None:
        return None
    return tuple(_converted(block if isinstance(block, Block) else Block(**block)) for block in blocks)


def temperature_module(temperature: Any) -> nn.Module:
    """A module that returns the temperature."""
    return temperature if isinstance(temperature, nn.Module) else FixedTemperature(temperature)


def by_space(value: Any) -> dict[str, Any]:
    """A setting by `name_of_space`, from one value for all spaces or from a mapping."""
    given = value if isinstance(value, Mapping) else {"": value}
    return {name_of_space(space): of_space for space, of_space in given.items()}


def name_of_space(space: str) -> str:
    """The name of a space in the state dict, where the name of a module must not have a dot."""
    return space.replace(".", "·") or EVERY_SPACE


def _known_name(what: str, known: Any, space: str) -> str:
    for name in (name_of_space(space), EVERY_SPACE):
        if name in known:
            return name
    raise ConfigError("Objective", expected=f"{what} for space {space!r}", got=f"ones for {sorted(known)}")


def _converted(block: Block) -> Block:
    changes: dict[str, Any] = {}
    if block.affinity is not None:
        changes["affinity"] = as_affinity(block.affinity)
    if block.temperature is not None:
        changes["temperature"] = temperature_module(block.temperature)
    if block.negative_weights is not None and not isinstance(block.negative_weights, HardNegatives):
        changes["negative_weights"] = as_affinity(block.negative_weights)
    return replace(block, **changes)
