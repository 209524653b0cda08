import math

import pytest
import torch
from evaluation_cases import labeled_features as features
from sklearn.metrics import average_precision_score, ndcg_score
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.retrieval import retrieve, retrieve_both_directions


def naive(query, rows, weights, k):
    """Rank by a plain sort, then read every figure off the list."""
    unit = torch.nn.functional.normalize
    similarity = [float(unit(query, dim=0) @ unit(row, dim=0)) for row in rows]
    order = sorted(range(len(rows)), key=lambda j: -similarity[j])
    hits = [place for place, j in enumerate(order, 1) if weights[j] > 0]
    precision = sum(i / place for i, place in enumerate(hits, 1)) / len(hits)
    return hits[0], hits[0] <= k, precision


@pytest.mark.usefixtures("block")
def test_retrieval_by_label_against_a_naive_loop_and_scikit_learn():
    queries, candidates = features(40, 0), features(60, 1)
    result = retrieve(queries, candidates, relevance="label", ks=(3,))
    ranks, recalled, precisions, theirs = [], [], [], []
    for i in range(40):
        weights = (candidates.labels == queries.labels[i]).tolist()
        rank, hit, precision = naive(queries.values[i], candidates.values, weights, 3)
        ranks.append(rank)
        recalled.append(hit)
        precisions.append(precision)
        theirs.append(average_precision_score(weights, candidates.normalized() @ queries.normalized()[i]))
    assert result.first_rank.tolist() == ranks
    assert result.recall[3] == pytest.approx(sum(recalled) / 40)
    assert result.average_precision.tolist() == pytest.approx(precisions)
    assert result.mean_average_precision == pytest.approx(sum(theirs) / 40)


@pytest.mark.usefixtures("block")
def test_graded_relevance_is_scikit_learns_ndcg():
    queries, candidates = features(30, 0), features(50, 1)
    weights = torch.rand(30, 50, generator=torch.Generator().manual_seed(5))
    result = retrieve(queries, candidates, relevance=weights)
    scores = queries.normalized() @ candidates.normalized().T
    assert result.ndcg == pytest.approx(ndcg_score(weights, scores), abs=1e-6)

    def by_label(rows, columns):
        return torch.where(rows["label"][:, None] == columns["label"], 1.0, 0.0)

    by_function = retrieve(queries, candidates, relevance=by_label)
    by_column = retrieve(queries, candidates, relevance="label")
    assert by_function.mean_average_precision == by_column.mean_average_precision


def test_recall_and_first_ranks_are_torchmetrics():
    queries, candidates = features(40, 0), features(60, 1)
    result = retrieve(queries, candidates, relevance="label", ks=(1, 4))
    scores, relevant = (
        queries.normalized() @ candidates.normalized().T, queries.labels[:, None] == candidates.labels
    )  # fmt: skip
    pairs = list(zip(scores, relevant, strict=True))
    for k, recall in result.recall.items():
        hits = [float(retrieval_hit_rate(score, own, top_k=k)) for score, own in pairs]
        assert recall == pytest.approx(sum(hits) / 40)
    theirs = [1 / float(retrieval_reciprocal_rank(score, own)) for score, own in pairs]
    assert result.first_rank.tolist() == pytest.approx(theirs)
    assert result.median_rank in (sorted(theirs)[19], sorted(theirs)[20])


def test_chance_is_what_noise_gets():
    g = torch.Generator().manual_seed(0)
    index = Index({"label": torch.arange(200) % 20})
    noise = [Features(torch.randn(200, 16, generator=g), index) for _ in range(20)]
    results = [retrieve(a, b, relevance="label", ks=(1, 5, 200)) for a, b in zip(noise[::2], noise[1::2], strict=True)]
    seen = sum(r.recall[5] for r in results) / 10
    # Ten of 200 relevant: 1 − C(190, 5) / C(200, 5).
    assert results[0].chance[5] == pytest.approx(1 - math.comb(190, 5) / math.comb(200, 5))
    assert results[0].chance[1] == pytest.approx(10 / 200)
    assert results[0].chance[200] == 1.0
    assert seen == pytest.approx(results[0].chance[5], abs=0.03)


def test_both_ways_are_two_directions_with_weights_transposed():
    a, b = features(20, 0), features(30, 1)
    weights = torch.rand(20, 30, generator=torch.Generator().manual_seed(1))
    there, back = retrieve_both_directions(a, b, relevance=weights)
    assert there.ndcg == retrieve(a, b, relevance=weights).ndcg
    assert back.ndcg == retrieve(b, a, relevance=weights.T).ndcg
    same = retrieve_both_directions(a, b, relevance=lambda r, c: (r["label"][:, None] == c["label"]).float())
    assert same[1].recall == retrieve(b, a, relevance="label").recall


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(dtype, value):
    a, b = features(5, 0), features(5, 1)
    b = Features(b.values.to(dtype), b.index)
    b.values[2, 1] = value
    with pytest.raises(InputError, match="finite features of candidates"):
        retrieve(Features(a.values.to(dtype), a.index), b)
    with pytest.raises(InputError, match="finite features of queries"):
        retrieve(b, Features(a.values.to(dtype), a.index))


def test_pairs_are_found_by_their_sample():
    a = features(25, 0)
    shuffled = a.take(torch.randperm(25, generator=torch.Generator().manual_seed(0)))
    result = retrieve(a, shuffled)
    assert result.recall[1] == 1.0
    assert result.median_rank == 1.0


