"""The family's members by name: each is the weighted loss with settings, and says where they come from.

A preset returns keyword arguments for `Objective`, with affinities by column name; given tensors in place of names,
those without blocks serve `weighted_supcon` as well:

    Objective(**presets.simclr(temperature=0.5))
    weighted_supcon(z, None, **presets.supcon_out(labels=y))

Where a default temperature stands, it is the one of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mmcon.affinity import (
    Affinity,
    Column,
    Hierarchy,
    LabelKernel,
    MultiLabel,
    SameLabel,
    SameSample,
    SideFeatures,
    TimeKernel,
)
from mmcon.losses.negative_weights import HardNegatives

Preset = dict[str, Any]
Temperature = float | Tensor | nn.Module


def supcon_out(*, temperature: Temperature = 0.1, labels: Column = "label", as_published: bool = False) -> Preset:
    """SupCon, the sum over positives outside the logarithm: Khosla et al. 2020, eq. 2.

    `as_published` multiplies by the temperature and counts anchors without positives as 0, as the released code does.
    """
    published = {"scale": "temperature", "reduction": "all"} if as_published else {}
    return {"affinity": SameLabel(labels), "temperature": temperature, **published}


def supcon_in(*, temperature: Temperature = 0.1, labels: Column = "label", as_published: bool = False) -> Preset:
    """SupCon with the sum inside the logarithm: Khosla et al. 2020, eq. 3; kept for the comparison."""
    return {**supcon_out(temperature=temperature, labels=labels, as_published=as_published), "form": "in"}


def simclr(*, temperature: Temperature = 0.1, samples: Column = "sample") -> Preset:
    """SimCLR, NT-Xent: positives are the other views of the sample. Chen et al. 2020, eq. 1."""
    return {"affinity": SameSample(samples), "temperature": temperature}


def drop_same_class(*, temperature: Temperature = 0.1, samples: Column = "sample", labels: Column = "label") -> Preset:
    """SimCLR that uses labels only to leave rows of the same class out of the negatives."""
    return {**simclr(temperature=temperature, samples=samples), "negative_weights": ~SameLabel(labels)}


def sincere(*, temperature: Temperature = 0.1, labels: Column = "label") -> Preset:
    """SINCERE: a positive's denominator holds itself and the negatives, no other positive. Feeney and Hughes 2023."""
    return {"affinity": SameLabel(labels), "temperature": temperature, "denominator": "one"}


def dcl(*, temperature: Temperature = 0.1, samples: Column = "sample") -> Preset:
    """Decoupled contrastive learning: no positive in the denominator. Yeh et al. 2022."""
    return {"affinity": SameSample(samples), "temperature": temperature, "denominator": "negatives"}


def clip(*, temperature: Temperature, first: str = "image", second: str = "text", samples: Column = "sample") -> Preset:
    """CLIP: each of two modalities finds its partner among all of the other, both ways. Radford et al. 2021."""
    blocks = [_block(first, second, weight=0.5), _block(second, first, weight=0.5)]
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": blocks}


def clip_one_way(
    *, temperature: Temperature, anchors: str = "image", candidates: str = "text", samples: Column = "sample"
) -> Preset:
    """One direction of CLIP."""
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": [_block(anchors, candidates)]}


def cmc(
    *, temperature: Temperature = 0.07, views: Sequence[str] = ("image:0", "image:1"), core: str | None = None
) -> Preset:
    """CMC: every view finds its partner among all samples of each other view. Tian et al. 2020, eqs. 5 to 7.

    Args:
        temperature: .07 in the paper.
        views: modalities, or views of one, such as "image:0".
        core: only pairs with this view (the paper's core view); None: all pairs (its full graph).
    """
    pairs = [(a, c) for a in views for c in views if a != c and core in (None, a, c)]
    return {"affinity": SameSample(), "temperature": temperature, "blocks": [_block(a, c) for a, c in pairs]}


def multiple_negatives(
    *,
    temperature: Temperature = 0.05,
    anchors: str = "anchor",
    positives: str = "positive",
    hard_negatives: str | None = None,
    samples: Column = "sample",
) -> Preset:
    """Multiple negatives ranking, with mined hard negatives as further candidates. Henderson et al. 2017.

    Rows of hard negatives carry a sample id of their own, so that they are nobody's positive.
    """
    candidates = positives if hard_negatives is None else (positives, hard_negatives)
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": [_block(anchors, candidates)]}


