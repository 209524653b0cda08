"""Each preset against the formula of its paper, which is written here from raw columns, one pair at a time.

Nothing here reads the settings that a preset returns, so a preset that sets the wrong ones fails.
"""

import math

import pytest
import torch
from loss_cases import TABLE, D, draw, unit

from mmcon.batch import Index
from mmcon.errors import ConfigError
from mmcon.losses import presets
from mmcon.objective.objective import Objective
from mmcon.objective.queue import Queue

SAMPLES, WIDTH = 6, 5
N = 2 * SAMPLES
LABEL = [0, 0, 1, 1, 2, 3] * 2  # the last two classes have the two views of one sample alone
SAMPLE = list(range(SAMPLES)) * 2
TIME = [0.0, 0.4, 1.1, 0.2, 2.0, 0.9] * 2
GROUP = [0, 0, 0, 1, 1, 1] * 2
LABELS = [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0]] * 2
SIDE = draw(N, 4, seed=9)
Z = unit(N, WIDTH)
IMAGE, TEXT, MORE = unit(SAMPLES, WIDTH, seed=1), unit(SAMPLES, WIDTH, seed=2), unit(4, WIDTH, seed=3)
T = 0.2


def table(n=N):
    views = [0] * SAMPLES + [1] * SAMPLES
    columns = {"label": LABEL, "sample": SAMPLE, "time": TIME, "group": GROUP, "view": views}
    made = {name: torch.tensor(values[:n]) for name, values in columns.items()}
    made["time"] = made["time"].to(D)
    return Index({**made, "labels": torch.tensor(LABELS[:n], dtype=D), "side": SIDE[:n]})


def s(a, b):
    return float(a @ b) / T


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def mean(losses):
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known)


def anchor_mean(loss):
    """The mean of loss(i, others) over the anchors that have one."""
    return mean([loss(i, [j for j in range(N) if j != i]) for i in range(N)])


def log_softmax(i, j, over):
    return s(Z[i], Z[j]) - math.log(sum(math.exp(s(Z[i], Z[k])) for k in over))


def positives(i, others, column):
    return [j for j in others if column[j] == column[i]]


def supcon(i, others):
    """Khosla et al. 2020, eq. 2."""
    same = positives(i, others, LABEL)
    return -sum(log_softmax(i, p, others) for p in same) / len(same) if same else None


def supcon_inside(i, others):
    """Khosla et al. 2020, eq. 3."""
    same = positives(i, others, LABEL)
    return -math.log(sum(math.exp(log_softmax(i, p, others)) for p in same) / len(same)) if same else None


def nt_xent(i, others):
    """Chen et al. 2020, eq. 1."""
    (partner,) = positives(i, others, SAMPLE)
    return -log_softmax(i, partner, others)


def without_same_class(i, others):
    (partner,) = positives(i, others, SAMPLE)
    return -log_softmax(i, partner, [k for k in others if k == partner or LABEL[k] != LABEL[i]])


def guided(margin, relative):
    """Solatorio 2024: negatives that the guide finds more similar than the positive are left out."""

    def loss(i, others):
        (partner,) = positives(i, others, SAMPLE)
        limit = cosine(SIDE[i], SIDE[partner])
        limit -= margin * abs(limit) if relative else margin
        return -log_softmax(i, partner, [k for k in others if k == partner or cosine(SIDE[i], SIDE[k]) <= limit])

    return loss


def sincere(i, others):
    """Feeney and Hughes 2023: the denominator of a positive has itself and the negatives."""
    same = positives(i, others, LABEL)
    negatives = [k for k in others if k not in same]
    return -sum(log_softmax(i, p, [p, *negatives]) for p in same) / len(same) if same else None


def decoupled(i, others):
    """Yeh et al. 2022: no positive in the denominator."""
    (partner,) = positives(i, others, SAMPLE)
    return -log_softmax(i, partner, [k for k in others if k != partner])


def hardened(concentration, class_prior):
    """Robinson et al. 2021, eq. 4, and Chuang et al. 2020, eq. 8 (with M = 1), for N negatives."""

    def loss(i, others):
        (partner,) = positives(i, others, SAMPLE)
        negatives = [s(Z[i], Z[k]) for k in others if k != partner]
        n, positive = len(negatives), math.exp(s(Z[i], Z[partner]))
        weighted = sum(math.exp((1 + concentration) * x) for x in negatives)
        expected = weighted / sum(math.exp(concentration * x) for x in negatives)
        g = max((expected - class_prior * positive) / (1 - class_prior), math.exp(-1 / T)) if class_prior else expected
        return -math.log(positive / (positive + n * g))

    return loss


def graded(weight, *, normalized=True):
    """Σ_j w_ij (- log softmax), with the weights of a row divided by their sum or not."""

    def loss(i, others):
        weights = {j: weight(i, j) for j in others}
        total = sum(weights.values())
        if total == 0:
            return None
        scale = total if normalized else 1
        return -sum(w / scale * log_softmax(i, j, others) for j, w in weights.items())

    return loss


def jaccard(i, j):
    both = sum(a * b for a, b in zip(LABELS[i], LABELS[j], strict=True))
    return both / (sum(LABELS[i]) + sum(LABELS[j]) - both)


