"""Samples that are mixed with others of the global batch: whose views are needed, and where they are mixed in.

A generator of scope "partner" (mixup, CutMix) names for each row another place in the global batch. The partner's view
has the same number and is made by its own key, as far as the part of the chain that mixes; so a mixed view is a
function of the global batch, and neither the processes nor the workers that share it change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.batch import Index, tree_map
from mmcon.errors import ConfigError
from mmcon.views import Chain, Params, ViewGenerator, select_samples


class Mixing(NamedTuple):
    """The part of a generator that mixes: where it stands, what it is called, and what it is."""

    place: int
    name: str
    generator: ViewGenerator
    alone: bool

    def of(self, params: Params) -> Params:
        """What was drawn for it."""
        return params if self.alone else params[self.name]


def mixing_part(generator: ViewGenerator) -> Mixing | None:
    """The part of a generator that needs partners, or None.

    Raises:
        ConfigError: there are two (the second would need partners of partners), or a memory would take partners in.
    """
    parts = generator.children()
    found = [
        Mixing(i, name, part, part is generator) for i, (name, part) in enumerate(parts) if part.scope == "partner"
    ]
    memories = [name for name, part in parts if part.scope == "stateful"] if found else []
    if len(found) + len(memories) > 1:
        raise ConfigError(
            f"view {generator.name or type(generator).__name__!r}",
            expected="at most one part that mixes samples, and beside it none with a memory",
            got=str([*(mixing.name for mixing in found), *memories]),
            fix="give each a view of its own",
        )
    return found[0] if found else None


def check_partners(generators: Sequence[ViewGenerator], batch_size: int) -> None:
    """Refuse, before the first step, views that need a partner where a global batch has none."""
    for generator in generators:
        mixing = mixing_part(generator)
        if mixing is not None and batch_size < 2:
            raise ConfigError(
                mixing.name,
                expected="a global batch of at least 2, in which each sample has a partner",
                got=f"batch_size={batch_size}",
                fix="raise --batch-size",
            )


def with_partners(own: Int[Tensor, " n"], wanted: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """The rows that a process must make: its own, then those that are partners alone; and where each partner stands.

    >>> with_partners(torch.tensor([0, 1]), torch.tensor([7, 0]))
    (tensor([0, 1, 7]), tensor([2, 0]))
    """
    every = torch.cat([own, wanted[~torch.isin(wanted, own)].unique()])
    order = every.argsort()
    return every, order[torch.searchsorted(every[order], wanted)]


def beside(index: Index, partners: Int[Tensor, " n"]) -> Index:
    """The table of the own rows, with the `partner_sample` and, where there are labels, the `partner_label` of each."""
    others = index.take(partners)
    return index.take(slice(len(partners))).with_columns(**_columns(others))


def unmixed(table: Index) -> Index:
    """The table of rows that nothing was mixed into, which stand beside mixed ones: they are their own partners."""
    return table.with_columns(share=torch.ones(table.n, dtype=torch.float64), **_columns(table))


def _columns(others: Index) -> dict[str, Tensor]:
    return {f"partner_{name}": others[name] for name in ("sample", "label") if name in others}


def meet(generator: ViewGenerator, samples: Any, params: Params, partners: Int[Tensor, " n"]) -> Any:
    """The batched stage of a generator that mixes.

    Args:
        generator: one of whose parts has scope "partner".
        samples: `m` rows after the ragged stage, of which the first n are to become views.
        params: what was drawn for all of them.
        partners: the row that each of the first n is mixed with.
    """
    mixing, parts = mixing_part(generator), generator.children()
    assert mixing is not None
    before, after = Chain(*parts[: mixing.place]), Chain(*parts[mixing.place + 1 :])
    views = before.apply_batched(samples, params)
    params = select_samples(params, slice(len(partners)))
    own, others = (tree_map(lambda x, rows=rows: x[rows], views) for rows in (slice(len(partners)), partners))
    mix: Any = mixing.generator.apply
    return after.apply(mix(own, mixing.of(params), partners=others), params)
