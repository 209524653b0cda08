"""Properties of every sampler, over random labels, world sizes and resume points."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcon.random import keys
from mmcon.samplers.block_schedule import block_shares
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.fixed_order import FixedOrderSampler
from mmcon.samplers.grouped import GroupSampler
from mmcon.samplers.hard_classes import HardClassSampler
from mmcon.samplers.mixture import MixtureSampler
from mmcon.samplers.multi_label import MultiLabelSampler
from mmcon.samplers.no_duplicates import NoDuplicatesSampler
from mmcon.samplers.uniform import UniformSampler

SIZES = st.lists(st.integers(1, 25), min_size=4, max_size=12).filter(lambda sizes: sum(sizes) >= 12)
SEEDS = st.integers(0, 2**31)


def shuffled(sizes, seed):
    """Labels with so many rows each, in any order."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[keys(seed=seed).permutation("test", len(labels))[0]]


def several(labels, seed):
    """Every row's own label, and others by chance."""
    others = keys(seed=seed, sample=list(range(len(labels)))).bernoulli("others", 0.2, shape=(int(labels.max()) + 1,))
    return others | torch.nn.functional.one_hot(labels).bool()


def hard(labels, seed):
    """With a snapshot of random directions."""
    sampler = HardClassSampler(labels, batch_size=8, classes_per_batch=4, seed=seed)
    sampler.refresh(keys(seed=seed, sample=labels).normal("class", shape=(3,)).float(), labels)
    return sampler


SAMPLERS = {
    "uniform": lambda y, seed: UniformSampler(y, batch_size=8, seed=seed),
    "class-aware": lambda y, seed: ClassAwareSampler(y, batch_size=12, classes_per_batch=4, seed=seed),
    "multi-label": lambda y, seed: MultiLabelSampler(several(y, seed), batch_size=4, labels_per_batch=2, seed=seed),
    "hard-classes": hard,
    "groups": lambda y, seed: GroupSampler(y, batch_size=9, samples_per_group=3, seed=seed),
    "no-duplicates": lambda y, seed: NoDuplicatesSampler(y, batch_size=4, seed=seed),
    "mixture": lambda y, seed: MixtureSampler(y, batch_size=5, seed=seed),
    "mixture in turn": lambda y, seed: MixtureSampler(y, batch_size=3, seed=seed, order="round-robin"),
    "fixed-order": lambda y, seed: FixedOrderSampler(y, batch_size=7, seed=seed),
}


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=15, deadline=None)
@given(SIZES, SEEDS, st.integers(0, 50), st.integers(1, 5))
def test_the_state_is_a_step_and_ranks_take_shards(name, sizes, seed, step, world_size):
    labels = shuffled(sizes, seed)
    resumed, walked = SAMPLERS[name](labels, seed), SAMPLERS[name](labels, seed)
    for before in range(max(0, step - 3), step):
        walked.batch(before)
    whole = walked.batch(step)
    assert len(whole) == resumed.batch_size
    assert bool(((whole.indices >= 0) & (whole.indices < len(labels))).all())
    parts = [resumed.batch(step).shard(rank, world_size) for rank in range(world_size)]
    assert torch.cat([part.indices for part in parts]).tolist() == whole.indices.tolist()
    assert torch.cat([part.occurrence for part in parts]).tolist() == whole.occurrence.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=15, deadline=None)
@given(SIZES, SEEDS, st.integers(0, 9))
def test_repeats_within_an_epoch_are_numbered(name, sizes, seed, epoch):
    positions, occurrence = SAMPLERS[name](shuffled(sizes, seed), seed).epoch_order(epoch)
    numbers = defaultdict(list)
    for position, number in zip(positions.tolist(), occurrence.tolist(), strict=True):
        numbers[position].append(number)
    assert all(sorted(of) == list(range(len(of))) for of in numbers.values())


@settings(max_examples=25, deadline=None)
@given(SIZES, SEEDS, st.integers(1, 3), st.integers(2, 3), st.integers(2, 4), st.integers(0, 200))
def test_whole_classes_are_on_one_rank(sizes, seed, world_size, each, piece, step):
    places = world_size * each
    sizes = sizes + [3] * max(0, places - len(sizes))
    labels = shuffled(sizes, seed)
    sampler = ClassAwareSampler(
        labels, batch_size=places * piece, classes_per_batch=places, seed=seed, whole_classes=world_size
    )
    shards = [labels[sampler.batch(step).shard(p, world_size).indices] for p in range(world_size)]
    counts = [shard.unique(return_counts=True) for shard in shards]
    assert all(of.tolist() == [piece] * each for _, of in counts)
    assert len(torch.cat([classes for classes, _ in counts]).unique()) == places


@settings(max_examples=12, deadline=None)
@given(SIZES, SEEDS, st.floats(0, 2), st.integers(2, 4))
def test_tempered_classes_come_in_proportion_to_their_size_to_alpha(sizes, seed, alpha, places):
    labels, epochs = shuffled(sizes, seed), 8
    sampler = ClassAwareSampler(
        labels, batch_size=2 * places, classes_per_batch=places, seed=seed, frequencies="tempered", alpha=alpha
    )
    share = block_shares(torch.tensor(sizes).double() ** alpha, places)
    assert float(share.sum()) == pytest.approx(places)
    free = torch.nonzero(share < 1)[:, 0]
    if len(free):  # those that do not fill a place in every batch keep their proportions
        weights = torch.tensor(sizes).double()[free] ** alpha
        assert torch.allclose(share[free] / share[free].sum(), weights / weights.sum())
    seen = sum(torch.bincount(labels[sampler.epoch_order(epoch)[0]], minlength=len(sizes)) for epoch in range(epochs))
    due = share * sampler.steps_per_epoch * epochs
    assert bool(((seen / 2 - due).abs() < epochs).all())
    assert torch.allclose(sampler.uses_per_epoch * torch.tensor(sizes), 2 * share * sampler.steps_per_epoch)


