"""Classes and probabilities of inputs, and zero-shot classification by the texts of the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.evaluation.cross_modal import prompt_texts
from mmcon.evaluation.features import Features
from mmcon.sources.base import Source


@dataclass(frozen=True)
class Predictions:
    """The probabilities of classes for inputs, those that cannot be read left out.

    Attributes:
        classes: the names of the classes.
        probabilities: of each class; rows sum to 1.
        ids: the ids of the samples: of inputs that are no source, their positions.
        names: the paths, or the names, of the inputs.
    """

    classes: tuple[str, ...]
    probabilities: Float[Tensor, "n k"]
    ids: Int[Tensor, " n"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each input."""
        return [self.classes[label] for label in self.probabilities.argmax(1).tolist()]

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """The k likeliest classes of each input with their probabilities, the likeliest first."""
        if k < 1:
            raise InputError("Predictions.top", expected="k >= 1", got=str(k))
        found = self.probabilities.topk(min(k, len(self.classes)), dim=1)
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [[(self.classes[i], p) for i, p in zip(*row, strict=True)] for row in pairs]

    def to_json(self) -> list[dict[str, Any]]:
        """A record for each input: its name, its class, and the probabilities by class."""
        rows = zip(self.names, self.labels, self.probabilities.tolist(), strict=True)
        return [
            {"name": name, "class": label, "probabilities": dict(zip(self.classes, row, strict=True))}
            for name, label, row in rows
        ]

    @staticmethod
    def of(
        source: Source, features: Features, classes: tuple[str, ...], probabilities: Float[Tensor, "n k"]
    ) -> Predictions:
        """The predictions of the rows of a source."""
        ids = features.index["sample"]
        rows = {sample: row for row, sample in enumerate(source.ids.tolist())}
        names = tuple(source.name_of(rows[sample]) for sample in ids.tolist())
        return Predictions(classes, probabilities, ids, names)


def zero_shot_probabilities(
    rows: Float[Tensor, "n d"],
    classes: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    embed: Callable[[list[str]], Float[Tensor, "_ _d"]],
    temperature: float,
) -> Float[Tensor, "n k"]:
    """Probabilities by the cosine of a row with the prototype of each class, the mean of its prompts' unit embeddings.

    Args:
        rows: unit embeddings.
        classes: by class, the names that stand for it.
        templates: texts with {} for a name.
        embed: from texts to unit embeddings in the same space.
        temperature: divides the cosines.

    Raises:
        InputError: there are fewer than two classes, a template has no place for the name, or the temperature is not
            above 0.
    """
    odd = [template for template in templates if "{}" not in template]
    if len(classes) < 2 or not templates or odd or temperature <= 0 or not all(classes.values()):
        got = f"{len(classes)} classes, templates {list(templates)}, temperature {temperature}"
        expected = "two classes or more with a name each, templates with {}, and a temperature above 0"
        raise InputError("classify", expected=expected, got=got)
    texts, labels = prompt_texts(dict(enumerate(classes.values())), templates)
    embedded = embed(texts)
    prototypes = torch.stack([embedded[labels == label].mean(0) for label in range(len(classes))])
    return torch.softmax(rows @ nn.functional.normalize(prototypes, dim=1).T / temperature, dim=1)
