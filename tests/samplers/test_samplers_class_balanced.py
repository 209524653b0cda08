"""Properties of the class-aware sampler, over random labels, sizes, epochs and world sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.samplers.block_schedule import _with_exact_sum, block_shares
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.class_streams import ClassStreams


def make(sizes, seed, places, piece, frequencies, whole_classes):
    """A sampler over shuffled labels 0, 3, 6, … with the given class sizes."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    labels = labels[keys(seed=seed).permutation("test", len(labels))[0]]
    places = min(places, len(sizes))
    sampler = ClassAwareSampler(
        labels,
        batch_size=places * piece,
        classes_per_batch=places,
        seed=seed,
        frequencies=frequencies,
        whole_classes=whole_classes,
    )
    return labels, sampler


settings_of_samplers = st.tuples(
    st.lists(st.integers(1, 40), min_size=2, max_size=9),
    st.integers(0, 2**31),
    st.integers(2, 9),
    st.integers(2, 7),
    st.sampled_from(["natural", "balanced", "tempered"]),
    st.sampled_from([0, 1]),
)


@settings(max_examples=60, deadline=None)
@given(settings_of_samplers, st.integers(0, 40))
def test_every_global_batch_has_p_classes_of_k_samples(chosen, epoch):
    labels, sampler = make(*chosen)
    for at in range(sampler.steps_per_epoch):
        rows = sampler.batch(epoch * sampler.steps_per_epoch + at)
        _, counts = labels[rows.indices].unique(return_counts=True)
        assert counts.tolist() == [sampler.samples_per_class] * sampler.classes_per_batch
        # A sample stands more than once only where its class has fewer than K.
        for position, times in Counter(rows.indices.tolist()).items():
            size = int((labels == labels[position]).sum())
            assert times <= -(-sampler.samples_per_class // size)


@settings(max_examples=40, deadline=None)
@given(settings_of_samplers)
def test_samples_of_a_class_are_seen_equally_often_and_classes_at_their_due_rate(chosen):
    labels, sampler = make(*chosen)
    seen = torch.zeros(len(labels))
    epochs = 6
    for epoch in range(epochs):
        seen += torch.bincount(sampler.epoch_order(epoch)[0], minlength=len(labels))
        # Resuming rests on this: places taken so far are known without planning the epochs.
        places = (
            torch.stack([seen[labels == c].sum() for c in sampler.schedule.streams.classes]) / sampler.samples_per_class
        )
        assert places.tolist() == sampler.schedule.quotas.before(epoch + 1).tolist()
    due = sampler.schedule.share * sampler.steps_per_epoch
    assert bool(((places - epochs * due).abs() < epochs).all())  # each epoch rounds a class's due up or down
    for c in sampler.schedule.streams.classes:
        assert float(seen[labels == c].max() - seen[labels == c].min()) <= 1


@settings(max_examples=30, deadline=None)
@given(settings_of_samplers, st.integers(0, 9))
def test_occurrences_number_the_repeats_within_an_epoch(chosen, epoch):
    _, sampler = make(*chosen)
    positions, occurrence = sampler.epoch_order(epoch)
    by_sample: dict[int, list[int]] = {}
    for position, number in zip(positions.tolist(), occurrence.tolist(), strict=True):
        by_sample.setdefault(position, []).append(number)
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in by_sample.values())


@settings(max_examples=30, deadline=None)
@given(settings_of_samplers, st.integers(1, 5), st.integers(0, 60))
def test_shards_of_any_number_of_processes_make_up_the_batch_at_any_resume_point(chosen, world_size, step):
    _, sampler = make(*chosen)
    _, again = make(*chosen)
    whole = sampler.batch(step)
    parts = [again.batch(step).shard(p, world_size) for p in range(world_size)]
    assert torch.cat([p.indices for p in parts]).tolist() == whole.indices.tolist()
    assert torch.cat([p.occurrence for p in parts]).tolist() == whole.occurrence.tolist()


def test_long_run_rates_are_the_due_ones():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([400, 90, 9, 1]))
    sampler = ClassAwareSampler(labels, batch_size=8, samples_per_class=4, seed=1, frequencies="tempered", alpha=0.5)
    # Shares of √400, √90, √9, √1 in 2 places; the first is more than one place, so it takes one and the rest share one.
    rest = 90**0.5 + 3 + 1
    due = torch.tensor([1, 90**0.5 / rest, 3 / rest, 1 / rest], dtype=torch.float64)
    assert torch.allclose(sampler.schedule.share, due)
    epochs = 400
    places = sampler.schedule.quotas.before(epochs).double() / (epochs * sampler.steps_per_epoch)
    assert torch.allclose(places, sampler.schedule.share, atol=2e-3)


def test_a_class_has_at_most_one_block_in_a_batch():
    assert block_shares(torch.tensor([90.0, 5.0, 5.0]), 2).tolist() == [1.0, 0.5, 0.5]
    assert block_shares(torch.tensor([1.0, 1.0]), 2).tolist() == [1.0, 1.0]


