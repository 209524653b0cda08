"""Published losses as settings of the weighted loss, each with its source.

A preset returns keyword arguments for `Objective`, with affinities by column name. With tensors in place of names, the
presets without blocks serve `weighted_supcon` as well:

    Objective(**presets.simclr(temperature=0.5))
    weighted_supcon(z, None, **presets.supcon_out(labels=y))

Default temperatures are those of the papers. An unknown keyword raises ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.affinity import (
    Column,
    GuidedNegatives,
    Hierarchy,
    LabelKernel,
    MultiLabel,
    SameLabel,
    SameSample,
    SideFeatures,
    TimeKernel,
)
from mmcon.losses.negative_weights import HardNegatives
from mmcon.losses.settings import reject_unknown_options

Preset = dict[str, Any]
Temperature = float | Tensor | nn.Module
Options = ParamSpec("Options")

PRESETS: dict[str, Callable[..., Preset]] = {}


def _preset(function: Callable[Options, Preset]) -> Callable[Options, Preset]:
    """Add a preset to `PRESETS`."""
    return PRESETS.setdefault(function.__name__, reject_unknown_options(function))


@_preset
def supcon_out(*, temperature: Temperature = 0.1, labels: Column = "label", as_published: bool = False) -> Preset:
    """SupCon, the sum over positives outside the logarithm: Khosla et al. 2020, eq. 2.

    `as_published` multiplies by the temperature and counts anchors without positives as 0, as the released code does.
    """
    published = {"scale": "temperature", "reduction": "all"} if as_published else {}
    return {"affinity": SameLabel(labels), "temperature": temperature, **published}


@_preset
def supcon_in(*, temperature: Temperature = 0.1, labels: Column = "label", as_published: bool = False) -> Preset:
    """SupCon with the sum inside the logarithm: Khosla et al. 2020, eq. 3; for the comparison with `supcon_out`."""
    return {**supcon_out(temperature=temperature, labels=labels, as_published=as_published), "form": "in"}


@_preset
def simclr(*, temperature: Temperature = 0.1, samples: Column = "sample") -> Preset:
    """SimCLR (NT-Xent): positives are the other views of the sample. Chen et al. 2020, eq. 1."""
    return {"affinity": SameSample(samples), "temperature": temperature}


@_preset
def drop_same_class(*, temperature: Temperature = 0.1, samples: Column = "sample", labels: Column = "label") -> Preset:
    """SimCLR, with rows of the same class removed from the negatives."""
    return {**simclr(temperature=temperature, samples=samples), "negative_weights": ~SameLabel(labels)}


@_preset
def gist(
    *,
    temperature: Temperature = 0.01,
    margin: float = 0.0,
    relative: bool = False,
    guide: Column = "side",
    samples: Column = "sample",
) -> Preset:
    """GIST: SimCLR, without negatives that a guide finds more similar to the anchor than its positive. Solatorio 2024.

    Both views are anchors. In the paper the first view is, and the denominator has the pairs of second views too.

    Args:
        temperature: .01 in the paper.
        margin: drop negatives from this far below the positive on; above 0 for features that all views share.
        relative: the margin is a fraction of the positive's similarity.
        guide: features of the guide, one row each (see `GuidedNegatives`).
        samples: ids, which views of a sample share.
    """
    weights = GuidedNegatives(guide, positives=SameSample(samples), margin=margin, relative=relative)
    return {**simclr(temperature=temperature, samples=samples), "negative_weights": weights}


@_preset
def sincere(*, temperature: Temperature = 0.1, labels: Column = "label") -> Preset:
    """SINCERE: the denominator of a positive has itself and the negatives. Feeney and Hughes 2023."""
    return {"affinity": SameLabel(labels), "temperature": temperature, "denominator": "one"}


@_preset
def dcl(*, temperature: Temperature = 0.1, samples: Column = "sample") -> Preset:
    """Decoupled contrastive learning: no positive in the denominator. Yeh et al. 2022."""
    return {"affinity": SameSample(samples), "temperature": temperature, "denominator": "negatives"}


@_preset
def clip(*, temperature: Temperature, first: str = "image", second: str = "text", samples: Column = "sample") -> Preset:
    """CLIP: rows of two modalities are positive if they are of one sample, in both directions. Radford et al. 2021."""
    blocks = [_block(first, second, weight=0.5), _block(second, first, weight=0.5)]
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": blocks}


@_preset
def clip_one_way(
    *, temperature: Temperature, anchors: str = "image", candidates: str = "text", samples: Column = "sample"
) -> Preset:
    """One direction of CLIP."""
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": [_block(anchors, candidates)]}


@_preset
def cmc(
    *, temperature: Temperature = 0.07, views: Sequence[str] = ("image:0", "image:1"), core: str | None = None
) -> Preset:
    """CMC: each pair of views is contrasted in both directions. Tian et al. 2020, eqs. 5 to 7.

    Args:
        temperature: .07 in the paper.
        views: modalities, or views of one, such as "image:0".
        core: only pairs with this view (core view in the paper); None: all pairs (full graph).
    """
    pairs = [(a, c) for a in views for c in views if a != c and core in (None, a, c)]
    return {"affinity": SameSample(), "temperature": temperature, "blocks": [_block(a, c) for a, c in pairs]}


@_preset
def multiple_negatives(
    *,
    temperature: Temperature = 0.05,
    anchors: str = "anchor",
    positives: str = "positive",
    hard_negatives: str | None = None,
    samples: Column = "sample",
) -> Preset:
    """Multiple negatives ranking, with mined hard negatives as further candidates. Henderson et al. 2017.

    Hard negatives need sample ids that no anchor has, or they would be positives.
    """
    candidates = positives if hard_negatives is None else (positives, hard_negatives)
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": [_block(anchors, candidates)]}


@_preset
def moco(*, temperature: Temperature = 0.07, samples: Column = "sample", queue: Any) -> Preset:
    """MoCo: the positive is another view of the sample, and all negatives are rows of a queue. He et al. 2020, eq. 1.

    Pass the embeddings of the momentum encoder as `candidates=` to the objective, and push them to the queue after the
    step. With more than two views, each positive has a softmax of its own.
    """
    settings = {"denominator": "one", "queue": queue, "negatives_from": "queue"}
    return {"affinity": SameSample(samples), "temperature": temperature, **settings}


@_preset
def multi_label(*, temperature: Temperature = 0.1, targets: Column = "labels", measure: str = "distribution") -> Preset:
    """GenSCL and multi-label: weights by the similarity of label distributions. Kim et al. 2022."""
    return {"affinity": MultiLabel(targets, measure=measure), "temperature": temperature}


@_preset
def y_aware(*, temperature: Temperature = 0.1, width: float | Float[Tensor, ""], labels: Column = "label") -> Preset:
    """y-Aware InfoNCE: a gaussian kernel of continuous labels. Dufumier et al. 2021, eq. 3.

    Rows of weights are normalized, as in the equation; the released code normalizes columns.
    """
    return {"affinity": LabelKernel(labels, width=width), "temperature": temperature}


@_preset
def x_clr(
    *, temperature: Temperature = 0.1, side_temperature: float | Float[Tensor, ""] = 0.1, features: Column = "side"
) -> Preset:
    """X-CLR: weights by a softmax of the similarity of captions. Sobal et al. 2024."""
    return {"affinity": SideFeatures(features, temperature=side_temperature), "temperature": temperature}


@_preset
def cwcl(
    *,
    temperature: Temperature,
    graded: str = "speech",
    other: str = "text",
    features: Column = "side",
    samples: Column = "sample",
) -> Preset:
    """CWCL: weights by a frozen encoder's similarity in one direction, CLIP in the other. Srinivasa et al. 2023."""
    forth = _block(graded, other, weight=0.5, affinity=SideFeatures(features, kernel="half"))
    back = _block(other, graded, weight=0.5)
    return {"affinity": SameSample(samples), "temperature": temperature, "blocks": [forth, back]}


