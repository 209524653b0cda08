"""What a shared space is worth between modalities: retrieval both ways, alignment, the gap, and zero-shot classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.retrieval import Retrieval, alignment, modality_gap, retrieve_both_ways, uniformity
from mmcon.evaluation.statistics import Classification, classify


@final
class InSpace(nn.Module):
    """A model as seen in one space: embeddings by modality, for `extract`.

    >>> dump = extract(InSpace(model, "shared"), one_pass(test, views), modality="image")

    Args:
        model: gives embeddings by space and modality.
        space: which space.
    """

    def __init__(self, model: nn.Module, space: str = "shared") -> None:
        super().__init__()
        self.model, self.space = model, space

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Unit rows by modality."""
        embeddings = self.model(batch)
        if self.space not in embeddings:
            raise InputError("InSpace", expected=f"a space among {sorted(embeddings)}", got=repr(self.space))
        return embeddings[self.space]


@dataclass(frozen=True)
class Between:
    """Two modalities of the same samples in one space.

    Attributes:
        there: retrieval from the first to the second.
        back: from the second to the first.
        alignment: mean squared distance of rows of one sample (Wang and Isola 2020); 0 is perfect.
        gap: distance between the centres of the two modalities (Liang et al. 2022).
    """

    there: Retrieval
    back: Retrieval
    alignment: float
    gap: float

    def results(self) -> dict[str, Any]:
        """Fractions for results.json."""

        def of(found: Retrieval) -> dict[str, Any]:
            return {
                **{f"recall_at_{k}": value for k, value in found.recall.items()},
                "mean_average_precision": found.mean_average_precision,
                "chance_at_1": found.chance[min(found.chance)],
                "queries": len(found.first_rank) - found.without,
            }

        return {"there": of(self.there), "back": of(self.back), "alignment": self.alignment, "gap": self.gap}


def between(first: Features, second: Features, *, ks: Sequence[int] = (1, 5, 10)) -> Between:
    """Compare two modalities over the samples that have both; each may have one row a sample.

    Raises:
        InputError: no sample has both, or a sample has several rows.
    """
    samples = first.index["sample"], second.index["sample"]
    if any(len(own.unique()) < len(own) for own in samples):
        raise InputError("between", expected="one row a sample", got="several", fix="evaluate one view of each")
    here, there = ((own[:, None] == other).any(1) for own, other in (samples, samples[::-1]))
    if not bool(here.any()):
        raise InputError("between", expected="samples that have both modalities", got="none")
    first, second = first.take(here), second.take(there)
    second = second.take((first.index["sample"][:, None] == second.index["sample"]).int().argmax(1))
    ways = retrieve_both_ways(first, second, ks=ks)
    return Between(
        *ways,
        alignment=alignment(first.values, second.values),
        gap=modality_gap(first.values, second.values),
    )


def every_pair(dumps: Mapping[str, Features], *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Between]:
    """`between` for every pair of modalities, by "first-second"."""
    return {f"{a}-{b}": between(dumps[a], dumps[b], ks=ks) for a, b in combinations(dumps, 2)}


def evenness(dumps: Mapping[str, Features]) -> dict[str, float]:
    """Uniformity of each modality's rows on the sphere (Wang and Isola 2020); low is even."""
    return {name: uniformity(dump.values) for name, dump in dumps.items()}


def zero_shot(rows: Features, prompts: Features) -> Classification:
    """Classify rows by the prompts of classes, as CLIP does: a class is the mean of its prompts' unit embeddings.

    Radford et al. 2021, section 3.1.4 (prompt ensembles): the mean is taken in the space, not of scores.

    Args:
        rows: embeddings with a column `label`.
        prompts: embeddings in the same space, with the class of each prompt as its `label`; one a class or many.

    Returns:
        Top-1 and top-5 against the rows' labels.

    Raises:
        InputError: a class of the rows has no prompt, or widths differ.
    """
    classes = prompts.labels.unique()
    missing = set(rows.labels.tolist()) - set(classes.tolist())
    if missing:
        raise InputError("zero_shot", expected="a prompt for every class", got=f"none for classes {sorted(missing)}")
    if rows.values.shape[1] != prompts.values.shape[1]:
        got = f"widths {rows.values.shape[1]} and {prompts.values.shape[1]}"
        raise InputError("zero_shot", expected="rows and prompts in one space", got=got)
    unit = prompts.unit()
    centres = torch.stack([unit[prompts.labels == c].mean(0) for c in classes.tolist()])
    scores = rows.unit() @ torch.nn.functional.normalize(centres, dim=1).T
    return classify(scores, rows.labels, classes)


def prompt_texts(classes: Mapping[int, Sequence[str]], templates: Sequence[str]) -> tuple[list[str], Tensor]:
    """Every name of every class in every template, and the class of each text.

    >>> prompt_texts({0: ["cat"], 1: ["dog"]}, ["{}", "a picture of a {}"])[0]
    ['cat', 'a picture of a cat', 'dog', 'a picture of a dog']
    """
    made = [(t.format(name), label) for label, names in classes.items() for name in names for t in templates]
    return [text for text, _ in made], torch.tensor([label for _, label in made])


def table(found: Mapping[str, Between], *, met: Sequence[str] | None = None) -> str:
    """The figures for a person to read; pairs that did not meet in training are marked."""
    lines, width = [], max(map(len, found), default=0)
    for name, of in found.items():
        ways = [
            " ".join(f"{value:.3f}" for value in way.recall.values()) + f"  mAP {way.mean_average_precision:.3f}"
            for way in (of.there, of.back)
        ]
        chance = of.there.chance[min(of.there.chance)]
        apart = "" if met is None or name in met else "  (never met in training)"
        lines.append(
            f"  {name:<{width}}  there {ways[0]}   back {ways[1]}   chance {chance:.3f}   "
            f"alignment {of.alignment:.3f}   gap {of.gap:.3f}{apart}"
        )
    ks = " ".join(f"@{k}" for k in next(iter(found.values())).there.recall) if found else ""
    return "\n".join([f"recall {ks} over samples that have both", *lines])


__all__ = ["Between", "InSpace", "between", "evenness", "every_pair", "prompt_texts", "table", "zero_shot"]
