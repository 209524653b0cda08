"""Labels by column: what is an integer, a text, missing, or an id; and as tensors, arrays and lists."""

import time

import numpy as np
import pytest
import torch

from mmcon.errors import DataError, InputError
from mmcon.sources.base import TensorSource
from mmcon.sources.factory import create_source
from mmcon.sources.labels import encode_labels, number_integers
from mmcon.sources.streaming import Stream, StreamSample


def table(folder, labels):
    for i in range(len(labels)):
        (folder / f"{i}.png").write_bytes(b"")
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels)))
    return create_source(folder / "list.csv", split="all")


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["2", "0", "2"], ("0", "1", "2"), [2, 0, 2]),
        (["007", "101", "007"], ("007", "101"), [0, 1, 0]),
        (["3", "4", "other"], ("3", "4", "other"), [0, 1, 2]),
        (["cat", " cat ", "dog"], ("cat", "dog"), [0, 0, 1]),
        (["NA", "none", "NA"], ("NA", "none"), [0, 1, 0]),
        (["7", "10000019", "7"], ("7", "10000019"), [0, 1, 0]),
        (["300000000", "5", "5"], ("5", "300000000"), [1, 0, 0]),
        (["9" * 25, "8" * 25, "9" * 25], ("8" * 25, "9" * 25), [1, 0, 1]),
    ],
)
def test_the_type_of_labels_is_decided_by_the_column(tmp_path, labels, classes, numbers):
    source = table(tmp_path, labels)
    assert source.classes == classes
    assert source.labels.tolist() == numbers


@pytest.mark.parametrize("absent", ["", "  ", "nan", "NaN", "null", "#N/A", "<NA>"])
@pytest.mark.parametrize("others", [["cat", "dog"], ["0", "1"]])
def test_missing_labels_are_counted_and_are_no_class(tmp_path, absent, others):
    with pytest.raises(DataError, match="2 samples without one, the first in line 3") as caught:
        table(tmp_path, [others[0], absent, others[1], absent])
    assert "column 'label'" in caught.value.where
    assert "label_column='none'" in caught.value.fix


def test_ids_as_labels_name_one_class_each():
    start = time.monotonic()
    ids = torch.tensor([7, 10_000_019, 300_000_000, 7])
    source = TensorSource(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels=ids)
    assert source.classes == ("7", "10000019", "300000000")
    assert source.labels.tolist() == [0, 1, 2, 0]
    assert time.monotonic() - start < 1  # ten million names took 1.4 s
    # Numbers of which every tenth is in use, or that are few, are unchanged.
    assert number_integers(torch.arange(0, 30_000, 9))[0][1] == 9
    assert len(number_integers(torch.tensor([0, 9_999]))[1]) == 10_000


def test_ids_have_the_same_numbers_in_all_splits_and_tables(tmp_path):
    ids = [10_000_000 + i % 3 for i in range(60)]
    table(tmp_path, ids)
    train, test = (create_source(tmp_path / "list.csv", split=split, test_share=0.3) for split in ("train", "test"))
    assert train.classes == test.classes == ("10000000", "10000001", "10000002")
    for source in (train, test):
        assert [source.classes[label] for label in source.labels] == [
            str(ids[int(name.partition(".")[0])]) for name in source.names
        ]
    labels, _ = encode_labels("second", [10_000_002, 10_000_001], train.classes)
    assert labels.tolist() == [2, 1]
    labels, _ = encode_labels("numbers", [1, 0], ("1", "0"))  # below the number of names: indices of names
    assert labels.tolist() == [1, 0]


def test_the_classes_of_integers_are_those_of_the_whole_table(tmp_path):
    table(tmp_path, [i // 10 for i in range(30)])
    (tmp_path / "list.csv").write_text(
        "path,label,split\n" + "".join(f"{i}.png,{i // 10},{'test' if i > 20 else 'train'}\n" for i in range(30))
    )
    train, test = (create_source(tmp_path / "list.csv", split=split) for split in ("train", "test"))
    assert train.classes == test.classes == ("0", "1", "2")
    assert "no samples of 2 of 3 classes: 0, 1" in test.describe()
    assert "no samples" not in train.describe()


def test_a_stream_has_no_room_for_ids():
    stream = Stream(lambda skip: [StreamSample(f"{i}", b"", 20_000 * i) for i in range(3)])
    from mmcon.sources.streaming import StreamBuffer, _label

    assert StreamBuffer(list(stream.read_from(0)), stream).labels.tolist() == [0, 20_000, 40_000]
    with pytest.raises(DataError, match="give classes="):
        _label("stream", 10_000_019, ())


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1],
        (0, 1, 1),
        np.array([0, 1, 1]),
        np.array([0, 1, 1], dtype=">i4"),
        np.array([0, 1, 1], dtype=np.uint64),
        np.broadcast_to(np.array([0, 1, 1], dtype=np.uint8), 3),
        range(0, 3),
        torch.tensor([0, 1, 1], dtype=torch.int16),
    ],
    ids=["list", "tuple", "array", "big-endian", "unsigned", "read-only", "range", "int16"],
)
def test_labels_are_taken_as_tensors_arrays_and_lists(labels):
    source = TensorSource(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), labels=labels)
    assert source.labels.dtype == torch.int64
    assert source.labels.tolist() == [int(label) for label in labels]


@pytest.mark.parametrize("labels", [["a", "b", "a"], np.array(["a", "b", "a"]), "aba", [0, "b", 1], [[0], [1, 2], [3]]])
def test_texts_as_labels_are_refused_with_the_fix(labels):
    with pytest.raises(InputError, match=r"names\.index") as caught:
        TensorSource(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), labels=labels)
    assert "labels" in caught.value.where
