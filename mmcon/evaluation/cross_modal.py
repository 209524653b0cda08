"""Metrics between modalities of a shared space: retrieval, alignment, modality gap, and zero-shot classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import InputError
from mmcon.evaluation.embedding_geometry import alignment, modality_gap, uniformity
from mmcon.evaluation.features import Features
from mmcon.evaluation.retrieval import RetrievalMetrics, retrieve_both_directions
from mmcon.evaluation.statistics import Classification, classify


@final
class SpaceEmbeddings(nn.Module):
    """The embeddings of a model in one space, by modality: an encoder for `extract_features`.

    >>> embeddings = extract_features(SpaceEmbeddings(model, "shared"), one_pass(test, views), modality="image")

    Args:
        model: returns embeddings by space and modality.
        space: name of the space.
    """

    def __init__(self, model: nn.Module, space: str = "shared") -> None:
        super().__init__()
        self.model, self.space = model, space

    def forward(self, batch: ViewBatch) -> dict[str, Float[Tensor, "_ d"]]:
        """Unit rows by modality."""
        embeddings = self.model(batch)
        if self.space not in embeddings:
            raise InputError("SpaceEmbeddings", expected=f"a space among {sorted(embeddings)}", got=repr(self.space))
        return embeddings[self.space]


@dataclass(frozen=True)
class CrossModalMetrics:
    """Metrics between two modalities of the same samples in one space.

    Attributes:
        first_to_second: retrieval with queries of the first modality and candidates of the second.
        second_to_first: retrieval in the other direction.
        alignment: mean squared distance between the two rows of a sample (Wang and Isola 2020); 0 is perfect.
        gap: distance between the centroids of the two modalities (Liang et al. 2022).
    """

    first_to_second: RetrievalMetrics
    second_to_first: RetrievalMetrics
    alignment: float
    gap: float

    def results(self) -> dict[str, Any]:
        """The metrics as fractions for results.json."""

        def fractions(metrics: RetrievalMetrics) -> dict[str, Any]:
            return {
                **{f"recall_at_{k}": value for k, value in metrics.recall.items()},
                "mean_average_precision": metrics.mean_average_precision,
                "chance_at_1": metrics.chance[min(metrics.chance)],
                "queries": len(metrics.first_rank) - metrics.queries_without_relevant,
            }

        return {
            "first_to_second": fractions(self.first_to_second),
            "second_to_first": fractions(self.second_to_first),
            "alignment": self.alignment,
            "gap": self.gap,
        }


def cross_modal_metrics(first: Features, second: Features, *, ks: Sequence[int] = (1, 5, 10)) -> CrossModalMetrics:
    """Compare two modalities over the samples that have both; each modality has at most one row a sample.

    Raises:
        InputError: no sample has both modalities, or a sample has several rows of one.
    """
    samples = first.index["sample"], second.index["sample"]
    if any(len(own.unique()) < len(own) for own in samples):
        raise InputError(
            "cross_modal_metrics", expected="one row a sample", got="several", fix="evaluate one view each"
        )
    in_both = [(own[:, None] == other).any(1) for own, other in (samples, samples[::-1])]
    if not bool(in_both[0].any()):
        raise InputError("cross_modal_metrics", expected="samples that have both modalities", got="none")
    first, second = first.take(in_both[0]), second.take(in_both[1])
    second = second.take((first.index["sample"][:, None] == second.index["sample"]).int().argmax(1))
    return CrossModalMetrics(
        *retrieve_both_directions(first, second, ks=ks),
        alignment=alignment(first.values, second.values),
        gap=modality_gap(first.values, second.values),
    )


def metrics_by_modality_pair(
    features: Mapping[str, Features], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, CrossModalMetrics]:
    """`cross_modal_metrics` of every pair of modalities, by "first-second"."""
    return {f"{a}-{b}": cross_modal_metrics(features[a], features[b], ks=ks) for a, b in combinations(features, 2)}


def uniformity_by_modality(features: Mapping[str, Features]) -> dict[str, float]:
    """Uniformity of the rows of each modality on the unit sphere (Wang and Isola 2020); lower is more uniform."""
    return {modality: uniformity(rows.values) for modality, rows in features.items()}


def zero_shot_classification(rows: Features, prompts: Features) -> Classification:
    """Classify rows by the prompts of classes, as CLIP does: a class is the mean of its prompts' unit embeddings.

    The mean is over embeddings, not over scores (prompt ensembling, Radford et al. 2021, section 3.1.4).

    Args:
        rows: embeddings with a column `label`.
        prompts: embeddings in the same space; the `label` of a prompt is its class. Every class has at least one.

    Returns:
        Top-1 and top-5 against the labels of the rows.

    Raises:
        InputError: a class of the rows has no prompt, or the widths differ.
    """
    classes = prompts.labels.unique()
    missing = set(rows.labels.tolist()) - set(classes.tolist())
    if missing:
        got = f"none for classes {sorted(missing)}"
        raise InputError("zero_shot_classification", expected="a prompt for every class", got=got)
    if rows.values.shape[1] != prompts.values.shape[1]:
        got = f"widths {rows.values.shape[1]} and {prompts.values.shape[1]}"
        raise InputError("zero_shot_classification", expected="rows and prompts in one space", got=got)
    normalized = prompts.normalized()
    prototypes = torch.stack([normalized[prompts.labels == label].mean(0) for label in classes.tolist()])
    scores = rows.normalized() @ torch.nn.functional.normalize(prototypes, dim=1).T
    return classify(scores, rows.labels, classes)


def prompt_texts(
    classes: Mapping[int, Sequence[str]], templates: Sequence[str]
) -> tuple[list[str], Int[Tensor, " texts"]]:
    """Every name of every class in every template, and the class of each text.

    >>> prompt_texts({0: ["cat"], 1: ["dog"]}, ["{}", "a picture of a {}"])[0]
    ['cat', 'a picture of a cat', 'dog', 'a picture of a dog']
    """
    texts = [(t.replace("{}", name), label) for label, names in classes.items() for name in names for t in templates]
    return [text for text, _ in texts], torch.tensor([label for _, label in texts])


def cross_modal_table(metrics: Mapping[str, CrossModalMetrics], *, trained_pairs: Sequence[str] | None = None) -> str:
    """The metrics as plain text, one line per pair; pairs outside `trained_pairs` are marked."""
    lines, width = [], max(map(len, metrics), default=0)
    for name, pair in metrics.items():
        directions = [
            " ".join(f"{value:.3f}" for value in found.recall.values()) + f"  mAP {found.mean_average_precision:.3f}"
            for found in (pair.first_to_second, pair.second_to_first)
        ]
        chance = pair.first_to_second.chance[min(pair.first_to_second.chance)]
        unpaired = "" if trained_pairs is None or name in trained_pairs else "  (not paired in training)"
        lines.append(
            f"  {name:<{width}}  forward {directions[0]}   backward {directions[1]}   chance {chance:.3f}   "
            f"alignment {pair.alignment:.3f}   gap {pair.gap:.3f}{unpaired}"
        )
    ks = " ".join(f"@{k}" for k in next(iter(metrics.values())).first_to_second.recall) if metrics else ""
    return "\n".join([f"recall {ks} over samples that have both", *lines])