def same_drawn_label(i, j):
    """The probability that a label of i and a label of j, each drawn from its own, are equal."""
    both = sum(a * b for a, b in zip(LABELS[i], LABELS[j], strict=True))
    return both / (sum(LABELS[i]) * sum(LABELS[j]))


def gaussian(width):
    """Dufumier et al. 2021, eq. 3, whose 1/N inside the logarithm adds log N to each loss and no gradient."""
    return lambda i, j: math.exp(-((TIME[i] - TIME[j]) ** 2) / (2 * width**2))


def in_group(weight):
    return lambda i, j: weight(i, j) if GROUP[i] == GROUP[j] else 0.0


def sigmoid_lag(width):
    """Lee et al. 2024, eq. 4 of the temporal loss, with τ = 1 / width: 2 σ(-τ |t - t'|)."""
    return lambda i, j: 2 / (1 + math.exp(abs(TIME[i] - TIME[j]) / width))


def caption_softmax(side_temperature):
    """Sobal et al. 2024: a softmax of the captions' similarity; `graded` divides by its denominator."""
    return lambda i, j: math.exp(cosine(SIDE[i], SIDE[j]) / side_temperature)


def common_ancestor(i, j):
    return float(TABLE[LABEL[i], LABEL[j]])


ONE_MODALITY = {
    "supcon_out": (presets.supcon_out(temperature=T), supcon),
    "supcon_in": (presets.supcon_in(temperature=T), supcon_inside),
    "simclr": (presets.simclr(temperature=T), nt_xent),
    "drop_same_class": (presets.drop_same_class(temperature=T), without_same_class),
    "gist": (presets.gist(temperature=T), guided(0.0, False)),
    "gist relative": (presets.gist(temperature=T, margin=0.3, relative=True), guided(0.3, True)),
    "sincere": (presets.sincere(temperature=T), sincere),
    "dcl": (presets.dcl(temperature=T), decoupled),
    "multi_label": (presets.multi_label(temperature=T), graded(same_drawn_label)),
    "multi_label jaccard": (presets.multi_label(temperature=T, measure="jaccard"), graded(jaccard)),
    "y_aware": (presets.y_aware(temperature=T, labels="time", width=0.7), graded(gaussian(0.7))),
    "x_clr": (presets.x_clr(temperature=T, side_temperature=0.3), graded(caption_softmax(0.3))),
    "soft_clt": (
        presets.soft_clt(temperature=T, width_seconds=0.7),
        graded(in_group(sigmoid_lag(0.7)), normalized=False),
    ),
    "temporal": (presets.temporal(temperature=T, width_seconds=0.7), graded(in_group(gaussian(0.7)))),
    "hierarchical": (presets.hierarchical(temperature=T, table=TABLE), graded(common_ancestor)),
    "hard_negatives": (presets.hard_negatives(temperature=T, concentration=0.8), hardened(0.8, 0.0)),
    "debiased": (presets.debiased(temperature=T, class_prior=0.05), hardened(0.0, 0.05)),
}


@pytest.mark.parametrize("name", list(ONE_MODALITY))
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_a_preset_of_one_modality_is_the_formula_of_its_paper(name, backend):
    preset, formula = ONE_MODALITY[name]
    ours = Objective(**preset, backend=backend)(Z, table())
    assert float(ours) == pytest.approx(anchor_mean(formula), rel=1e-6)


def test_supcon_as_published_counts_all_anchors_and_multiplies_by_the_temperature():
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 0, 0, 1, 1, 4, 5])  # four anchors have no positive
    columns = Index({**table(), "label": labels})
    per_anchor = []
    for i in range(N):
        others = [j for j in range(N) if j != i]
        same = [j for j in others if labels[j] == labels[i]]
        per_anchor.append(-sum(log_softmax(i, p, others) for p in same) / max(len(same), 1))
    for preset, divisor, factor in (
        (presets.supcon_out(temperature=T), N - 4, 1),
        (presets.supcon_out(temperature=T, as_published=True), N, T),
    ):
        assert float(Objective(**preset)(Z, columns)) == pytest.approx(factor * sum(per_anchor) / divisor, rel=1e-6)


# --- pairs of modalities ---------------------------------------------------------------------------------------------


def cross_entropy(anchors, candidates):
    """The mean cross-entropy of each anchor's own candidate, the i-th, among all candidates."""
    rows = [[s(a, c) for c in candidates] for a in anchors]
    return mean([-row[i] + math.log(sum(map(math.exp, row))) for i, row in enumerate(rows)])


def weighted_cross_entropy(anchors, candidates, weight):
    losses = []
    for i, a in enumerate(anchors):
        row, weights = [s(a, c) for c in candidates], [weight(i, j) for j in range(len(candidates))]
        log_total = math.log(sum(map(math.exp, row)))
        losses.append(-sum(w * (x - log_total) for w, x in zip(weights, row, strict=True)) / sum(weights))
    return mean(losses)


