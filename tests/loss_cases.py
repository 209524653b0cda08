"""Inputs for every preset, and the loss as a double loop over pairs."""

import math

import torch

from mmcon.affinity import Hierarchy, SameSample, SideFeatures, as_affinity
from mmcon.losses import HardNegatives, presets

D = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1)


def columns(n, seed=0):
    """The columns of the index; the first row has no positive by any of them."""
    g = torch.Generator().manual_seed(seed + 100)
    label = torch.randint(0, 4, (n,), generator=g)
    label[0] = 4
    sample = torch.arange(n) % (n // 2)
    sample[0] = n
    targets = (torch.rand(n, 6, generator=g) > 0.6).to(D)
    targets[0] = 0
    time = torch.rand(n, generator=g, dtype=D) * 3
    partner = label.roll(1) % 4
    partner[0] = 4
    return {
        "label": label,
        "partner_label": partner,
        # Weights are float32; of six bits, their products are exact in it.
        "share": torch.rand(n, generator=g, dtype=D).mul(64).floor() / 64,
        "sample": sample,
        "labels": targets,
        "time": time,
        "group": label,
        "side": draw(n, 5, seed=7),
    }


TABLE = Hierarchy.table(torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3], [2, 4]]), [0.0, 0.5, 1.0]).to(D)


def square_presets(c):
    """Settings of `weighted_supcon` by name, for anchors that are the candidates."""
    return {
        "supcon_out": presets.supcon_out(labels=c["label"]),
        "supcon_out as published": presets.supcon_out(labels=c["label"], as_published=True),
        "supcon_in": presets.supcon_in(labels=c["label"]),
        "simclr": presets.simclr(samples=c["sample"]),
        "drop_same_class": presets.drop_same_class(samples=c["sample"], labels=c["label"]),
        "gist": presets.gist(temperature=0.1, samples=c["sample"], guide=c["side"], margin=0.3),
        "gist relative": presets.gist(temperature=0.1, samples=c["sample"], guide=c["side"], margin=0.5, relative=True),
        "sincere": presets.sincere(labels=c["label"]),
        "dcl": presets.dcl(samples=c["sample"]),
        "multi_label": presets.multi_label(targets=c["labels"]),
        "multi_label jaccard": presets.multi_label(targets=c["labels"], measure="jaccard"),
        "y_aware": presets.y_aware(labels=c["time"], width=0.7),
        "x_clr": presets.x_clr(features=c["side"]),
        "soft_clt": presets.soft_clt(times=c["time"], group=c["group"], width_seconds=0.7),
        "temporal": presets.temporal(times=c["time"], group=c["group"], width_seconds=0.7),
        "hierarchical": presets.hierarchical(labels=c["label"].clamp_max(4), table=TABLE),
        "hard_negatives": presets.hard_negatives(samples=c["sample"], concentration=0.7),
        "hard_negatives detached": presets.hard_negatives(samples=c["sample"], concentration=0.7, detach=True),
        "debiased": presets.debiased(samples=c["sample"], class_prior=0.05),
        "hard and debiased": presets.hard_negatives(samples=c["sample"], concentration=0.3, class_prior=0.05),
    }


def rectangular_presets(a, c):
    """Settings by name, for anchors `a` and other candidates `c`."""
    match = SameSample(a["sample"], c["sample"])
    graded = SideFeatures(a["side"], c["side"], kernel="half")
    return {
        "partners": {"affinity": match, "temperature": 0.1},
        "cwcl": {"affinity": graded, "temperature": 0.1},
    }


def by_loops(anchors, candidates, self_index, preset):
    """The loss of each anchor and whether it is valid, from the equations, one pair at a time."""
    settings = {"form": "out", "denominator": "all", "row_normalize": True, "negative_weights": None, **preset}
    w = as_affinity(settings["affinity"]).dense().tolist()
    v = settings["negative_weights"]
    weights_of_negatives = None if v is None or isinstance(v, HardNegatives) else as_affinity(v).dense().tolist()
    t = settings["temperature"]
    losses, valid = [], []
    for i in range(len(anchors)):
        others = [j for j in range(len(candidates)) if j != int(self_index[i])]
        s = {j: float(anchors[i] @ candidates[j]) / t for j in others}
        positive = [j for j in others if w[i][j] > 0]
        negative = [j for j in others if not w[i][j] > 0]
        total = sum(w[i][j] for j in positive)
        weight = {j: w[i][j] / (total if settings["row_normalize"] else 1) for j in positive}
        has_both = bool(positive) and (settings["denominator"] != "negatives" or bool(negative))
        valid.append(has_both)
        if not has_both:
            losses.append(0.0)
            continue
        if isinstance(v, HardNegatives):
            far = sum(math.exp((1 + v.concentration) * s[k]) for k in negative)
            near = sum(math.exp(v.concentration * s[k]) for k in negative)
            push = len(negative) * far / near if negative else 0.0
        else:
            push = sum((1 if v is None else weights_of_negatives[i][k]) * math.exp(s[k]) for k in negative)

        def denominator(j, push=push, s=s, positive=positive, negative=negative):
            if settings["denominator"] == "negatives":
                return push
            if settings["denominator"] == "one":
                if isinstance(v, HardNegatives) and v.class_prior > 0:
                    m = len(negative)
                    push = max((push - v.class_prior * m * math.exp(s[j])) / (1 - v.class_prior), m * math.exp(-1 / t))
                return math.exp(s[j]) + push
            return sum(math.exp(s[p]) for p in positive) + push

        if settings["form"] == "in":
            inner = sum(weight[j] * math.exp(s[j]) for j in positive)
            loss = -math.log(inner) + math.log(denominator(positive[0]))
        else:
            loss = -sum(weight[j] * (s[j] - math.log(denominator(j))) for j in positive)
        losses.append(loss * (t if settings.get("scale") == "temperature" else 1))
    return torch.tensor(losses, dtype=D), torch.tensor(valid)
