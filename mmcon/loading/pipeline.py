"""From a batch plan to views: the per-sample stage (before collate) and the batched stage (after collate).

The per-sample stage draws all parameters, decodes and collates. Views of a group are view-major: the first view of all
samples, then the second view of all samples. If a generator mixes samples of the global batch, a rank also computes the
views of partners that belong to other ranks, after its own views, until they are mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmcon.batch import Index, ViewBatch, tree_map
from mmcon.loading.mixup_partners import add_partners, apply_mixing, as_own_partners, mixing_child, with_partner_columns
from mmcon.loading.open_and_draw import OpenedSamples, Opening
from mmcon.loading.unreadable_samples import READ_ERRORS, Unreadable, try_each
from mmcon.samplers.base import BatchPlan
from mmcon.sources.base import Source
from mmcon.views import Params, ViewGenerator, collate, select_samples

Views = Mapping[str, Sequence[ViewGenerator]]
"""By modality, the generators of its views."""


@dataclass(frozen=True)
class ViewGroup:
    """Consecutive views of one modality with the same generator, drawn and applied together.

    Attributes:
        modality: the modality of the samples.
        generator: the generator of the views.
        views: the view numbers.
        batch_mixes: whether any group of the batch mixes samples; all index tables then have the partner columns.
    """

    modality: str
    generator: ViewGenerator
    views: tuple[int, ...]
    batch_mixes: bool = False

    @property
    def is_stateful(self) -> bool:
        """Whether a generator remembers the samples of earlier batches."""
        return any(child.scope == "stateful" for _, child in self.generator.children())


def group_views(views: Views) -> tuple[ViewGroup, ...]:
    """Group the views of each modality: consecutive uses of the same generator object are one group."""
    groups: list[ViewGroup] = []
    mixes = any(mixing_child(generator) for generators in views.values() for generator in generators)
    for modality, generators in views.items():
        previous: ViewGenerator | None = None
        for number, generator in enumerate(generators):
            if generator is previous:
                groups[-1] = replace(groups[-1], views=(*groups[-1].views, number))
            else:
                groups.append(ViewGroup(modality, generator, (number,), mixes))
            previous = generator
    return tuple(groups)


@dataclass
class CollatedGroup:
    """One view group of a batch between its two stages: after collate, before the batched stage.

    Attributes:
        group: the view group.
        samples: the collated samples: this rank's views, then those that are only partners. None if no sample is
            readable; there are then no parameters, and the index has no columns.
        params: the parameters of all children of the generator, for the same views.
        index: the table of this rank's views.
        partners: for each of this rank's views, the row of its partner in `samples`; None without mixing.
        failures: unreadable samples by id; their views are left out.
        has_rows: False: the views only have their shapes and columns from a sample, and are cut to no rows.
    """

    group: ViewGroup
    samples: Any
    params: Params
    index: Index
    partners: Int[Tensor, " n"] | None = None
    failures: dict[int, Unreadable] = field(default_factory=dict)
    has_rows: bool = True

    def map(self, f: Any) -> CollatedGroup:
        """The same group with a function applied to `samples` and `partners`.

        Parameters stay on the CPU: `apply` branches on them, and reading them from a GPU would synchronize with it.
        """
        return replace(self, samples=tree_map(f, self.samples), partners=tree_map(f, self.partners))

    def pin_memory(self) -> CollatedGroup:
        """The same group in page-locked memory, for asynchronous copies to a GPU; called by DataLoader."""
        return self.map(Tensor.pin_memory)


def collate_group(
    group: ViewGroup,
    source: Source,
    batch: BatchPlan,
    shard: slice,
    *,
    seed: int,
    left_out: Mapping[int, Unreadable] | None = None,
) -> CollatedGroup | None:
    """The per-sample stage of a view group for one shard of a global batch: open, draw, decode, collate.

    Samples that raise DataError, in their header or their content, are left out and reported. If no sample of the
    shard is readable, one of another shard gives the views their shapes and columns, and they have no rows: so the
    rank takes part in the collective operations of the step, for which the others wait. If there is none, or a
    stateful generator would remember it, `samples` is None.

    Args:
        group: the view group.
        source: the samples of its modality.
        batch: the global batch.
        shard: the range of this rank in the global batch.
        seed: the seed of the run.
        left_out: samples that are not opened, by id, since they cannot be, or end their process.

    Returns:
        None if no sample of the shard has the modality.
    """
    collated = _collate_readable(group, source, batch, shard, seed, left_out or {})
    if collated is None or collated.samples is not None or group.is_stateful:
        return collated
    for position in (*range(shard.start), *range(shard.stop, len(batch))):
        other = _collate_readable(group, source, batch.take([position]), slice(0, 1), seed, left_out or {})
        if other is not None and other.samples is not None:
            return replace(other, failures=collated.failures, has_rows=False)
    return collated


def _collate_readable(
    group: ViewGroup, source: Source, batch: BatchPlan, shard: slice, seed: int, left_out: Mapping[int, Unreadable]
) -> CollatedGroup | None:
    batch, shard = _with_modality(source, batch, shard)
    count, n = shard.stop - shard.start, len(batch)
    if not count:
        return None
    positions = torch.arange(shard.start, shard.stop).repeat(len(group.views))
    views = torch.tensor(group.views).repeat_interleave(count)
    opening = Opening(group.modality, group.generator, source, batch, seed, left_out)
    opened = opening.open_and_draw(positions + views * n)
    if not len(opened.slots):
        return CollatedGroup(group, None, {}, opened.index, None, opened.failures)
    mixing = mixing_child(group.generator)
    if mixing is None:
        return _decode(group, opening, opened, len(opened.slots), None)
    own = opened.slots
    drawn = mixing.generator.partners(mixing.own_params(opened.params), own % n, n)
    needed, partners = add_partners(own, drawn + own // n * n)
    if len(needed) > len(own):
        opened_for = set(source.ids[batch.indices[shard]].tolist())  # the rank that owns a partner reports it
        failures = opened.failures
        opened = opening.open_and_draw(needed)
        failures |= {sample: why for sample, why in opened.failures.items() if sample in opened_for}
        opened = opened._replace(failures=failures)
        partners = _rows_of_partners(opened.slots, own, needed[partners])
    return _decode(group, opening, opened, len(partners), partners)


def apply_batched_views(groups: Sequence[CollatedGroup], step: int) -> ViewBatch:
    """Run the batched stage of every view group, on the device of its samples, and make the batch of views."""
    views: dict[str, tuple[Any, ...]] = {}
    tables: dict[str, list[Index]] = {}
    params: dict[str, tuple[Any, ...]] = {}
    for collated in groups:
        modality, generator = collated.group.modality, collated.group.generator
        own_params, index = collated.params, collated.index
        if collated.partners is None:
            made = generator.apply_batched(collated.samples, collated.params)
            index = as_own_partners(index) if collated.group.batch_mixes else index
        else:
            made = apply_mixing(generator, collated.samples, collated.params, collated.partners)
            own_params = select_samples(collated.params, slice(len(collated.partners)))
        if not collated.has_rows:
            made, own_params, index = tree_map(_no_rows, made), tree_map(_no_rows, own_params), index.map(_no_rows)
        views[modality] = (*views.get(modality, ()), made)
        params[modality] = (*params.get(modality, ()), own_params)
        tables.setdefault(modality, []).append(index)
    return ViewBatch(views, {name: Index.cat(t) for name, t in tables.items()}, params, step)


def _with_modality(source: Source, batch: BatchPlan, shard: slice) -> tuple[BatchPlan, slice]:
    """The samples of the global batch that have the modality, and the range of the shard among them."""
    present = source.present(batch.indices)
    if present is None:
        return batch, shard
    return batch.take(present), slice(int(present[: shard.start].sum()), int(present[: shard.stop].sum()))


def _rows_of_partners(
    slots: Int[Tensor, " m"], own: Int[Tensor, " n"], partners: Int[Tensor, " n"]
) -> Int[Tensor, " k"]:
    """For each own slot that was opened, the row of its partner; its own row if the partner cannot be opened."""
    row = {slot: number for number, slot in enumerate(slots.tolist())}
    pairs = zip(own.tolist(), partners.tolist(), strict=True)
    return torch.tensor([row.get(partner, row[slot]) for slot, partner in pairs if slot in row], dtype=torch.int64)


def _decode(
    group: ViewGroup, opening: Opening, opened: OpenedSamples, own: int, partners: Int[Tensor, " n"] | None
) -> CollatedGroup:
    """Decode and collate all samples; after a failure, decode one by one, so that only unreadable ones are left out."""
    try:
        samples = collate(group.generator.apply_ragged(opened.handles, opened.params))
    except READ_ERRORS:
        return _decode_one_by_one(group, opening, opened, own, partners)
    index = opened.index if partners is None else with_partner_columns(opened.index, partners)
    return CollatedGroup(group, samples, opened.params, index, partners, opened.failures)


def _decode_one_by_one(
    group: ViewGroup, opening: Opening, opened: OpenedSamples, own: int, partners: Int[Tensor, " n"] | None
) -> CollatedGroup:
    def decode(row: int) -> Any:
        params = select_samples(opened.params, slice(row, row + 1))
        return collate(group.generator.apply_ragged([opened.handles[row]], params))

    decoded, errors = try_each(decode, range(len(opened.keys)))
    failures = dict(opened.failures)
    for row, error in errors.items():
        if row < own:  # the rank that owns a partner reports it
            reason = f"{error} (key: {opened.keys.describe(row)})"
            failures[int(opened.keys.fields[row, 2])] = Unreadable(opening.file_of(opened.slots[row]), reason)
    # A sample that fails in one view is left out of all, so that no single view counts as a sample; its other views
    # may still be partners.
    kept = [row for row in decoded if row < own and int(opened.keys.fields[row, 2]) not in failures]
    if not kept:
        return CollatedGroup(group, None, {}, Index({}), None, failures)
    rows = kept
    if partners is not None:
        kept_rows = set(kept)
        rows = kept + [row for row in decoded if row not in kept_rows]
    samples = _concatenate([decoded[row] for row in rows])
    params, index = select_samples(opened.params, rows), opened.index.take(rows)
    if partners is not None:
        new_row = {row: new for new, row in enumerate(rows)}
        # A view with an unreadable partner is mixed with itself, that is, unchanged, for any world size.
        partners = torch.tensor([new_row.get(int(partners[row]), new_row[row]) for row in kept])
        index = with_partner_columns(index, partners)
    return CollatedGroup(group, samples, params, index, partners, failures)


def _no_rows(x: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "0 ..."]:
    return x[:0]


def _concatenate(batches: list[Any]) -> Any:
    if isinstance(batches[0], Mapping):
        return {name: _concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return torch.cat(batches)
