"""Both directions of a pair of modalities from one matrix of similarities, and problems whose pairs are in blocks."""

import pytest
import torch
from loss_cases import D, unit

from mmcon.affinity import CandidateWeights, Dense, SameLabel, SameSample, SideFeatures, TimeKernel
from mmcon.errors import InputError
from mmcon.losses import HardNegatives, LossSettings, weighted_supcon
from mmcon.losses.backends import exponentials
from mmcon.losses.backends.dense import dense_both, dense_losses
from mmcon.losses.backends.exponentials import are_exact
from mmcon.losses.backends.group_blocks import grouped
from mmcon.losses.backends.tiled import general_losses, tiled_both
from mmcon.losses.loss_inputs import prepare
from mmcon.losses.supcon import both_directions, reduce

A, C, WIDTH = 19, 14, 5
LABELS, OTHERS = torch.arange(A) % 4, torch.arange(C) % 3
SIDE, OTHER_SIDE = unit(A, 3, seed=5), unit(C, 3, seed=6)
PAIRS = {
    "labels": (SameLabel(LABELS, OTHERS), SameLabel(OTHERS, LABELS)),
    "cwcl": (SideFeatures(SIDE, OTHER_SIDE, kernel="half"), SameLabel(OTHERS, LABELS)),
    "side features": (
        SideFeatures(SIDE, OTHER_SIDE, kernel="cosine"),
        SideFeatures(OTHER_SIDE, SIDE, kernel="softmax", temperature=0.5),
    ),
}


def gradients(losses, *inputs):
    weights = [torch.linspace(0.5, 2, len(x), dtype=D) for x in losses]
    total = sum((x * w).sum() for x, w in zip(losses, weights, strict=True))
    return [*(x.detach() for x in losses), *torch.autograd.grad(total, inputs)]


def leaves():
    temperature = torch.tensor(0.3, dtype=D, requires_grad=True)
    return unit(A, WIDTH).requires_grad_(), unit(C, WIDTH, seed=1).requires_grad_(), temperature


def problems(name, a, c, temperature, settings):
    return [
        prepare(rows, others, affinity, temperature=temperature, self_index=None, settings=settings)
        for (rows, others), affinity in zip(((a, c), (c, a)), PAIRS[name], strict=True)
    ]


@pytest.mark.parametrize("name", list(PAIRS))
@pytest.mark.parametrize("row_normalize", [True, False])
def test_one_pass_gives_the_losses_and_gradients_of_both_directions(name, row_normalize):
    settings = LossSettings(row_normalize=row_normalize)
    inputs = leaves()
    expected = gradients([dense_losses(p).losses for p in problems(name, *inputs, settings)], *inputs)
    for both in (dense_both, *(lambda p, r, t=t: tiled_both(p, r, t) for t in (5, 64))):
        found = gradients([x.losses for x in both(*problems(name, *inputs, settings))], *inputs)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("temperature", [0.2, 0.001])  # at .001 exponentials leave the range of float32
@pytest.mark.parametrize("settings", [{}, {"form": "in"}, {"denominator": "negatives", "scale": "temperature"}])
def test_both_directions_are_those_of_two_calls(backend, temperature, settings):
    a, c = unit(A, WIDTH).float(), unit(C, WIDTH, seed=1).float()
    found = both_directions(a, c, PAIRS["labels"], temperature, LossSettings(backend=backend, **settings))
    for x, rows, others, affinity in zip(found, (a, c), (c, a), PAIRS["labels"], strict=True):
        expected = weighted_supcon(rows, others, affinity, temperature=temperature, backend=backend, **settings)
        torch.testing.assert_close(reduce(x, LossSettings()), expected)


def test_each_similarity_of_a_pair_of_modalities_is_computed_once(monkeypatch):
    shapes, product = [], exponentials.matmul_nt
    monkeypatch.setattr(exponentials, "matmul_nt", lambda a, b: shapes.append((len(a), len(b))) or product(a, b))
    a, c, temperature = leaves()
    losses = tiled_both(*problems("labels", a, c, temperature, LossSettings()), 6)
    assert sum(r * k for r, k in shapes) == A * C
    shapes.clear()
    gradients([x.losses for x in losses], a, c)
    assert sum(r * k for r, k in shapes) == A * C


def test_threads_compute_tiles_of_their_own(monkeypatch):
    parts, map_parts = [], exponentials.map_parts
    monkeypatch.setattr(exponentials, "map_parts", lambda f, p: parts.append(len(p)) or map_parts(f, p))
    inputs, before = leaves(), torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            losses = tiled_both(*problems("labels", *inputs, LossSettings()), 5)
            found[threads] = gradients([x.losses for x in losses], *inputs)
    finally:
        torch.set_num_threads(before)
    assert parts == [2, 2]  # the forward and the backward pass
    for one, two in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


# --- blocks of groups ------------------------------------------------------------------------------------------------

