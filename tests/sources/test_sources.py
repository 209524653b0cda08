"""Sources on the bundled images and on folders made of them: ids, splits, layouts, and what is refused."""

import json

import pytest
import torch
from torchvision.io import write_jpeg, write_png

from mmcon.errors import DataError, InputError, UnknownNameError
from mmcon.media import ImageHandle
from mmcon.random import stable_id, stable_ids
from mmcon.sources.base import DatasetSource, Subset, TensorSource, channels_of, class_counts, class_weights
from mmcon.sources.bundled.fashion_images import fashion
from mmcon.sources.factory import create_source
from mmcon.sources.joined import JoinedSource
from mmcon.sources.quarantine import read_quarantine
from mmcon.sources.splits import held_out, held_out_fold, match_split


@pytest.fixture(scope="module")
def test_images():
    return fashion("test")


@pytest.fixture
def folder(tmp_path, test_images):
    """Three classes with twelve images each, under train/ and val/."""
    for split, start in (("train", 0), ("val", 12)):
        for label in range(3):
            place = tmp_path / split / test_images.classes[label].replace("/", "-")
            place.mkdir(parents=True)
            rows = (test_images.labels == label).nonzero()[start : start + 12, 0]
            for row in rows.tolist():
                write_png(test_images.values[row], str(place / f"{row:04d}.png"))
    return tmp_path


def test_bundled_images(test_images):
    train = create_source()
    assert len(train) == 10_000
    assert train.values.shape == (10_000, 1, 28, 28)
    assert class_counts(train).tolist() == [1000] * 10
    assert class_counts(test_images).tolist() == [200] * 10
    assert not set(train.ids.tolist()) & set(test_images.ids.tolist())
    assert "10,000 image samples, 10 classes" in train.describe()
    # Classes are told apart by plain pixels far above chance, so the labels belong to the images.
    pixels, labels = test_images.values.flatten(1).float(), test_images.labels
    means = torch.stack([pixels[labels == c].mean(0) for c in range(10)])
    assert (torch.cdist(pixels, means).argmin(1) == labels).float().mean() > 0.6


def test_folder_with_splits(folder, test_images):
    train, test = create_source(folder, split="train"), create_source(folder, split="test")
    assert (len(train), len(test)) == (36, 36)
    assert train.classes == ("T-shirt-top", "pullover", "trouser")
    assert class_counts(train).tolist() == [12] * 3
    handle = train.open([13])[0]
    assert handle.facts == {"channels": 3, "height": 28, "width": 28}
    assert train.names[13].startswith("train/pullover/")
    assert int(train.ids[13]) == stable_id(train.names[13])
    row = int(train.names[13].rpartition("/")[2].removesuffix(".png"))
    assert torch.equal(handle.decode()[:1], test_images.values[row])


def test_flat_folder_is_split_by_identity(folder):
    flat = folder / "train"
    train, test = create_source(flat, split="train", test_share=0.3), create_source(flat, split="test", test_share=0.3)
    assert len(train) + len(test) == 36
    assert 3 <= len(test) <= 20
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    before = set(test.names)
    some = next((flat / "pullover").glob("*.png"))
    for i in range(20):
        (flat / "pullover" / f"new{i}.png").write_bytes(some.read_bytes())
    after = create_source(flat, split="test", test_share=0.3)
    assert before < set(after.names)
    assert set(train.names) <= set(create_source(flat, split="train", test_share=0.3).names)


def test_only_a_train_folder_is_split_too(folder):
    import shutil

    shutil.rmtree(folder / "val")
    train, test = (create_source(folder, split=split, test_share=0.3) for split in ("train", "test"))
    assert len(train) + len(test) == 36
    assert "held out" in test.describe()


