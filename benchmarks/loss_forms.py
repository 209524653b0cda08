"""Cases of the loss for `loss.py`, each with its floor: the matrix products and one exponential a pair, timed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcon.affinity import (
    Affinity,
    CandidateWeights,
    Dense,
    Hierarchy,
    LabelKernel,
    MultiLabel,
    SameLabel,
    SameSample,
    SideFeatures,
    TimeKernel,
)
from mmcon.losses import HardNegatives, LossSettings, weighted_supcon
from mmcon.losses.backends.exponentials import TILE_SIZE, slices
from mmcon.losses.backends.matmul import matmul_nn, matmul_nt, matmul_tn
from mmcon.losses.supcon import both_directions, reduce

TEMPERATURE = 0.1


class Case(NamedTuple):
    """A loss of one or two tables of rows.

    Attributes:
        name: what it is.
        loss: of the tables.
        inputs: anchors, and candidates where they are other rows.
        trained: how many of the inputs receive a gradient.
    """

    name: str
    loss: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    trained: int


def unit_rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def floor(anchors: Tensor, candidates: Tensor | None, trained: int) -> None:
    """Each pair once: its product and its exponential, again in the backward pass, and the products of gradients.

    The exponential is `exp2`, the fastest of PyTorch's on a CPU.
    """
    square = candidates is None
    others = anchors if candidates is None else candidates
    of_anchors, of_candidates = torch.zeros_like(anchors), torch.zeros_like(others)
    for backward in (False, True):
        for rows in slices(len(anchors), TILE_SIZE):
            for columns in slices(len(others), TILE_SIZE):
                if square and columns.start < rows.start:
                    continue
                e = matmul_nt(anchors[rows], others[columns]).exp2_()
                if backward:
                    of_anchors[rows] += matmul_nn(e, others[columns])
                    if trained == 2 or (square and rows != columns):
                        of_candidates[columns] += matmul_tn(e, anchors[rows])


def cases(n: int, d: int) -> Iterator[Case]:
    """All cases at `n` rows, one after another: those of dense weights need n² numbers."""
    g = torch.Generator().manual_seed(1)
    z, text, queue = unit_rows(n, d), unit_rows(n, d, 1), unit_rows(4 * n, d, 2)
    classes, few = (torch.randint(0, k, (n,), generator=g) for k in (100, 10))
    samples, ids = torch.arange(n) % (n // 2), torch.arange(n)
    times = torch.rand(n, generator=g) * 10
    recordings = torch.randint(0, n // 16, (n,), generator=g)
    several = (torch.rand(n, 20, generator=g) < 0.15).float()
    tree = Hierarchy.table(torch.stack([torch.arange(100) // 10, torch.arange(100)], 1), [0.0, 0.5, 1.0])
    views = SameSample(samples)

    def square(name: str, affinity: Affinity, **settings: object) -> Case:
        return Case(name, lambda x: loss_of(x, None, affinity, **settings), (z,), 1)

    def loss_of(x: Tensor, y: Tensor | None, affinity: Affinity, **settings: object) -> Tensor:
        return weighted_supcon(x, y, affinity, temperature=TEMPERATURE, backend="tiled", **settings)  # pyright: ignore

    yield square("class labels (SupCon)", SameLabel(classes))
    yield square("views of a sample (SimCLR)", views)
    yield square("several labels (MultiLabel)", MultiLabel(several))
    yield square("tree of classes (Hierarchy)", Hierarchy(classes, table=tree))
    yield square("time within recordings", TimeKernel(times, group=recordings, width_seconds=1.0))
    yield Case("CLIP, both directions", clip, (z, text), 2)
    partner = SameSample(ids, ids)
    yield Case("CLIP, one direction", lambda x, y: loss_of(x, y, partner), (z, text), 2)
    queued = SameSample(ids, torch.arange(4 * n))
    yield Case("candidates of a queue of 4 n", lambda x, y: loss_of(x, y, queued), (z, queue), 1)
    own = torch.arange(n // 2)
    half = SameLabel(classes[: n // 2], classes)
    yield Case(
        "half of the anchors of two ranks",
        lambda x, y: loss_of(x, y, half, self_index=own),
        (z[: n // 2], z.clone()),
        2,
    )
    stored = CandidateWeights(torch.arange(5 * n) >= n, anchors=n)
    moco = SameSample(ids, torch.arange(5 * n)) * ~stored
    settings = {"denominator": "one", "negative_weights": stored}
    yield Case("MoCo, negatives of the queue alone", lambda x, y: loss_of(x, y, moco, **settings),
               (z, torch.cat([text, queue])), 1)  # fmt: skip
    yield square("denominator negatives (DCL)", views, denominator="negatives")
    yield square("denominator one (SINCERE)", SameLabel(classes), denominator="one")
    yield square("in form", SameLabel(classes), form="in")
    yield square("in form, 10 classes", SameLabel(few), form="in")
    masked = ~SameLabel(classes[samples])
    yield square("same-class negatives dropped", views, negative_weights=masked)
    yield square("hard negatives", views, denominator="one", negative_weights=HardNegatives(0.5))
    yield square("debiased", views, denominator="one", negative_weights=HardNegatives(0.0, 0.05))
    yield square("kernel of a label", LabelKernel(times, width=1.0))
    yield square("Jaccard", MultiLabel(several, measure="jaccard"))
    yield square("side features (X-CLR)", SideFeatures(unit_rows(n, 64, 3)))
    yield square("kernel of a label, in form", LabelKernel(times, width=1.0), form="in")
    near = LabelKernel(times, width=1.0, floor=0.1)
    yield square("kernel of a label with a floor, denominator one", near, denominator="one")
    yield square("kernel of a label with a floor, denominator negatives", near, denominator="negatives")
    yield square("negatives of other groups dropped", views, negative_weights=~SameLabel(few))
    yield square("dense weights", Dense(torch.rand(n, n, generator=g)))


def clip(image: Tensor, text: Tensor) -> Tensor:
    """The CLIP loss: both directions of pairs, half each."""
    partner = SameSample(torch.arange(len(image)), torch.arange(len(image)))
    settings = LossSettings(backend="tiled")
    found = both_directions(image, text, (partner, partner), TEMPERATURE, settings)
    return sum((reduce(one_way, settings) for one_way in found), torch.zeros(())) / 2
