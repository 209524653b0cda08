"""Mining of hard negatives: every condition against a sort by hand, and a table that a source reads back."""

import math

import numpy as np
import pytest
import torch

from mmcon.errors import DataError, InputError
from mmcon.evaluation import similarity_blocks
from mmcon.inference import EmbeddingTable, hard_negatives, mine_hard_negatives
from mmcon.inference.embedding_table import EmbeddingOrigin
from mmcon.sources.factory import create_source

ORIGIN = EmbeddingOrigin(model="m", fingerprint="f", modality="text")


def table(n, *, seed, ids=None, prefix="text", labels=None, origin=ORIGIN):
    values = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    ids = list(range(n)) if ids is None else ids
    return EmbeddingTable(values, ids=ids, paths=[f"{prefix} {i}" for i in range(n)], labels=labels, origin=origin)


QUERIES = table(9, seed=0, prefix="query")
CORPUS = table(40, seed=1, ids=[i % 12 for i in range(40)])  # three or four positives for each query


def by_hand(i, *, num=3, first=0, end=math.inf, high=math.inf, low=-math.inf, absolute=None, relative=None):
    """Rows of negatives of a query: a sort of all candidates."""
    q, c = (t.numpy() / np.linalg.norm(t.numpy(), axis=1, keepdims=True) for t in (QUERIES, CORPUS))
    s = c @ q[i]
    positives = range(i, 40, 12)
    least = min(s[j] for j in positives)
    limit = high if absolute is None else least - absolute
    limit = limit if relative is None else least - relative * abs(least)
    ranked = sorted((j for j in range(40) if j not in positives), key=lambda j: -s[j])
    return [j for rank, j in enumerate(ranked) if first <= rank < end and low <= s[j] <= limit][:num]


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"range_min": 4, "num_negatives": 2}, {"first": 4, "num": 2}),
        ({"range_min": 2, "range_max": 6, "max_score": 0.3}, {"first": 2, "end": 6, "high": 0.3}),
        ({"absolute_margin": 0.1}, {"absolute": 0.1}),
        ({"relative_margin": 0.5, "min_score": -0.6}, {"relative": 0.5, "low": -0.6}),
        ({"num_negatives": 60}, {"num": 60}),
    ],
)
def test_negatives_are_those_of_a_sort_by_hand(options, hand, monkeypatch):
    monkeypatch.setattr(similarity_blocks, "BLOCK_SIZE", 160)  # four queries at a time
    mined = mine_hard_negatives(QUERIES, CORPUS, **options)
    found = dict(zip(mined.anchor_rows.tolist(), mined.negative_rows.tolist(), strict=True))
    for i in range(9):
        expected = by_hand(i, **hand)
        if not expected:
            assert i not in found
            continue
        assert [row for row in found[i] if row >= 0] == expected
        assert found[i] == expected + [-1] * (len(found[i]) - len(expected))
    assert len(found) + mined.without_negative == 9
    assert torch.equal(mined.scores.isnan(), mined.negative_rows < 0)


def test_the_positive_is_the_most_similar_one_and_scores_are_cosines():
    mined = mine_hard_negatives(QUERIES, CORPUS, num_negatives=1)
    q, c = (torch.nn.functional.normalize(torch.from_numpy(t.numpy()), dim=1) for t in (QUERIES, CORPUS))
    cosines = q @ c.T
    for i, (positive, negative) in enumerate(zip(mined.positive_rows, mined.negative_rows[:, 0], strict=True)):
        assert int(positive) == max(range(i, 40, 12), key=lambda j: cosines[i, j])
        assert mined.scores[i, 0] == pytest.approx(float(cosines[i, negative]), abs=1e-6)