@settings(max_examples=20, deadline=None)
@given(SIZES, SEEDS, st.integers(0, 5))
def test_multi_label_batches_share_labels_and_see_samples_of_one_stand_in_alike(sizes, seed, epoch):
    labels = several(shuffled(sizes, seed), seed)
    sampler = MultiLabelSampler(labels, batch_size=6, labels_per_batch=2, seed=seed)
    rows = sampler.epoch_order(epoch)[0].view(-1, 6)
    for batch in rows:
        shared = labels[batch].long() @ labels[batch].long().T
        assert bool(((shared > 0).sum(1) >= 3).all())
    counts = labels.sum(0)
    rarest = torch.where(labels, counts, counts.max() + 1).argmin(1)
    seen = sum(torch.bincount(sampler.epoch_order(e)[0], minlength=len(labels)) for e in range(4))
    for label in rarest.unique():
        assert int(seen[rarest == label].max() - seen[rarest == label].min()) <= 1


@settings(max_examples=20, deadline=None)
@given(SIZES, SEEDS, st.integers(0, 5), st.booleans())
def test_hard_batches_are_p_times_k_and_visit_classes_in_rounds(sizes, seed, epoch, snapshot):
    labels = shuffled(sizes, seed)
    sampler = hard(labels, seed) if snapshot else HardClassSampler(labels, batch_size=8, classes_per_batch=4, seed=seed)
    rows = labels[sampler.epoch_order(epoch)[0]].view(-1, 8)
    assert all(row.unique(return_counts=True)[1].tolist() == [2] * 4 for row in rows)
    # A round is all classes, filled up to whole batches; in whole rounds every class stands at least once a round.
    per_round = -(-len(sizes) // 4)
    for start in range(0, len(rows) - per_round + 1, per_round):
        assert len(rows[start : start + per_round].unique()) == len(sizes)


@settings(max_examples=20, deadline=None)
@given(SIZES, SEEDS)
def test_a_resumed_run_with_the_saved_snapshot_plans_alike(sizes, seed):
    labels = shuffled(sizes, seed)
    sampler, resumed = hard(labels, seed), HardClassSampler(labels, batch_size=8, classes_per_batch=4, seed=seed)
    resumed.load_state_dict(sampler.state_dict())
    step = 2 * sampler.steps_per_epoch + 1
    assert resumed.batch(step).indices.tolist() == sampler.batch(step).indices.tolist()


@settings(max_examples=20, deadline=None)
@given(SIZES, SEEDS, st.integers(0, 9), st.integers(1, 4), st.integers(1, 4))
def test_samples_of_groups_are_adjacent(sizes, seed, epoch, groups, piece):
    labels = shuffled(sizes, seed)
    sampler = GroupSampler(labels, batch_size=groups * piece, samples_per_group=piece, seed=seed)
    blocks = labels[sampler.epoch_order(epoch)[0]].view(-1, groups, piece)
    assert bool((blocks == blocks[..., :1]).all())
    assert all(len(batch[:, 0].unique()) == groups for batch in blocks)


@settings(max_examples=20, deadline=None)
@given(SIZES, SEEDS, st.sampled_from(["proportional", "round-robin", "temperature"]), st.floats(0.5, 8))
def test_mixtures_keep_their_rates_and_see_rows_of_a_set_alike(sizes, seed, order, temperature):
    labels, epochs = shuffled(sizes, seed), 6
    sampler = MixtureSampler(labels, batch_size=3, seed=seed, order=order, temperature=temperature)
    rows = torch.stack([sampler.epoch_order(epoch)[0] for epoch in range(epochs)])
    sets = labels[rows].view(epochs, -1, 3)
    assert bool((sets == sets[..., :1]).all())
    exponent = {"proportional": 1.0, "round-robin": 0.0, "temperature": 1 / temperature}[order]
    weights = torch.tensor(sizes).double() ** exponent
    due = weights / weights.sum() * sampler.steps_per_epoch * epochs
    assert bool(((torch.bincount(sets[..., 0].flatten(), minlength=len(sizes)) - due).abs() < epochs).all())
    if order == "round-robin":
        assert sets[0, :, 0].tolist() == list(range(len(sizes))) * (sets.shape[1] // len(sizes))
    seen = torch.bincount(rows.flatten(), minlength=len(labels))
    assert all(int(seen[labels == c].max() - seen[labels == c].min()) <= 1 for c in range(len(sizes)))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), SEEDS, st.integers(0, 20))
def test_one_order_goes_round_for_all_epochs(n, batch_size, seed, epoch):
    sampler = FixedOrderSampler(torch.zeros(n), batch_size=min(batch_size, n), seed=seed)
    ring = torch.cat([sampler.epoch_order(e)[0] for e in range(epoch, epoch + 3)])
    order = keys(seed=seed).child("sampler").permutation("order", n)[0]
    start = int(torch.nonzero(order == ring[0])[0, 0])
    assert ring.tolist() == order[(start + torch.arange(len(ring))) % n].tolist()
    assert sampler.epoch_order(0)[0].tolist() == order[: sampler.steps_per_epoch * sampler.batch_size].tolist()