@pytest.mark.parametrize("content", [b"not an image", b"", None], ids=["corrupt", "empty", "gone"])
def test_unreadable_images_are_quarantined(folder, tmp_path, content):
    bad = folder / "train" / "pullover" / "bad.png"
    if content is None:
        bad.symlink_to(tmp_path / "was.png")
    else:
        bad.write_bytes(content)
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    source = create_source(folder, max_failures=0.05, quarantine=quarantine)
    assert len(source) == 36
    assert "1 unreadable" in source.describe()
    assert read_quarantine(quarantine) == [str(bad)]
    assert len(create_source(folder, max_failures=0.05, quarantine=quarantine)) == 36
    assert len(quarantine.read_text().splitlines()) == 1
    with pytest.raises(DataError, match=r"1 of 37, such as .*bad\.png"):
        create_source(folder, max_failures=0.01)


def test_truncated_images_are_found_by_decoding(folder):
    noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    file = folder / "train" / "pullover" / "cut.jpg"
    write_jpeg(noise, str(file))
    file.write_bytes(file.read_bytes()[:-1500])
    assert len(create_source(folder, check="headers")) == 37
    assert len(create_source(folder, check="pixels", max_failures=0.1)) == 36


def test_folders_that_cannot_be_used(tmp_path, folder):
    with pytest.raises(DataError, match="check the path"):
        create_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a folder"):
        create_source("folder/image", path=tmp_path / "nowhere")
    (tmp_path / "empty" / "cats").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"\.txt': 1"):
        create_source(tmp_path / "empty")
    one = tmp_path / "one" / "cats"
    one.mkdir(parents=True)
    write_png(torch.zeros(1, 4, 4, dtype=torch.uint8), str(one / "a.png"))
    with pytest.raises(DataError, match="at least two classes"):
        create_source(tmp_path / "one")
    with pytest.raises(DataError, match="'train', 'val'"):
        create_source(folder, split="extra")
    with pytest.raises(UnknownNameError, match="'samples/fashion'"):
        create_source("samples/fashon")


def test_source_refuses_bad_columns():
    values = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="1 samples with the id of another"):
        TensorSource(values, ids=torch.tensor([1, 2, 1]))
    with pytest.raises(DataError, match=r"torch\.float32"):
        TensorSource(values, labels=torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(DataError, match="lowest -1"):
        TensorSource(values, labels=torch.tensor([0, 1, -1]))
    with pytest.raises(DataError, match="label 2"):
        TensorSource(values, labels=torch.tensor([0, 1, 2]), classes=["a", "b"])
    with pytest.raises(DataError, match="columns of one length"):
        TensorSource(values, columns={"group": torch.zeros(2)})
    with pytest.raises(DataError, match="at least one sample"):
        TensorSource(values[:0])


def test_subset_keeps_identity(test_images):
    rows = torch.tensor([5, 3, 8])
    part = Subset(test_images, rows)
    assert torch.equal(part.ids, test_images.ids[rows])
    assert torch.equal(part.labels, test_images.labels[rows])
    assert torch.equal(part.open([2]), test_images.open([8]))
    assert part.classes == test_images.classes


def test_joined_sources_meet_by_id():
    images = TensorSource(torch.arange(3).view(3, 1), ids=torch.tensor([10, 20, 30]), labels=torch.tensor([0, 1, 0]))
    names = TensorSource(torch.tensor([[7], [8]]), ids=torch.tensor([30, 40]), modality="text")
    both = JoinedSource(images, names)
    assert both.ids.tolist() == [10, 20, 30, 40]
    rows = torch.tensor([3, 2, 0])
    image, text = both.members["image"], both.members["text"]
    assert image.present(rows).tolist() == [False, True, True]
    assert text.present(rows).tolist() == [True, True, False]
    assert text.open(rows[:2]).tolist() == [[8], [7]]
    assert image.labels[2] == 0
    assert both.labels is None  # a row without an image has no label
    with pytest.raises(InputError, match="members"):
        both.open([0])
    with pytest.raises(DataError, match="more than once"):
        JoinedSource(images, images)


def test_held_out_share():
    ids = stable_ids(f"row {i}" for i in range(20_000))
    out = held_out(ids, 0.1)
    # Four standard deviations of a binomial share: 4 · √(.1 · .9 / 20000) = .0085.
    assert abs(out.float().mean().item() - 0.1) < 0.0085
    assert torch.equal(held_out(ids.flip(0), 0.1), out.flip(0))


def test_class_weights():
    counts = torch.tensor([1, 4, 0, 5])
    weights = class_weights(counts, power=1.0)
    # Every class that has rows weighs the same in all, and rows weigh 1 on average: 10 / 3 a class.
    assert torch.allclose(weights, torch.tensor([10 / 3, 10 / 12, 0.0, 10 / 15]))
    assert torch.allclose(class_weights(counts, power=0.0), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    root = class_weights(counts, power=0.5)
    assert torch.isclose(root[0] / root[1], torch.tensor(2.0))


def test_quarantine_is_plain_json(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"file": "a", "reason": "r"}) + "\n\n")
    assert read_quarantine(file) == ["a"]
    assert read_quarantine(None) == []


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("training", "validation"), ("training_set", "test_set"), ("TRAIN", "VAL")]
)
def test_split_folders_are_found_by_any_spelling(folder, train, test):
    (folder / "train").rename(folder / "moved")
    (folder / "val").rename(folder / test)
    (folder / "moved").rename(folder / train)
    assert create_source(folder).names[0].startswith(f"{train}/")
    assert {name.partition("/")[0] for name in create_source(folder, split="test").names} == {test}
    assert len(create_source(folder, split="all")) == 72


