"""Splits made by identity: every class is in both, files that are added later move few others; and names of splits."""

import pytest
import torch
from made_videos import EVEN, write
from torchvision.io import write_png

from mmcon.errors import DataError
from mmcon.random import stable_ids
from mmcon.sources.factory import create_source
from mmcon.sources.splits import held_out, held_out_of_classes, is_held_out, is_train, split_by_name


def counts_by_class(mask, classes):
    return torch.bincount(classes[mask], minlength=int(classes.max()) + 1)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("n", [2, 3, 5, 12, 30, 200])
def test_every_class_holds_out_about_its_share(n, share):
    """From ¾ to 1½ of the share of n, rounded up, but one sample at least, and never all."""
    ids, classes = stable_ids(f"{share} {i}" for i in range(40 * n)), torch.arange(40).repeat(n)
    counts = counts_by_class(held_out_of_classes(ids, share, classes), classes)
    least, most = (-int(-round(n * share * factor, 6) // 1) for factor in (0.75, 1.5))
    assert counts.min() >= max(1, min(least, n - 1))
    assert counts.max() <= max(1, min(most, n - 1))


def test_few_photos_of_three_classes():
    """By hashes alone, two of the ninety were held out, both of one class, in the case that asked for this rule."""
    ids, classes = stable_ids(f"{i % 3}/{i:02d}.jpg" for i in range(90)), torch.arange(90) % 3
    counts = counts_by_class(held_out_of_classes(ids, 0.1, classes), classes)
    assert counts.min() >= 3  # ⌈.75 · 3⌉
    assert counts.max() <= 5  # ⌈1.5 · 3⌉


def test_large_classes_are_split_by_their_hashes_alone():
    ids, classes = stable_ids(f"row {i}" for i in range(20_000)), torch.arange(20_000) % 4
    assert torch.equal(held_out_of_classes(ids, 0.1, classes), held_out(ids, 0.1))


def test_added_samples_move_few_others():
    ids, classes = stable_ids(f"row {i}" for i in range(4_000)), torch.arange(4_000) % 40
    before = held_out_of_classes(ids[:3_000], 0.1, classes[:3_000])  # 75 a class, then 100
    after = held_out_of_classes(ids, 0.1, classes)[:3_000]
    assert (before != after).sum() <= 30  # 1 % of the samples
    # A class to which nothing is added is as it was, whatever is added to others.
    grown = held_out_of_classes(torch.cat([ids, stable_ids(["new"])]), 0.1, torch.cat([classes, torch.tensor([40])]))
    assert torch.equal(grown[:-1], held_out_of_classes(ids, 0.1, classes))
    order = torch.randperm(4_000, generator=torch.Generator().manual_seed(0))
    whole = held_out_of_classes(ids, 0.1, classes)
    assert torch.equal(held_out_of_classes(ids[order], 0.1, classes[order]), whole[order])


def test_equal_ids_are_one_sample_and_one_alone_is_trained_on():
    ids, classes = torch.tensor([5, 6, 5, 7, 8]), torch.tensor([0, 0, 0, 0, 1])
    out = held_out_of_classes(ids, 0.5, classes)
    assert out[0] == out[2]
    assert 0 < len(ids[:4][out[:4]].unique()) < 3
    assert not out[4]


@pytest.fixture
def photos(tmp_path):
    for name, count in (("cat", 12), ("dog", 4), ("owl", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            write_png(torch.zeros(3, 4, 4, dtype=torch.uint8), str(tmp_path / name / f"{i}.png"))
    return tmp_path


def test_each_class_has_test_images_or_the_source_says_which_have_none(photos):
    train, test = (create_source(photos, split=split) for split in ("train", "test"))
    assert len(train) + len(test) == 17
    assert torch.bincount(test.labels, minlength=3)[:2].min() >= 1
    assert "no samples of 1 of 3 classes: owl" in test.describe()
    assert "no samples" not in train.describe()


def test_a_folder_of_six_videos_has_a_held_out_part(tmp_path):

    for i in range(6):
        write(tmp_path / f"{i}.mp4", stamps=EVEN[:10])
    train, test = (create_source(tmp_path, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) in ((4, 2), (3, 3))  # ⌈.75 · 1.5⌉ to ⌈1.5 · 1.5⌉ of six
    assert not set(train.ids.tolist()) & set(test.ids.tolist())


def test_one_sample_cannot_be_held_out(photos):
    (photos / "one.csv").write_text("path\ncat/0.png\n")
    with pytest.raises(DataError, match=r"none by identity, of 1 samples.\n  Fix: add samples, or name a test set"):
        create_source(photos / "one.csv", split="test")


@pytest.mark.parametrize(
    "name", ["train", "TRAIN", "Training_Set", "train-images", "images_train", "train2017", "Training Data", "trainset"]
)
def test_names_of_the_training_split(name):
    assert is_train(name)
    assert not is_held_out(name)


@pytest.mark.parametrize("name", ["Test", "val2017", "VALIDATION", "test_images", "dev", "Eval", "held_out", "testset"])
def test_names_of_held_out_splits(name):
    assert is_held_out(name)
    assert not is_train(name)


@pytest.mark.parametrize("name", ["trainer", "tram", "testimonials", "value", "data", "set", "2017", "train test", ""])
def test_names_that_are_no_split(name):
    assert not is_train(name)
    assert not is_held_out(name)


def test_all_spellings_in_a_split_column_are_one_split():
    names = ["train", "Train", "TRAINING", "val", "Validation", "None"]
    assert split_by_name("t", names, "train")[0] == [0, 1, 2]
    keep, note = split_by_name("t", names, "test")
    assert keep == [3, 4]
    assert "'None' 1" in note
