"""Random problems, one after another, against a double loop over pairs in float64 that shares no code with the loss."""

import math
import random

import pytest
import torch

from mmcon.affinity import (
    Dense,
    Hierarchy,
    LabelKernel,
    MixedLabel,
    MultiLabel,
    SameLabel,
    SideFeatures,
    SpanOverlap,
    TimeKernel,
)
from mmcon.errors import InputError
from mmcon.losses import HardNegatives, LossSettings
from mmcon.losses.backends.dense import dense_losses
from mmcon.losses.backends.tiled import general_losses, tiled_losses
from mmcon.losses.loss_inputs import AnchorLosses, prepare
from mmcon.losses.supcon import reduce

#: Rounding errors of the dtype, times the largest exponent that a row may have and the sum of its weights.
ULPS = 32


def one_affinity(pick, n, kind, generator):
    """A base affinity of `n` rows."""

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=kind)

    def integers(high):
        return torch.randint(0, high, (n,), generator=generator)

    kernel = pick.choice(["gaussian", "exponential", "linear", "sigmoid", "step"])
    floor = pick.choice([0.0, 0.0, 0.3])
    width = 10 ** pick.uniform(-1.5, 1)
    return pick.choice(
        [
            lambda: SameLabel(integers(4)),
            lambda: MixedLabel(integers(4), integers(4), uniform(n)),
            lambda: MultiLabel(
                (uniform(n, 5) > 0.5).long(), measure=pick.choice(["distribution", "cosine", "jaccard"])
            ),
            lambda: LabelKernel(uniform(n) * 3, width=width, kernel=kernel, floor=floor),
            lambda: LabelKernel(integers(6), width=pick.choice([1.0, 2.0, 3.0]), kernel=kernel, floor=floor),
            lambda: LabelKernel(uniform(n, 2), width=width, kernel=kernel, floor=floor),
            lambda: TimeKernel(uniform(n), group=integers(3), width_seconds=width, kernel=kernel, floor=floor),
            lambda: SpanOverlap(integers(3), integers(3) + 3, group=pick.choice([None, integers(2)])),
            lambda: Hierarchy(integers(3), table=uniform(3, 3) * (uniform(3, 3) > 0.4)),
            lambda: SideFeatures(
                uniform(n, 4) - 0.3, kernel=pick.choice(["softmax", "half", "cosine"]), temperature=width, floor=floor
            ),
            lambda: Dense(uniform(n, n) * (uniform(n, n) > 0.6)),
        ]
    )()


def an_affinity(pick, n, kind, generator):
    """A base affinity, or a sum, a product, a multiple or a complement."""
    first = one_affinity(pick, n, kind, generator)
    how = pick.choice(["one", "one", "sum", "product", "scaled", "complement"])
    if how in ("sum", "product"):
        second = one_affinity(pick, n, kind, generator)
        return first + second if how == "sum" else first * second
    if isinstance(first, SideFeatures) and how == "complement":
        how = "one"  # 1 minus the cosine of a row with itself is 0 or a rounding error, which differs by tile size
    return {"one": first, "scaled": first * pick.choice([0.0, 0.25, 3.0]), "complement": ~first}[how]


def log_sum(exponents):
    """The log-sum-exp of a list, by its largest entry."""
    top = max(exponents, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(x - top) for x in exponents))


def log_of(x):
    return math.log(x) if x > 0 else -math.inf


def one_row(s, w, v, own, settings, infinite):
    """The loss of an anchor, or None without one, from the equations of `weighted_supcon`."""
    others = [j for j in range(len(s)) if j != own]
    positives = [j for j in others if w[j] > 0]
    negatives = [j for j in others if not w[j] > 0 or (infinite and isinstance(v, list))]
    if isinstance(v, HardNegatives):
        far = log_sum([(1 + v.concentration) * s[k] for k in negatives])
        log_n = log_of(len(negatives)) + far - log_sum([v.concentration * s[k] for k in negatives] or [0.0])
    else:
        log_n = log_sum([s[k] + (0.0 if v is None else log_of(v[k])) for k in negatives])
    if not positives or (settings.denominator == "negatives" and log_n == -math.inf):
        return None
    total = sum(w[j] for j in positives) if settings.row_normalize else 1.0

    def log_denominator(j):
        one = {"all": [log_sum([s[p] for p in positives])], "one": [s[j]], "negatives": []}
        return log_sum([*one[settings.denominator], log_n])

    if settings.form == "in":
        return log_denominator(positives[0]) - log_sum([math.log(w[j]) - math.log(total) + s[j] for j in positives])
    return sum(w[j] / total * (log_denominator(j) - s[j]) for j in positives)