@_preset
def soft_clt(
    *,
    temperature: Temperature = 1.0,
    width_seconds: float | Float[Tensor, ""],
    times: Column = "time",
    group: Column = "group",
) -> Preset:
    """SoftCLT: weights by a sigmoid of the time lag, not normalized. Lee et al. 2024, eq. 4."""
    affinity = TimeKernel(times, group=group, width_seconds=width_seconds, kernel="sigmoid")
    return {"affinity": affinity, "temperature": temperature, "row_normalize": False}


@_preset
def temporal(
    *,
    temperature: Temperature = 0.1,
    width_seconds: float | Float[Tensor, ""],
    times: Column = "time",
    group: Column = "group",
    kernel: str = "gaussian",
) -> Preset:
    """Graded video: weights by a kernel of the time lag within a recording."""
    affinity = TimeKernel(times, group=group, width_seconds=width_seconds, kernel=kernel)
    return {"affinity": affinity, "temperature": temperature}


@_preset
def hierarchical(*, temperature: Temperature = 0.1, table: Float[Tensor, "k k"], labels: Column = "label") -> Preset:
    """Classes in a tree: weights by the depth of the common ancestor (`Hierarchy.table` builds the table)."""
    return {"affinity": Hierarchy(labels, table=table), "temperature": temperature}


@_preset
def hard_negatives(
    *,
    temperature: Temperature = 0.5,
    concentration: float = 1.0,
    class_prior: float = 0.0,
    detach: bool = False,
    samples: Column = "sample",
) -> Preset:
    """Hard-negative weighting, debiased if `class_prior` is above 0. Robinson et al. 2021, eq. 4."""
    weighting = HardNegatives(concentration, class_prior, detach)
    return {**simclr(temperature=temperature, samples=samples), "denominator": "one", "negative_weights": weighting}


@_preset
def debiased(*, temperature: Temperature = 0.5, class_prior: float = 0.1, samples: Column = "sample") -> Preset:
    """Debiased contrastive loss: corrects for false negatives. Chuang et al. 2020, eq. 8."""
    return hard_negatives(temperature=temperature, concentration=0.0, class_prior=class_prior, samples=samples)


def _block(anchors: str, candidates: str | tuple[str, ...], **more: Any) -> dict[str, Any]:
    """The fields of a `Block`, as a dict: this package does not import the objective."""
    return {"anchors": anchors, "candidates": candidates, **more}