SETTINGS = [
    {"form": "in"},
    {"denominator": "one"},
    {"denominator": "negatives"},
    {"negative_weights": HardNegatives(0.7), "denominator": "one"},
    {"negative_weights": HardNegatives(0.7, detach=True)},
    {"negative_weights": HardNegatives(0.5, 0.1), "denominator": "one"},
]


def case_of(n, labels, **settings):
    z, temperature = unit(n, WIDTH).requires_grad_(), torch.tensor(0.3, dtype=D, requires_grad=True)
    affinity = TimeKernel(torch.linspace(0, 3, n, dtype=D), group=labels, width_seconds=0.7)
    made = prepare(z, None, affinity, temperature=temperature, self_index=None, settings=LossSettings(**settings))
    return made, (z, temperature)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_blocks_give_the_losses_and_gradients_of_full_matrices(settings):
    labels = torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(0))
    problem, inputs = case_of(40, labels, **settings)
    layout = grouped(problem, 4)
    assert layout is not None
    assert len(layout.blocks) > 2
    expected = gradients([dense_losses(problem).losses], *inputs)
    for ours, theirs in zip(gradients([general_losses(problem, 4).losses], *inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_weights_of_negatives_are_read_within_the_coarser_groups():
    samples = torch.arange(12) // 2
    for labels, known in ((samples // 2, True), (torch.arange(12) % 5, False)):  # the latter divide samples
        settings = {"negative_weights": ~SameLabel(labels)}
        z = unit(12, WIDTH)
        problem = prepare(
            z, None, SameSample(samples), temperature=0.2, self_index=None, settings=LossSettings(**settings)
        )
        assert (grouped(problem, 2) is not None) == known
        torch.testing.assert_close(general_losses(problem, 2).losses, dense_losses(problem).losses)


@pytest.mark.parametrize("denominator", ["all", "one", "negatives"])
def test_negatives_from_some_candidates_alone(denominator):
    # MoCo: positives are in the batch, negatives are the rows of a queue, in which samples of the batch may be too.
    samples, queued = torch.arange(9), torch.cat([torch.arange(9), torch.arange(4, 30)])
    stored = CandidateWeights(torch.arange(35) >= 9, anchors=9)
    a, c, temperature = unit(9, WIDTH).requires_grad_(), unit(35, WIDTH, seed=1).requires_grad_(), torch.tensor(0.2)
    problem = prepare(
        a, c, SameSample(samples, queued) * ~stored, temperature=temperature, self_index=None,
        settings=LossSettings(denominator=denominator, negative_weights=stored),
    )  # fmt: skip
    assert grouped(problem, 2) is not None
    s = a @ c.T / 0.2
    below = s[:, 9:].exp().sum(1) + (0 if denominator == "negatives" else s.diagonal().exp())
    expected = gradients([below.log() - s.diagonal()], a, c)
    for ours, theirs in zip(gradients([general_losses(problem, 2).losses], a, c), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(InputError, match="one a candidate"):
        CandidateWeights(torch.ones(2, 2), anchors=2)


def test_sums_that_overflow_or_lose_terms_are_not_exact():
    some, none = torch.tensor([3]), torch.tensor([0])
    assert are_exact(torch.tensor([1.0]), some)
    assert are_exact(torch.tensor([0.0]), none)
    for bad in (0.0, 1e-38, float("inf")):
        assert not are_exact(torch.tensor([bad]), some)


@pytest.mark.parametrize("settings", [{}, {"denominator": "one"}, {"denominator": "negatives"}, {"form": "in"}])
@pytest.mark.parametrize("case", ["weights of candidates", "columns of their own"])
def test_rows_against_themselves_whose_weights_have_two_sides_are_exact_in_tiles(case, settings):
    """A tile of the triangle serves both directions of a pair only where its weights do."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(150, 8, generator=generator, dtype=torch.float64), dim=1)
    first, second = (torch.randint(0, 20, (150,), generator=generator) for _ in range(2))
    affinity = SameLabel(first)
    if case == "columns of their own":
        affinity = SameLabel(first, second)
    else:
        keep = (torch.rand(150, generator=generator) > 0.3).double()
        settings = {**settings, "negative_weights": CandidateWeights(keep, anchors=150)}
    rows = z.requires_grad_()
    options = {"temperature": 0.1, "self_index": None, "settings": LossSettings(**settings)}
    problem = prepare(rows, None, affinity, **options)
    expected = gradients([dense_losses(problem).losses], rows)
    for ours, theirs in zip(gradients([general_losses(problem, 16).losses], rows), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_embeddings_that_are_changed_in_place_before_the_gradient_are_refused():
    z = torch.nn.functional.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = (z.requires_grad_() * 1).requires_grad_()
    loss = weighted_supcon(rows, None, Dense(torch.ones(20, 20)), temperature=0.1, denominator="one", backend="tiled")
    rows.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_sums_whose_inverse_is_near_the_smallest_number_are_not_taken_as_exact():
    terms = torch.ones(1, dtype=torch.int64)
    assert are_exact(torch.tensor([1e30]), terms)
    assert not are_exact(torch.tensor([1e35]), terms)
