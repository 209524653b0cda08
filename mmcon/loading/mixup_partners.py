"""Mixup and CutMix in the loader: the partner samples that a rank needs too, and the step that mixes them in.

`mmcon.loading.pipeline` loads the partners, which may belong to other ranks.

A generator of scope "partner" (mixup, CutMix) draws a partner in the global batch for each sample. The partner's view
has the same view number and is computed from the partner's own key, by the children of the chain before the mixing one.
So a mixed view depends only on the global batch, and its bits are the same for any world size and number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmcon.batch import Index, tree_map
from mmcon.errors import ConfigError
from mmcon.views import Chain, Params, ViewGenerator, select_samples


class MixingChild(NamedTuple):
    """The child of a generator that mixes samples.

    Attributes:
        position: its index among the children.
        name: its name in the chain.
        generator: the child.
        is_root: whether the generator is not a chain, so that its parameters are not nested under its name.
    """

    position: int
    name: str
    generator: ViewGenerator
    is_root: bool

    def own_params(self, params: Params) -> Params:
        """The parameters of this child, from those of the whole generator."""
        return params if self.is_root else params[self.name]


def mixing_child(generator: ViewGenerator) -> MixingChild | None:
    """The child of a generator that needs partners, or None.

    Raises:
        ConfigError: there are two (the second would need partners of partners), or one and a stateful child (whose
            memory would get the partners too).
    """
    children = generator.children()
    found = [
        MixingChild(i, name, child, child is generator)
        for i, (name, child) in enumerate(children)
        if child.scope == "partner"
    ]
    stateful = [name for name, child in children if child.scope == "stateful"] if found else []
    if len(found) + len(stateful) > 1:
        raise ConfigError(
            f"view {generator.name or type(generator).__name__!r}",
            expected="at most one child that mixes samples, and no stateful child with it",
            got=str([*(mixing.name for mixing in found), *stateful]),
            fix="use a separate view for each",
        )
    return found[0] if found else None


def check_partners(generators: Sequence[ViewGenerator], batch_size: int) -> None:
    """Raise ConfigError if views need partners and the global batch has one sample."""
    for generator in generators:
        mixing = mixing_child(generator)
        if mixing is not None and batch_size < 2:
            raise ConfigError(
                mixing.name,
                expected="a global batch of at least 2, so that each sample has a partner",
                got=f"batch_size={batch_size}",
                fix="raise --batch-size",
            )


def add_partners(own: Int[Tensor, " n"], partners: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """Add partner samples to a rank's shard; return all samples, the rank's own first, and the index of each partner.

    >>> add_partners(torch.tensor([0, 1]), torch.tensor([7, 0]))
    (tensor([0, 1, 7]), tensor([2, 0]))
    """
    needed = torch.cat([own, partners[~torch.isin(partners, own)].unique()])
    order = needed.argsort()
    return needed, order[torch.searchsorted(needed[order], partners)]


def with_partner_columns(index: Index, partners: Int[Tensor, " n"]) -> Index:
    """The index table of a rank's own views, with columns `partner_sample` and, if there are labels, `partner_label`.

    Args:
        index: the table of all `m` views that the rank computes, its own first.
        partners: for each own view, the row of its partner in `index`.
    """
    own = index.take(slice(len(partners)))
    return own.with_columns(**_partner_columns(index.take(partners)))


def as_own_partners(index: Index) -> Index:
    """The index table of unmixed views in a batch with mixed ones: each view is its own partner, with share 1."""
    return index.with_columns(share=torch.ones(index.n, dtype=torch.float64), **_partner_columns(index))


def _partner_columns(partners: Index) -> dict[str, Shaped[Tensor, "n ..."]]:
    return {f"partner_{name}": partners[name] for name in ("sample", "label") if name in partners}


def apply_mixing(generator: ViewGenerator, samples: Any, params: Params, partners: Int[Tensor, " n"]) -> Any:
    """The batched stage of a generator that mixes samples.

    Args:
        generator: a generator with one child of scope "partner".
        samples: `m` collated samples: the rank's own n, then those that are only partners.
        params: the parameters of all `m` samples.
        partners: for each own sample, the row of its partner in `samples`.

    Returns:
        The n views.
    """
    mixing, children = mixing_child(generator), generator.children()
    assert mixing is not None
    before, after = Chain(*children[: mixing.position]), Chain(*children[mixing.position + 1 :])
    views = before.apply_batched(samples, params)
    params = select_samples(params, slice(len(partners)))
    own, others = (tree_map(lambda x, rows=rows: x[rows], views) for rows in (slice(len(partners)), partners))
    mix: Any = mixing.generator.apply
    return after.apply(mix(own, mixing.own_params(params), partners=others), params)
