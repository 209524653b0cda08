import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score
from sklearn.neighbors import KNeighborsClassifier

from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation import similarity_blocks
from mmcon.evaluation.embedding_geometry import alignment, modality_gap, uniformity
from mmcon.evaluation.features import Features
from mmcon.evaluation.knn import knn
from mmcon.evaluation.retrieval import retrieve, retrieve_both_directions


def features(n: int, seed: int, d: int = 8, classes: int = 5) -> Features:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    values = centres[label] + torch.randn(n, d, generator=g)
    return Features(values, Index({"sample": torch.arange(n), "label": label}))


@pytest.fixture(params=[similarity_blocks.BLOCK_SIZE, 300], ids=["whole", "chunked"])
def block(request, monkeypatch):
    monkeypatch.setattr(similarity_blocks, "BLOCK_SIZE", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 7, 500])
def test_knn_is_scikit_learns_with_the_same_weights(k):
    train, test = features(200, 0), features(90, 1)

    def weights(distance):  # of unit rows: cosine = 1 − distance² / 2
        return np.exp(-(distance**2) / 2 / 0.07)

    theirs = KNeighborsClassifier(min(k, 200), weights=weights).fit(train.normalized(), train.labels)
    ours = knn(train, test, k=k)
    assert ours.predicted.tolist() == theirs.predict(test.normalized()).tolist()


def test_knn_can_leave_a_sample_out_of_its_own_vote():
    train = features(100, 0)
    assert knn(train, train, k=1).top1 == 1.0
    assert knn(train, train, k=1, exclude_same="sample").top1 < 1.0


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


@pytest.mark.usefixtures("block")
def test_alignment_and_uniformity_against_double_loops():
    x, y = features(30, 0).values, features(30, 1).values
    u, w = torch.nn.functional.normalize(x, dim=1).double(), torch.nn.functional.normalize(y, dim=1).double()
    assert alignment(x, y) == pytest.approx(sum(float((a - b).square().sum()) for a, b in zip(u, w, strict=True)) / 30)
    pairs = [math.exp(-2 * float((u[i] - u[j]).square().sum())) for i in range(30) for j in range(30) if i != j]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-6)
    assert modality_gap(x, x) == 0
    assert modality_gap(x, y) == pytest.approx(float((u.mean(0) - w.mean(0)).norm()), abs=1e-6)


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
    with pytest.raises(InputError, match="k >= 1"):
        knn(a, b, k=0)
    with pytest.raises(InputError, match="two rows"):
        uniformity(torch.ones(1, 3))
