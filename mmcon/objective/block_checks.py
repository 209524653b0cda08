"""Checks of blocks before the first step, against the model, the views and the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mmcon.affinity import Affinity, SameSample
from mmcon.errors import ConfigError, nearest
from mmcon.objective.pair_blocks import Block, modality_of, view_of


def check_blocks(
    blocks: Sequence[Block] | None, spaces: Mapping[str, Iterable[str]], views: Mapping[str, int] | None = None
) -> None:
    """Check that a model with these spaces, and a batch with these views, can fill the blocks.

    Args:
        blocks: of the objective, or None.
        spaces: by space, the modalities that have a head.
        views: by modality, the number of views in a batch; None: not known yet.

    Raises:
        ConfigError: a block names an unknown space, modality or view.
    """
    for block in blocks or ():
        if block.space is not None and block.space not in spaces:
            raise _unknown(block, "a space", block.space, spaces)
        known = {m for name, modalities in spaces.items() if block.space in (name, None) for m in modalities}
        which = f"which have a head in {'any space' if block.space is None else f'space {block.space!r}'}"
        for name in sorted({name for side in block.sides for name in side}):
            modality = modality_of(name)
            if modality not in known:
                raise _unknown(block, "a modality", modality, known, which)
            if views is not None and modality not in views:
                raise _unknown(block, "a modality", modality, views, "which batches have views of")
            if ":" in name and view_of(name) >= (views or {}).get(modality, math.inf):
                known_views = [f"{modality}:{view}" for view in range((views or {})[modality])]
                raise _unknown(block, "a view", name, known_views, "which batches hold")


def has_both_sides(space: str, block: Block, spaces: Mapping[str, Iterable[str]]) -> bool:
    """Whether a space has heads for both sides of a block."""
    heads = set(spaces.get(space, ()))
    return all(any(modality_of(name) in heads for name in side) for side in block.sides)


def check_shared_samples(
    label: str, block: Block, affinity: Affinity, counts: Mapping[tuple[str, str], int], source: str
) -> None:
    """Check a block whose positives are rows of one sample: some sample of the data must have both modalities.

    Args:
        label: of the block.
        block: the block.
        affinity: of the block.
        counts: by pair of modalities, the number of samples that have both.
        source: the name of the data.

    Raises:
        ConfigError: the block can never have a positive.
    """
    anchors, candidates = ({modality_of(name) for name in side} for side in block.sides)
    if isinstance(affinity, SameSample) and not any(counts.get((a, c), 0) for a in anchors for c in candidates):
        raise ConfigError(
            f"block {label!r}",
            expected="samples that have both sides, since positives are rows of one sample",
            got=f"none in {source}",
            fix="give a sample the same id in both sources, leave the pair out, or use SameLabel",
        )


def check_unique_labels(labels: Iterable[str]) -> None:
    """Raise ConfigError if two blocks have the same sides in one space."""
    for label, count in Counter(labels).items():
        if count > 1:
            expected = "each pair of sides once in a space"
            raise ConfigError("Objective", expected=expected, got=f"{count} blocks {label!r}")


def _unknown(block: Block, what: str, name: str, known: Iterable[str], which: str = "") -> ConfigError:
    return ConfigError(
        f"block {block.label(block.space or '*')!r}",
        expected=f"{what} among {sorted(known)}" + (f", {which}" if which else ""),
        got=repr(name),
        fix=nearest(name, sorted(known)),
    )
