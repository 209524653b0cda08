"""The index table and the batch of views."""

import pickle

import pytest
import torch

from mmcon.batch import Index, ViewBatch, count_rows, tree_map
from mmcon.errors import InputError, MmconError, NonFiniteError, nearest


def table(n=4, **columns):
    return Index({"sample": torch.arange(n), **columns})


def test_a_table_is_a_mapping_of_columns():
    index = table(label=torch.tensor([0, 1, 0, 1]))
    assert set(index) == {"sample", "label"}
    assert (index.n, len(index)) == (4, 2)
    assert "label" in index
    assert "time" not in index
    assert index.take([3, 0])["sample"].tolist() == [3, 0]
    assert index.take(index["label"] == 1)["sample"].tolist() == [1, 3]
    assert index.with_columns(time=torch.zeros(4)).take(slice(2)).n == 2
    assert repr(index) == "Index(n=4, columns=['label', 'sample'])"


def test_tables_join_on_the_columns_that_all_have():
    joined = Index.cat([table(label=torch.zeros(4)), table(2, time=torch.ones(2))])
    assert joined["sample"].tolist() == [0, 1, 2, 3, 0, 1]
    assert set(joined) == {"sample"}
    assert Index.cat([]).n == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: table(label=torch.zeros(3)), r"columns of one length; got \{'sample': 4, 'label': 3\}"),
        (lambda: Index({"sample": torch.zeros(2)}, n=3), "'n': 3"),
        (lambda: table()["label"], r"a column 'label'; got columns \['sample'\](.|\n)*supply 'label'"),
        (
            lambda: ViewBatch({"image": (torch.zeros(5, 3),)}, {"image": table()}),
            "a table of 5 rows for 'image'; got 4",
        ),
        (lambda: ViewBatch({"image": (torch.zeros(5, 3),)}, {}), "got no table"),
    ],
)
def test_invalid_tables_raise(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_view_groups_of_different_shapes_share_a_table():
    parts = (torch.zeros(4, 3, 8, 8), torch.zeros(2, 3, 4, 4))
    batch = ViewBatch({"image": parts, "text": ({"ids": torch.zeros(3, 7)},)}, {"image": table(6), "text": table(3)})
    assert batch.modalities == ("image", "text")
    moved = batch.to("meta")
    assert moved.views["image"][1].device.type == moved.views["text"][0]["ids"].device.type == "meta"
    assert moved.index["text"]["sample"].device.type == "meta"
    assert count_rows({"ids": torch.zeros(3, 7)}) == 3


def test_trees_keep_their_shape():
    tree = {"a": (torch.ones(2), [torch.ones(1), "text"]), "b": 3}
    mapped = tree_map(lambda x: x + 1, tree)
    assert mapped["a"][1][1] == "text"
    assert isinstance(mapped["a"], tuple)
    assert isinstance(mapped["a"][1], list)
    assert mapped["a"][0].tolist() == [2, 2]


# --- errors ---


def test_an_error_says_four_things():
    error = MmconError("image/crop", expected="size <= 28", got="size=32", fix="pad first", key="keys(seed=0)")
    assert str(error) == "image/crop: expected size <= 28; got size=32.\n  Fix: pad first\n  Key: keys(seed=0)"
    assert str(MmconError("here", expected="a", got="b")) == "here: expected a; got b."


def test_errors_travel_between_processes_whole():
    error = pickle.loads(pickle.dumps(NonFiniteError("step 3", expected="finite", got="nan", fix="f", key="k")))
    assert isinstance(error, NonFiniteError)
    assert (error.where, error.expected, error.got, error.fix, error.key) == ("step 3", "finite", "nan", "f", "k")


def test_nearest_names():
    assert nearest("simclrr", ["simclr", "dino"]) == "did you mean 'simclr'?"
    assert nearest("xyz", ["b", "a"]) == "known are a, b"
    assert nearest("xyz", []) == "known are none"