def test_random_negatives_are_of_the_ranks_and_follow_the_seed():
    options = {"sampling": "random", "range_min": 3, "range_max": 13, "num_negatives": 4}
    one, again, other = (mine_hard_negatives(QUERIES, CORPUS, seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(one.negative_rows, again.negative_rows)
    assert not torch.equal(one.negative_rows, other.negative_rows)
    for i, rows in enumerate(one.negative_rows.tolist()):
        allowed = by_hand(i, num=99, first=3, end=13)
        assert len(set(rows)) == 4
        assert rows == [row for row in allowed if row in rows]  # the nearest first


def test_one_table_with_labels():
    labels = ["a", "b", None, "a", "b", "c"]
    mined = mine_hard_negatives(table(6, seed=3, labels=labels), positives="label", num_negatives=2)
    assert mined.anchor_rows.tolist() == [0, 1, 3, 4]
    assert mined.positive_rows.tolist() == [3, 4, 0, 1]
    assert mined.without_positive == 2
    for i, rows in zip(mined.anchor_rows.tolist(), mined.negative_rows.tolist(), strict=True):
        assert i not in rows
        assert all(labels[row] != labels[i] for row in rows)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_what_is_written_is_a_source(tmp_path, suffix):
    mined = mine_hard_negatives(QUERIES, CORPUS, num_negatives=2)
    columns = ("anchor", "positive", "negative_1", "negative_2")
    file = mined.write(tmp_path / f"mined{suffix}")
    source = create_source(file, modality="text", text_columns=columns, split="all", id_column="none")
    assert tuple(source.texts) == columns
    assert source.texts["anchor"] == [f"query {i}" for i in range(9)]
    assert source.texts["negative_2"] == [f"text {row}" for row in mined.negative_rows[:, 1].tolist()]


def test_triplets_have_a_row_for_each_negative_and_columns_need_all():
    mined = mine_hard_negatives(QUERIES, CORPUS, absolute_margin=0.1, num_negatives=30)
    whole = int((mined.negative_rows >= 0).sum())
    triplets = mined.table("triplets")
    assert triplets.column_names == ["anchor", "positive", "negative"]
    assert triplets.num_rows == whole > 9
    assert mined.table().num_rows == int((mined.negative_rows >= 0).all(1).sum())


@pytest.mark.parametrize("name", ["range_max", "max_score", "relative_margin"])
def test_text_in_place_of_a_number_is_refused(name):
    conditions = hard_negatives._Conditions(3, 0, None, None, None, None, None, "top")
    # Not by the function itself, whose annotations the tests check first.
    with pytest.raises(InputError, match=f"{name}(.|\n)*'4'"):
        hard_negatives._check(conditions._replace(**{name: "4"}))


BAD = {
    "num_negatives as a whole number from 1": {"num_negatives": 0},
    "range_max of at least": {"range_max": 2},
    "a finite absolute_margin >= 0; got -1": {"absolute_margin": -1.0},
    "a number as max_score; got nan": {"max_score": math.nan},
    "a number as min_score; got nan": {"min_score": math.nan},
    "an anchor with both; got 0 without a positive, 9 without a negative": {"max_score": -1.0},
}


@pytest.mark.parametrize("message", list(BAD))
def test_numbers_that_do_not_fit_are_refused(message):
    with pytest.raises(InputError, match=message):
        mine_hard_negatives(QUERIES, CORPUS, **BAD[message])


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="of one model and space"):
        mine_hard_negatives(QUERIES, table(5, seed=1, origin=EmbeddingOrigin("other", "g", "text")))
    with pytest.raises(InputError, match="labels, for positives='label'; got none"):
        mine_hard_negatives(QUERIES, CORPUS, positives="label")
    with pytest.raises(InputError, match="9 without a positive"):
        mine_hard_negatives(QUERIES)  # of one table by id, no row has a positive
    broken = table(4, seed=2)
    broken.values[2, 0] = np.nan
    with pytest.raises(DataError, match="finite embeddings; got row 2"):
        mine_hard_negatives(QUERIES, broken)
    with pytest.raises(InputError, match=r"one of \.parquet, \.csv, \.jsonl; got mined\.txt"):
        mine_hard_negatives(QUERIES, CORPUS).write("mined.txt")