def test_a_class_called_train_is_a_class(folder):
    (folder / "train").rename(folder / "kept")
    for new, old in (("Train", "pullover"), ("Bus", "trouser")):
        (folder / "kept" / old).rename(folder / "kept" / new)
    assert create_source(folder / "kept").classes == ("Bus", "T-shirt-top", "Train")


@pytest.mark.parametrize(
    ("available", "split", "found"),
    [
        (["train", "test"], "train", "train"),
        (["Training", "VAL"], "test", "VAL"),
        (["val", "test"], "valid", "val"),
        (["validation", "val", "Test"], "dev", "val"),
        (["train", "extra"], "Extra", "extra"),
        (["train", "extra"], "test", None),
    ],
)
def test_a_split_is_found_by_its_usual_names(available, split, found):
    assert match_split(available, split) == found


def test_a_fold_holds_out_every_sample_once():
    ids = stable_ids(f"video {i}" for i in range(11))
    out = torch.stack([held_out_fold(ids, fold, 4) for fold in range(4)])
    # Eleven samples in folds of 3, 3, 3 and 2.
    assert out.sum(1).tolist() == [3, 3, 3, 2]
    assert out.sum(0).tolist() == [1] * 11


def test_one_error_for_what_is_not_there(folder):
    with pytest.raises(DataError, match="bundled are samples/emoji-spoken, samples/film-sound, samples/speech"):
        create_source("samples/fashion", modality="audio")
    with pytest.raises(UnknownNameError, match="did you mean 'image'"):
        create_source(folder, modality="images")
    with pytest.raises(InputError, match="did you mean 'max_failures'"):
        create_source(folder, max_failure=0.1)
    with pytest.raises(DataError, match="a table of pairs"):
        create_source(folder, modality=("image", "text"))
    assert len(create_source(folder, optional={"max_failures": 0.5, "rate_hz": 8_000})) == 36


def test_channels_are_those_that_images_are_decoded_to(folder, test_images):
    assert channels_of(Subset(test_images, [0])) == 1
    files = create_source(folder)
    assert channels_of(files) == 3  # gray files, decoded to color
    gray = [ImageHandle(file, channels=1) for file in files.files[:2]]
    assert channels_of(Subset(DatasetSource(gray), [1])) == 1
    assert channels_of(DatasetSource([(torch.zeros(1, 4, 4, dtype=torch.uint8), 0)])) == 1


def test_channels_are_those_of_the_first_sample_that_can_be_opened():
    def opened(item, name):
        return torch.zeros(1 // item, 4, 4, dtype=torch.uint8)  # of the first item, an error

    assert channels_of(DatasetSource([0, 1], handle=opened)) == 1