@pytest.mark.usefixtures("block")
def test_a_set_against_itself_leaves_each_out():
    a = features(50, 0)
    with_self = retrieve(a, a, relevance="label")
    without = retrieve(a, a, relevance="label", exclude_same="sample")
    assert with_self.recall[1] == 1.0
    assert without.recall[1] < 1.0
    assert without.chance[1] == pytest.approx(sum((int((a.labels == label).sum()) - 1) / 49 for label in a.labels) / 50)


def test_queries_without_anything_relevant_are_counted_and_left_out():
    queries, candidates = features(40, 0), features(60, 1)
    candidates = candidates.take(candidates.labels != 2)
    result = retrieve(queries, candidates, relevance="label")
    lost = queries.labels == 2
    assert result.queries_without_relevant == int(lost.sum())
    assert bool((result.first_rank[lost] == 0).all())
    assert bool(result.average_precision[lost].isnan().all())
    kept = retrieve(queries.take(~lost), candidates, relevance="label")
    assert kept.recall == result.recall
    assert kept.ndcg == pytest.approx(result.ndcg)


def test_collapsed_features_are_at_chance():
    index = Index({"sample": torch.arange(100)})
    collapsed = Features(torch.ones(100, 4), index)
    assert retrieve(collapsed, collapsed).recall[10] == pytest.approx(0.10)


def test_bad_input_is_named():
    a, b = features(10, 0), features(12, 1)
    with pytest.raises(InputError, match="10 × 8, 12 × 3"):
        retrieve(a, features(12, 1, d=3))
    with pytest.raises(InputError, match=r"`q c` of \(10, 12\)"):
        retrieve(a, b, relevance=torch.ones(12, 10))
    with pytest.raises(InputError, match="least -1"):
        retrieve(a, b, relevance=-torch.ones(10, 12))
    with pytest.raises(InputError, match="none of 10"):
        retrieve(a, b, relevance=torch.zeros(10, 12))


# --- what a wrong operator or constant would change -------------------------------------------------------------------


def test_figures_by_hand():
    """Cosines order candidates 0, 1, 2, 3; weights 0, 2, 0, 1.

    First rank 2. Average precision (1/2 + 2/4) / 2. Gain 2 / log2 3 + 1 / log2 5 of at most 2 / log2 2 + 1 / log2 3.
    Chance at 1: 2 of 4; at 2: 1 − C(2, 2) / C(4, 2) = 5/6; at 3 two misses cannot fill three ranks.
    """
    angle = torch.tensor([0.1, 0.2, 0.3, 0.4])
    candidates = Features(torch.stack([angle.cos(), angle.sin()], 1), Index({"sample": torch.arange(4)}))
    query = Features(torch.tensor([[1.0, 0.0]]), Index({"sample": torch.tensor([0])}))
    found = retrieve(query, candidates, relevance=torch.tensor([[0.0, 2, 0, 1]]), ks=(1, 2, 3))
    assert found.first_rank.tolist() == [2]
    assert found.recall == {1: 0.0, 2: 1.0, 3: 1.0}
    assert found.average_precision.tolist() == pytest.approx([0.5])
    assert found.ndcg == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / (2 + 1 / math.log2(3)))
    assert found.chance == {1: pytest.approx(0.5), 2: pytest.approx(5 / 6), 3: 1.0}
    assert found.median_rank == 2
    assert found.queries_without_relevant == 0


def test_recall_is_read_at_1_5_and_10_by_default():
    a, b = features(20, 0), features(20, 1)
    assert list(retrieve(a, b).recall) == list(retrieve(a, b).chance) == [1, 5, 10]
    assert [list(found.recall) for found in retrieve_both_directions(a, b)] == [[1, 5, 10]] * 2


def test_equal_candidates_keep_their_order():
    index = Index({"sample": torch.arange(5)})
    collapsed = Features(torch.ones(5, 2), index)
    assert retrieve(collapsed, collapsed).first_rank.tolist() == [1, 2, 3, 4, 5]


def test_weights_of_zero_are_allowed_and_median_rank_is_of_the_found():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    table = Features(rows, Index({"sample": torch.arange(3)}))
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 0]])
    found = retrieve(table, table, relevance=weights)
    assert found.first_rank.tolist() == [1, 0, 3]
    assert (found.median_rank, found.queries_without_relevant) == (2, 1)


def test_excluded_candidates_count_neither_as_relevant_nor_by_chance():
    """Each of three rows is relevant to itself only, or to one other, which is left as one of two candidates."""
    rows = Features(torch.eye(3), Index({"sample": torch.arange(3), "label": torch.tensor([0, 0, 1])}))
    found = retrieve(rows, rows, relevance="label", exclude_same="sample", ks=(1, 2))
    assert found.queries_without_relevant == 1
    assert found.chance == {1: pytest.approx(0.5), 2: 1.0}


def test_either_wrong_shape_or_a_negative_weight_is_refused():
    a, b = features(10, 0), features(12, 1)
    with pytest.raises(InputError, match=r"shape \(10, 11\)"):
        retrieve(a, b, relevance=lambda rows, columns: torch.ones(rows.n, 11))
    with pytest.raises(InputError, match=r"shape \(9, 12\)"):
        retrieve(a, b, relevance=lambda rows, columns: torch.ones(rows.n - 1, 12))
    weights = torch.ones(10, 12)
    weights[3, 4] = -1
    with pytest.raises(InputError, match="least -1"):
        retrieve(a, b, relevance=weights)