def moco(*, temperature: Temperature = 0.07, samples: Column = "sample", queue: Any = None) -> Preset:
    """MoCo: a queue, and a momentum encoder's embeddings as the objective's `candidates=`. He et al. 2020."""
    return {"affinity": SameSample(samples), "temperature": temperature, "queue": queue}


def multi_label(*, temperature: Temperature = 0.1, targets: Column = "labels", measure: str = "distribution") -> Preset:
    """GenSCL and multi-label: as alike as their label distributions are. Kim et al. 2022."""
    return {"affinity": MultiLabel(targets, measure=measure), "temperature": temperature}


def y_aware(*, temperature: Temperature = 0.1, width: float | Tensor, labels: Column = "label") -> Preset:
    """y-Aware InfoNCE: a gaussian kernel of continuous labels, normalised by rows. Dufumier et al. 2021, eq. 3.

    The released code normalises columns; the equation, and this, rows.
    """
    return {"affinity": LabelKernel(labels, width=width), "temperature": temperature}


def x_clr(
    *, temperature: Temperature = 0.1, side_temperature: float | Tensor = 0.1, features: Column = "side"
) -> Preset:
    """X-CLR: graded by a softmax of the captions' similarity. Sobal et al. 2024."""
    return {"affinity": SideFeatures(features, temperature=side_temperature), "temperature": temperature}


def cwcl(
    *,
    temperature: Temperature,
    graded: str = "speech",
    other: str = "text",
    features: Column = "side",
    samples: Column = "sample",
) -> Preset:
    """CWCL: graded by a frozen encoder's similarity in one direction, plain CLIP back. Srinivasa et al. 2023."""
    there = _block(graded, other, weight=0.5, affinity=SideFeatures(features, kernel="half"))
    return {
        "affinity": SameSample(samples),
        "temperature": temperature,
        "blocks": [there, _block(other, graded, weight=0.5)],
    }


def soft_clt(
    *, temperature: Temperature = 1.0, width_seconds: float | Tensor, times: Column = "time", group: Column = "group"
) -> Preset:
    """SoftCLT: soft assignments by a sigmoid of the time lag, not normalised. Lee et al. 2024, eq. 4."""
    affinity = TimeKernel(times, group=group, width_seconds=width_seconds, kernel="sigmoid")
    return {"affinity": affinity, "temperature": temperature, "row_normalize": False}


def temporal(
    *,
    temperature: Temperature = 0.1,
    width_seconds: float | Tensor,
    times: Column = "time",
    group: Column = "group",
    kernel: str = "gaussian",
) -> Preset:
    """Graded video: clips of one recording are as alike as they are near in time."""
    affinity = TimeKernel(times, group=group, width_seconds=width_seconds, kernel=kernel)
    return {"affinity": affinity, "temperature": temperature}


def hierarchical(*, temperature: Temperature = 0.1, table: Tensor, labels: Column = "label") -> Preset:
    """Classes in a tree: as alike as their common ancestor is deep (`Hierarchy.table` makes the table)."""
    return {"affinity": Hierarchy(labels, table=table), "temperature": temperature}


def hard_negatives(
    *,
    temperature: Temperature = 0.5,
    concentration: float = 1.0,
    class_prior: float = 0.0,
    detach: bool = False,
    samples: Column = "sample",
) -> Preset:
    """Hard-negative weighting, debiased where `class_prior` is above 0. Robinson et al. 2021, eq. 4."""
    weighting = HardNegatives(concentration, class_prior, detach)
    return {**simclr(temperature=temperature, samples=samples), "denominator": "one", "negative_weights": weighting}


def debiased(*, temperature: Temperature = 0.5, class_prior: float = 0.1, samples: Column = "sample") -> Preset:
    """Debiased contrastive loss: expects positives among the negatives. Chuang et al. 2020, eq. 8."""
    return hard_negatives(temperature=temperature, concentration=0.0, class_prior=class_prior, samples=samples)


def _block(anchors: str, candidates: str | tuple[str, ...], **more: Any) -> dict[str, Any]:
    """What `Block` is made of; its class stands a floor above."""
    return {"anchors": anchors, "candidates": candidates, **more}


PRESETS: dict[str, Callable[..., Preset]] = {
    preset.__name__: preset
    for preset in (
        supcon_out,
        supcon_in,
        simclr,
        drop_same_class,
        sincere,
        dcl,
        clip,
        clip_one_way,
        cmc,
        multiple_negatives,
        moco,
        multi_label,
        y_aware,
        x_clr,
        cwcl,
        soft_clt,
        temporal,
        hierarchical,
        hard_negatives,
        debiased,
    )
}

__all__ = ["PRESETS", "Affinity", *PRESETS]