def test_pairs_of_classes_and_of_samples_are_mixed():
    labels = torch.arange(12).repeat_interleave(20)
    sampler = ClassAwareSampler(labels, batch_size=12, classes_per_batch=4, seed=0)
    classes, within = torch.zeros(12, 12), torch.zeros(20, 20)
    for epoch in range(60):
        for at in range(sampler.steps_per_epoch):
            rows = sampler.batch(epoch * sampler.steps_per_epoch + at).indices
            present = labels[rows].unique()
            classes[present[:, None], present] += 1
            first = rows[labels[rows] == 0]
            within[first[:, None], first] += 1
    off = ~torch.eye(12, dtype=torch.bool)
    assert classes[off].min() > 0.7 * classes[off].mean()
    assert (within[~torch.eye(20, dtype=torch.bool)] > 0).all()


def test_whole_classes_are_on_one_rank():
    labels = torch.arange(10).repeat_interleave(9)
    sampler = ClassAwareSampler(labels, batch_size=24, classes_per_batch=8, seed=0, whole_classes=4)
    for step in range(9):
        shards = [labels[sampler.batch(step).shard(p, 4).indices] for p in range(4)]
        assert all(shard.unique(return_counts=True)[1].tolist() == [3, 3] for shard in shards)
    spread = ClassAwareSampler(labels, batch_size=24, classes_per_batch=8, seed=0)
    assert len(labels[spread.batch(0).shard(0, 3).indices].unique()) == 8


def test_without_a_shape_the_batch_size_decides():
    labels = torch.arange(10).repeat_interleave(60)
    sampler = ClassAwareSampler(labels, batch_size=512, seed=0)
    assert (sampler.classes_per_batch, sampler.samples_per_class) == (8, 64)
    assert ClassAwareSampler(labels, batch_size=6, seed=0).classes_per_batch == 3
    assert ClassAwareSampler(labels, batch_size=16, seed=0).classes_per_batch == 4  # four samples of each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64, "classes_per_batch": 16}, "batch_size=60, classes_per_batch=10, samples_per_class=6"),
        ({"batch_size": 61}, "both 2 or more"),
        ({"batch_size": 30, "samples_per_class": 4}, "batch_size=28, classes_per_batch=7, samples_per_class=4"),
        ({"batch_size": 8, "classes_per_batch": 8}, "both 2 or more"),
        ({"batch_size": 40, "classes_per_batch": 10, "whole_classes": 4}, "classes_per_batch=8"),
        ({"batch_size": 40, "frequencies": "even"}, "natural, balanced or tempered"),
    ],
)
def test_errors_suggest_a_valid_split(options, message):
    labels = torch.arange(10).repeat_interleave(12)
    with pytest.raises(InputError, match=message):
        ClassAwareSampler(labels, seed=0, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(8, dtype=torch.int64), "1 class"),
        (torch.tensor([0, 1, -1, 1]), "1 of 4 labels below 0"),
        (torch.tensor([0.0, 1.0]), "torch.float32"),
        (torch.tensor([], dtype=torch.int64), "shape \\(0,\\)"),
    ],
)
def test_invalid_labels_raise(labels, message):
    with pytest.raises(InputError, match=message):
        ClassAwareSampler(labels, batch_size=4, seed=0)


def test_ragged_bits_are_the_first_words_of_each_row():
    table = keys(seed=3, sample=[5, 6, 7, 8])
    counts = torch.tensor([3, 0, 5, 1])
    expected = torch.cat([table[i].bits("x", 5)[0, :n] for i, n in enumerate(counts.tolist())])
    assert table.ragged_bits("x", counts).tolist() == expected.tolist()


@pytest.mark.slow
def test_ten_million_rows_fit_in_a_gibibyte():
    import subprocess
    import sys

    code = (
        "import re, pathlib, torch; torch.set_num_threads(1)\n"
        "from mmcon.samplers.class_balanced import ClassAwareSampler\n"
        "labels = torch.arange(10_000_000) * 7919 % 10_000\n"
        "sampler = ClassAwareSampler(labels, batch_size=256, samples_per_class=4, seed=0)\n"
        "sampler.batch(sampler.steps_per_epoch * 7 + 99)\n"
        # Not ru_maxrss, which a child process inherits from the one that started it.
        "print(re.search(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 2**30


@pytest.mark.parametrize(
    ("units", "total", "expected"),
    # Of at most 5: what is missing goes where most room is, and what is too much is taken from the largest.
    [([5, 3, 0], 7, [4, 3, 0]), ([5, 3, 0], 9, [5, 3, 1]), ([5, 3, 0], 14, [5, 4, 5]), ([4, 4, 4], 12, [4, 4, 4])],
)
def test_rounding_neither_loses_nor_adds_a_block(units, total, expected):
    assert _with_exact_sum(torch.tensor(units), total=total, most=5).tolist() == expected


def test_classes_too_small_for_a_new_permutation_in_each_cycle_keep_one():
    """Blocks of 4 keep what two cycles share apart from 3 · (4 - 1) = 9 samples on, or where they divide a cycle."""
    sizes = {9: True, 10: True, 8: True, 7: False, 4: True, 3: False}
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor([*sizes]))
    assert ClassStreams(labels, block_size=4, seed=0).reshuffled.tolist() == [*sizes.values()]