def a_problem(seed):
    """Arguments and settings of one call."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    n, kind = pick.randint(1, 14), pick.choice([torch.float32, torch.float64])
    z = torch.nn.functional.normalize(torch.randn(n, 5, generator=generator, dtype=kind), dim=1)
    z = z if kind == torch.float64 or pick.random() < 0.7 else z.half()
    pool = None
    if pick.random() < 0.3:
        pool = torch.nn.functional.normalize(torch.randn(n, 5, generator=generator, dtype=kind), dim=1).to(z.dtype)
    own = None if pick.random() < 0.7 else torch.randint(-1, n, (n,), generator=generator)
    form, denominator = pick.choice(
        [("out", "all"), ("out", "one"), ("out", "negatives"), ("in", "all"), ("in", "negatives")]
    )
    v = pick.choice([None, None, "hard", "affinity"])
    weights = HardNegatives(pick.choice([0.0, 0.5, 2.0])) if v == "hard" else None
    settings = LossSettings(
        form=form,
        denominator=denominator,
        negative_weights=an_affinity(pick, n, kind, generator) if v == "affinity" else weights,
        row_normalize=pick.random() < 0.7,
        scale=pick.choice(["none", "temperature"]),
        reduction=pick.choice(["valid", "all", "sum", "none"]),
    )
    return z, pool, an_affinity(pick, n, kind, generator), 10 ** pick.uniform(-3, 1), own, settings, pick


def expected_losses(problem, temperature):
    """The loss of each anchor (0 without one), whether it has one, and the tolerance in units of rounding errors."""
    settings, n = problem.settings, len(problem.anchors)
    s = (problem.anchors.double() @ problem.candidates.double().T / temperature).tolist()
    w = problem.affinity.dense().to(problem.anchors.dtype).double().tolist()
    v, beta = settings.negative_weights, 0.0
    rows_of_v = [v] * n
    if isinstance(v, HardNegatives):
        beta = v.concentration
    elif v is not None:
        rows_of_v = v.dense().to(problem.anchors.dtype).double().tolist()
    found = [
        one_row(s[i], w[i], rows_of_v[i], int(problem.self_index[i]), settings, problem.affinity.infinite_support)
        for i in range(n)
    ]
    sums = [1.0 if settings.row_normalize else max(1.0, sum(row)) for row in w]
    units = (1 + beta) * (1 / temperature + math.log(n) + 1) * max(sums)
    return [0.0 if x is None else x for x in found], [x is not None for x in found], units


def check(seed):
    z, pool, affinity, temperature, own, settings, pick = a_problem(seed)
    needs_negatives = settings.denominator != "all" and settings.negative_weights is None
    if affinity.never_zero and (needs_negatives or isinstance(settings.negative_weights, HardNegatives)):
        with pytest.raises(InputError, match="never reaches 0"):
            prepare(z, pool, affinity, temperature=temperature, self_index=own, settings=settings)
        return
    problem = prepare(z, pool, affinity, temperature=temperature, self_index=own, settings=settings)
    losses, valid, units = expected_losses(problem, temperature)
    scale = temperature if settings.scale == "temperature" else 1.0
    expected = torch.tensor(losses, dtype=torch.float64) * scale
    tile = max(pick.choice([1, 3, 8, 64]), len(z) // 5)  # up to six tiles a side: more of them are the same again
    backends = {
        "dense": dense_losses,
        "tiled": lambda p: tiled_losses(p, tile),
        "general": lambda p: general_losses(p, tile),
    }
    count = {"valid": max(sum(valid), 1), "all": max(len(valid), 1)}
    name = pick.choice(list(backends))
    found = backends[name](problem)
    where = f"seed {seed}, {name}, temperature {temperature}, {settings}"
    assert found.valid.tolist() == valid, where
    total = reduce(AnchorLosses(found.losses * scale, found.valid), settings).double()
    answer = expected if settings.reduction == "none" else expected.sum() / count.get(settings.reduction, 1)
    many = len(valid) if settings.reduction == "sum" else 1
    tolerance = ULPS * torch.finfo(problem.anchors.dtype).eps * units * scale * many
    error = float((total - answer).abs().max())
    assert error <= tolerance, f"{where}: {error} > {tolerance}"


def test_a_sweep_of_random_problems_agrees_with_the_double_loop():
    for seed in range(200):
        check(seed)


@pytest.mark.slow
def test_a_long_sweep_of_random_problems_agrees_with_the_double_loop():
    for seed in range(200, 10_200):
        check(seed)
