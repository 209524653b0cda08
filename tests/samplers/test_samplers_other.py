"""Properties of the other samplers, over random data."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcon.errors import CheckpointError, ConfigError, InputError
from mmcon.random import keys
from mmcon.registry import entries, list_views
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.factory import create_batch_sampler
from mmcon.samplers.fixed_order import FixedOrderSampler
from mmcon.samplers.grouped import GroupSampler
from mmcon.samplers.hard_classes import HardClassSampler
from mmcon.samplers.mixture import MixtureSampler
from mmcon.samplers.multi_label import MultiLabelSampler
from mmcon.samplers.no_duplicates import NoDuplicatesSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.testing import check_sampler

LABELS = torch.arange(8).repeat_interleave(torch.arange(5, 13))


def batches(sampler, epoch=0):
    first = epoch * sampler.steps_per_epoch
    return [sampler.batch(first + at).indices for at in range(sampler.steps_per_epoch)]


@pytest.mark.parametrize(
    "make",
    [
        partial(ClassAwareSampler, LABELS, batch_size=12, classes_per_batch=4),
        partial(MultiLabelSampler, torch.nn.functional.one_hot(LABELS).bool(), batch_size=12),
        partial(HardClassSampler, LABELS, batch_size=12),
        partial(FixedOrderSampler, LABELS, batch_size=12),
        partial(NoDuplicatesSampler, LABELS, batch_size=6),
        partial(GroupSampler, LABELS, batch_size=12, samples_per_group=3),
        partial(MixtureSampler, LABELS, batch_size=4),
        partial(MixtureSampler, LABELS, batch_size=4, order="round-robin"),
    ],
)
def test_every_sampler_keeps_the_laws(make):
    check_sampler(make)


def test_all_are_registered_and_listed_with_text_views():
    names = {entry.name for entry in entries("sampler")}
    expected = {"class-aware", "multi-label", "hard-classes", "fixed-order", "no-duplicates", "groups", "mixture"}
    assert {f"sampler/{name}" for name in expected | {"uniform"}} <= names
    assert names <= set(list_views(modality="text"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=30), st.integers(0, 99))
def test_no_duplicates_keeps_equal_keys_apart_and_sees_all_alike(sizes, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    sampler = NoDuplicatesSampler(labels, batch_size=4, seed=seed)
    seen = torch.zeros(len(labels))
    for epoch in range(3):
        for rows in batches(sampler, epoch):
            assert len(labels[rows].unique()) == 4
            seen[rows] += 1
    for key in labels.unique():
        assert float(seen[labels == key].max() - seen[labels == key].min()) <= 1


def test_the_fixed_order_is_the_same_in_every_epoch_and_goes_round():
    sampler = FixedOrderSampler(torch.zeros(10), batch_size=4, seed=0)
    ring = torch.cat([sampler.epoch_order(epoch)[0] for epoch in range(5)])
    assert ring[:10].sort().values.tolist() == list(range(10))
    assert ring.tolist() == ring[:10].tolist() * 4


def test_samples_of_a_group_are_adjacent():
    sampler = GroupSampler(LABELS, batch_size=12, samples_per_group=4, seed=0)
    for rows in batches(sampler):
        groups = LABELS[rows].view(3, 4)
        assert bool((groups == groups[:, :1]).all())
        assert len(groups[:, 0].unique()) == 3


def test_mixtures_take_each_batch_from_one_data_set_at_the_rate_asked_for():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([400, 100, 25]))
    for order, expected in (("proportional", [400, 100, 25]), ("temperature", [20, 10, 5]), ("round-robin", [1, 1, 1])):
        sampler = MixtureSampler(labels, batch_size=5, seed=0, order=order)
        sources = torch.cat([torch.stack([labels[r].unique() for r in batches(sampler, e)]) for e in range(8)])
        assert sources.shape[1] == 1
        rates = torch.bincount(sources[:, 0]).double() / len(sources)
        wanted = torch.tensor(expected).double()
        assert torch.allclose(rates, wanted / wanted.sum(), atol=0.01)
        if order == "round-robin":
            assert sources[:6, 0].tolist() == [0, 1, 2, 0, 1, 2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(0, 3))
def test_multi_label_batches_hold_samples_that_share_a_label(seed, epoch):
    labels = keys(seed=seed, sample=list(range(60))).bernoulli("labels", 0.3, shape=(6,))
    labels[~labels.any(1), 0] = True
    sampler = MultiLabelSampler(labels, batch_size=6, samples_per_label=3, seed=seed)
    for rows in batches(sampler, epoch):
        shared = labels[rows].long() @ labels[rows].long().T
        assert bool(((shared > 0).sum(1) >= 3).all())


def test_confused_classes_share_a_batch_and_the_snapshot_is_state():
    labels = torch.arange(12).repeat_interleave(6)
    sampler = HardClassSampler(labels, batch_size=6, classes_per_batch=3, seed=0)
    # Four clusters of three classes each: 0 4 8, 1 5 9, …
    directions = torch.eye(4)[labels % 4] + 0.01 * torch.eye(12)[labels][:, :4]
    sampler.refresh(directions, labels)
    same = [len((labels[rows] % 4).unique()) == 1 for epoch in range(4) for rows in batches(sampler, epoch)]
    assert sum(same) == len(same)
    again = HardClassSampler(labels, batch_size=6, classes_per_batch=3, seed=0)
    assert again.epoch_order(3)[0].tolist() != sampler.epoch_order(3)[0].tolist()
    again.load_state_dict(sampler.state_dict())
    assert again.epoch_order(3)[0].tolist() == sampler.epoch_order(3)[0].tolist()
    seen = torch.bincount(torch.cat([sampler.epoch_order(epoch)[0] for epoch in range(4)]), minlength=72)
    assert bool((seen == 4).all())
    with pytest.raises(CheckpointError, match="12 classes"):
        again.load_state_dict({"snapshot": torch.zeros(5, 4)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoDuplicatesSampler(LABELS, batch_size=9, seed=0), "batch_size=8 or less"),
        (lambda: GroupSampler(LABELS, batch_size=10, samples_per_group=4, seed=0), "batch_size=8"),
        (lambda: MixtureSampler(LABELS, batch_size=4, seed=0, order="random"), "round-robin"),
        (lambda: MultiLabelSampler(torch.zeros(4, 3).bool(), batch_size=4, seed=0), "4 of 4 samples without"),
        (lambda: MultiLabelSampler(LABELS, batch_size=4, seed=0), r"(?s)boolean matrix `n c`.*sampler/class-aware"),
        (lambda: MultiLabelSampler(LABELS[:, None], batch_size=4, seed=0), r"got torch.int64 of shape \("),
        (lambda: FixedOrderSampler(LABELS, batch_size=0, seed=0), "batch_size as a whole number from 1 on; got 0"),
        (lambda: ClassAwareSampler(LABELS, batch_size=-4, seed=0), "batch_size as a whole number from 1 on; got -4"),
    ],
)
def test_errors_name_the_fix(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_sampler_without_a_snapshot_has_no_state():
    sampler = HardClassSampler(LABELS, batch_size=12, seed=0)
    assert sampler.state_dict() == {}
    before = sampler.epoch_order(1)[0].tolist()
    sampler.refresh(torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0)), LABELS)
    assert sampler.epoch_order(1)[0].tolist() != before
    sampler.load_state_dict({})
    assert sampler.epoch_order(1)[0].tolist() == before


def images(labels):
    """A source of as many images, with labels or without."""
    given = {} if labels is None else {"labels": torch.tensor(labels), "classes": [str(i) for i in set(labels)]}
    return TensorSource(torch.zeros(12, 1, 2, 2, dtype=torch.uint8), **given)


SIX_CLASSES, ONE_CLASS = [0, 1, 2, 3, 4, 5] * 2, [0] * 12
FLAGS = {"seed": 0, "batch_size": 12, "objective": "supcon", "views": 2}


@pytest.mark.parametrize(
    ("labels", "name", "flags", "message"),
    [
        (SIX_CLASSES, "uniform", {"views": 1, "batch_size": 11}, "at least 12 for 6 classes; got 11, and one view"),
        (ONE_CLASS, "uniform", {}, "labels of at least two classes"),
        (None, "uniform", {}, "labels of at least two classes"),
        (None, "balanced", {"objective": "simclr"}, "--sampler balanced: expected labels"),
    ],
)
def test_flags_that_give_no_positives_are_refused(labels, name, flags, message):
    with pytest.raises(ConfigError, match=message):
        create_batch_sampler(images(labels), name, **FLAGS | flags)


@pytest.mark.parametrize(
    ("labels", "name", "flags"),
    [
        (SIX_CLASSES, "uniform", {"views": 1}),
        (SIX_CLASSES, "uniform", {"batch_size": 6}),
        (ONE_CLASS, "uniform", {"objective": "simclr", "views": 1}),
        (None, "uniform", {"objective": "simclr"}),
        (SIX_CLASSES, "balanced", {}),
        (SIX_CLASSES, "no-duplicates", {"objective": "simclr", "batch_size": 6}),
    ],
)
def test_flags_give_the_sampler_that_they_name(labels, name, flags):
    given = FLAGS | flags
    sampler = create_batch_sampler(images(labels), name, **given)
    expected = {"uniform": UniformSampler, "balanced": ClassAwareSampler, "no-duplicates": NoDuplicatesSampler}
    assert type(sampler) is expected[name]
    assert (sampler.batch_size, sampler.seed) == (given["batch_size"], 0)
    assert getattr(sampler, "frequencies", name) == name


def test_a_temperature_below_one_sharpens_the_mixture():
    """Of 200 and 100 samples at temperature ½: in proportion to the squares, 4 to 1."""
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([200, 100]))
    sampler = MixtureSampler(labels, batch_size=5, seed=0, order="temperature", temperature=0.5)
    assert sampler.schedule.share.tolist() == pytest.approx([0.8, 0.2])