def objective_of(preset, rows):
    """The loss of a preset for rows by modality; the rows of "more" are of samples that no anchor has."""
    tables = {name: table(SAMPLES) for name in rows}
    if "more" in rows:
        tables["more"] = Index({"sample": 100 + torch.arange(len(MORE)), "view": torch.zeros(len(MORE)).long()})
    return float(Objective(**preset)({"space": rows}, tables))


def test_clip_is_half_of_each_direction():
    both = {"image": IMAGE, "text": TEXT}
    expected = (cross_entropy(IMAGE, TEXT) + cross_entropy(TEXT, IMAGE)) / 2  # Radford et al. 2021, figure 3
    assert objective_of(presets.clip(temperature=T), both) == pytest.approx(expected, rel=1e-9)
    one_way = presets.clip_one_way(temperature=T, anchors="text", candidates="image")
    assert objective_of(one_way, both) == pytest.approx(cross_entropy(TEXT, IMAGE), rel=1e-9)


def test_cmc_sums_over_pairs_of_views_in_both_directions():
    views = [Z[:SAMPLES], Z[SAMPLES:], IMAGE]
    rows, names = torch.cat(views), [f"image:{k}" for k in range(3)]
    columns = Index({"sample": torch.arange(SAMPLES).repeat(3), "view": torch.arange(3).repeat_interleave(SAMPLES)})

    def loss(**options):
        settings = presets.cmc(temperature=T, views=names, **options)
        return float(Objective(**settings)({"space": {"image": rows}}, {"image": columns}))

    # Tian et al. 2020: eq. 5 (both directions), eq. 7 (full graph), eq. 6 (core view).
    both = {
        (a, b): cross_entropy(views[a], views[b]) + cross_entropy(views[b], views[a])
        for a, b in ((0, 1), (0, 2), (1, 2))
    }
    assert loss() == pytest.approx(sum(both.values()), rel=1e-9)
    assert loss(core="image:0") == pytest.approx(both[0, 1] + both[0, 2], rel=1e-9)


def test_multiple_negatives_ranks_the_positive_among_those_of_others_and_hard_negatives():
    preset = presets.multiple_negatives(temperature=T, anchors="image", positives="text", hard_negatives="more")
    expected = cross_entropy(IMAGE, [*TEXT, *MORE])  # Henderson et al. 2017
    assert objective_of(preset, {"image": IMAGE, "text": TEXT, "more": MORE}) == pytest.approx(expected, rel=1e-9)


def test_cwcl_is_graded_in_one_direction_and_clip_in_the_other():
    preset = presets.cwcl(temperature=T, graded="image", other="text")
    weight = lambda i, j: cosine(SIDE[i], SIDE[j]) / 2 + 0.5  # noqa: E731 — Srinivasa et al. 2023
    expected = (weighted_cross_entropy(IMAGE, TEXT, weight) + cross_entropy(TEXT, IMAGE)) / 2
    assert objective_of(preset, {"image": IMAGE, "text": TEXT}) == pytest.approx(expected, rel=1e-6)


# --- MoCo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["dense", "tiled", "auto"])
def test_moco_has_the_queue_alone_as_negatives(backend):
    queue, keys, old = Queue(size=5), unit(N, WIDTH, seed=4), unit(5, WIDTH, seed=5)
    # One of the queued rows is of a sample in the batch: it is a negative as any other in the queue.
    stored = Index({"sample": torch.tensor([0, 50, 51, 52, 53]), "view": torch.zeros(5, dtype=torch.int64)})
    queue.push({"space": {"image": old}}, {"image": stored})
    objective = Objective(**presets.moco(temperature=T, queue=queue), backend=backend)
    columns = Index({"sample": torch.tensor(SAMPLE), "view": table()["view"]})
    anchors = Z.clone().requires_grad_()
    loss = objective({"space": {"image": anchors}}, {"image": columns}, {"space": {"image": keys}})
    expected = []
    for i in range(N):  # He et al. 2020, eq. 1
        positive = s(Z[i], keys[(i + SAMPLES) % N])
        negatives = [s(Z[i], key) for key in old]
        expected.append(-positive + math.log(sum(map(math.exp, [positive, *negatives]))))
    assert float(loss.detach()) == pytest.approx(mean(expected), rel=1e-9)
    loss.backward()
    assert bool(anchors.grad.abs().sum(1).gt(0).all())


def test_moco_without_its_queue_is_refused():
    with pytest.raises((ConfigError, TypeError), match="queue"):
        presets.moco(temperature=T)
    with pytest.raises(ConfigError, match="a queue, without negative_weights"):
        Objective(**presets.moco(temperature=T, queue=None))
    with pytest.raises(ConfigError, match="negative_weights"):
        Objective(**presets.moco(temperature=T, queue=Queue(size=2)), negative_weights=torch.eye(2))


def test_every_preset_has_its_formula_here_and_its_row_in_the_documents(request):
    here = {name.partition(" ")[0] for name in ONE_MODALITY}
    here |= {"clip", "clip_one_way", "cmc", "multiple_negatives", "cwcl", "moco"}
    assert here == set(presets.PRESETS)
    page = (request.config.rootpath / "docs" / "losses.md").read_text()
    assert [name for name in presets.PRESETS if f"| `{name}` |" not in page] == []
