"""View spread: distances between views of a sample, compared with distances within and between classes.

Good views of a sample share its content and little else. For mean squared distances between unit features, this means

    within a sample  <  within a class  <  between classes,

with views as far apart as the first inequality allows. The InfoNCE bound (van den Oord et al. 2018) is a lower bound on
the information that two views share about the identity of their sample: log n − loss, at most log n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.encoders import create_encoder
from mmcon.random import keys
from mmcon.registry import create, lookup, supported_options
from mmcon.sources.base import channels_of
from mmcon.sources.factory import create_source
from mmcon.views import ViewGenerator, collate

ViewEncoder = Callable[[Float[Tensor, "_b _c _h _w"]], Float[Tensor, "_b _d"]]


@dataclass(frozen=True)
class ViewSpread:
    """The results of `measure_spread` and `score_view`; distances are mean squared, between unit features (0 to 4).

    Attributes:
        within_sample: distance between two views of one sample.
        within_class: distance between views of two samples of a class; None without labels.
        between_classes: distance between views of two samples of different classes (without labels: of two samples).
        infonce_bound_nats: the InfoNCE bound between the two views, in nats.
        max_bound_nats: log n, the maximum of the bound for n samples.
        recognition_rate: the fraction of views whose nearest neighbor in the other view is of the same sample.
    """

    within_sample: float
    within_class: float | None
    between_classes: float
    infonce_bound_nats: float
    max_bound_nats: float
    recognition_rate: float

    def table(self) -> str:
        """The results as a Markdown table."""
        return spread_table({"": self})


def spread_table(spreads: Mapping[str, ViewSpread]) -> str:
    """The results of several generators as a Markdown table, a column each."""

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = {
        "distance of two views of a sample": [shown(s.within_sample) for s in spreads.values()],
        "of two samples of a class": [shown(s.within_class) for s in spreads.values()],
        "of two classes": [shown(s.between_classes) for s in spreads.values()],
        "InfoNCE bound": [
            f"{s.infonce_bound_nats:.2f} of at most {s.max_bound_nats:.2f} nats" for s in spreads.values()
        ],
        "views recognized": [shown(s.recognition_rate) for s in spreads.values()],
    }
    head = f"| | {' | '.join(spreads)} |"
    return "\n".join(
        [head, "|---" * (len(spreads) + 1) + "|", *(f"| {n} | {' | '.join(v)} |" for n, v in rows.items())]
    )


def measure_spread(
    features: Float[Tensor, "n v d"], labels: Int[Tensor, " n"] | None = None, *, temperature: float = 0.1
) -> ViewSpread:
    """Measure the spread of views in features.

    Args:
        features: of any encoder; they are normalized here. The first two views are compared.
        labels: classes of the samples.
        temperature: of the InfoNCE bound; the bound holds at every temperature, and its tightness varies.
    """
    n, v, _ = features.shape
    if n < 2 or v < 2:
        raise InputError("measure_spread", expected="at least two samples in two views", got=f"{n} samples, {v} views")
    unit = F.normalize(features.to(torch.float64), dim=-1)
    first, second = unit[:, 0], unit[:, 1]
    distances = (2 - 2 * first @ second.T).clamp_min(0)  # rounding may give less
    own = torch.eye(n, dtype=torch.bool, device=features.device)
    same_class = own if labels is None else labels[:, None] == labels[None]
    within_class = distances[same_class & ~own]
    logits = first @ second.T / temperature
    target = torch.arange(n, device=features.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    between = distances[~same_class]
    return ViewSpread(
        within_sample=float(distances.diagonal().mean()),
        within_class=float(within_class.mean()) if labels is not None and len(within_class) else None,
        between_classes=float(between.mean()) if len(between) else math.nan,
        infonce_bound_nats=math.log(n) - float(loss),
        max_bound_nats=math.log(n),
        recognition_rate=float((distances.argmin(1) == target).double().mean()),
    )


@torch.no_grad()
def score_view(
    view: ViewGenerator,
    samples: Any,
    *,
    ids: Int[Tensor, " b"],
    labels: Int[Tensor, " b"] | None = None,
    encoder: ViewEncoder | None = None,
    seed: int = 0,
    temperature: float = 0.1,
) -> ViewSpread:
    """Measure the spread of the views of a generator.

    >>> print(score_view(create_view("image/simclr", size=28), images, ids=ids, labels=labels, encoder=model).table())

    Args:
        view: the generator or chain.
        samples: the input of the generator.
        ids: stable ids of the samples.
        labels: classes of the samples.
        encoder: from views to features `b d`; by default the views themselves, flattened and centered.
        seed: of the draws.
        temperature: of the InfoNCE bound.
    """
    views = [collate(view(samples, keys(seed=seed, sample=ids, view=number))) for number in (0, 1)]
    if encoder is not None:
        features = torch.stack([encoder(one) for one in views], dim=1)
    else:
        flat = torch.stack([one.flatten(1) for one in views], dim=1)
        features = flat - flat.mean((0, 1))
    return measure_spread(features, labels, temperature=temperature)


def score_registered_views(
    names: Sequence[str],
    data: str,
    *,
    encoder: str | None = None,
    samples: int = 256,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> dict[str, ViewSpread]:
    """Measure the spread of registered image view generators on the same samples of a source.

    Args:
        names: of the generators.
        data: a source by name, such as "samples/fashion" or a folder.
        encoder: a folder that `ContrastiveModel.save_pretrained` wrote, or the name of an encoder with published
            weights; by default the pixels are the features.
        samples: number of samples of the training set, chosen by their keys.
        seed: of the choice and of the draws.
        options: of the generators; each takes those that it supports. `size` is 28 for bundled images, else 224.

    Raises:
        InputError: a generator is not for images, `samples` is below 2, or no generator supports an option.
    """
    other = [name for name in names if lookup("view", name).modality != "image"]
    if other or samples < 2:
        got = f"{', '.join(other) or 'images'}, {samples} samples"
        raise InputError("mmcon views score", expected="views of images, and two samples or more", got=got)
    source = create_source(data, split="train")
    rows = keys(seed=seed, sample=source.ids).uniform("score").argsort()[:samples]
    chosen = source.open(rows)
    labels = source.labels[rows] if source.labels is not None else None
    given = {"size": 28 if data.startswith("samples/") else 224, **(options or {})}
    supported = {name: supported_options("view", name, given) for name in names}
    unused = set(options or ()) - {option for options_of in supported.values() for option in options_of}
    if unused:
        raise InputError("mmcon views score", expected="options of the views", got=f"{sorted(unused)}, which none has")
    encode = _encoder(encoder, given["size"], channels_of(source)) if encoder else None
    return {
        name: score_view(
            create("view", name, **supported[name]),
            chosen,
            ids=source.ids[rows],
            labels=labels,
            encoder=encode,
            seed=seed,
        )
        for name in names
    }


def _encoder(name: str, size: int, channels: int) -> ViewEncoder:
    """A saved model, or an encoder by name, as a function from views to features."""
    if (Path(name) / "model.safetensors").is_file():
        model = ContrastiveModel.from_pretrained(name)
        return lambda views: model.features(views, "image")
    encoder = create_encoder(name, pretrained=True, image_size=size, in_channels=channels).eval()
    return lambda views: encoder(views)


def plot_spread(spreads: dict[str, ViewSpread]) -> Any:
    """A matplotlib figure: the distances of each generator, a line each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.5 * len(spreads)), layout="constrained")
    axes = figure.subplots()
    for row, spread in enumerate(spreads.values()):
        marks = {
            "a sample's views": (spread.within_sample, "C0", "o"),
            "a class's samples": (spread.within_class, "C1", "s"),
            "classes": (spread.between_classes, "C2", "D"),
        }
        for label, (value, color, marker) in marks.items():
            if value is not None:
                axes.plot(value, row, marker, color=color, label=label if row == 0 else None)
        axes.annotate(
            f"{spread.infonce_bound_nats:.1f} nats", (1.01, row), xycoords=("axes fraction", "data"), va="center"
        )
        axes.axhline(row, color="0.9", zorder=0)
    axes.set_yticks(range(len(spreads)), list(spreads))
    axes.set_xlabel("mean squared distance of unit features")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
