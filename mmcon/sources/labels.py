"""Labels as integers from 0, by the same rule for folders, tables, archives and hubs.

Integers are unchanged, so that the training and the test table have equal labels. Texts are numbered in the order of
`classes`, by default sorted. Fractional or missing labels, and texts that are nearly all different, raise DataError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmcon.errors import DataError

QUANTITY = "a quantity (an age, a rating) goes into `columns`, where an affinity grades it"


def encode_labels(
    where: str, values: Sequence[Any], classes: Sequence[str] | None = None
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Encode labels as integers, and return the class names too; () for integers without names.

    Args:
        where: the source, for messages.
        values: the label of each sample: integers or texts.
        classes: the names of the classes in order.

    Raises:
        DataError: labels are missing, are fractions or of mixed types, are not among `classes`, or nearly all differ.
    """
    # Only NaN, as tables have for an empty number, differs from itself.
    missing = sum(value is None or value != value or value == "" for value in values)
    if missing:
        fix = "label these samples, leave them out, or pass label_column='none'"
        raise DataError(where, expected="a label for every sample", got=f"{missing:,} samples without one", fix=fix)
    kinds = {type(value).__name__ for value in values}
    if all(isinstance(value, int) for value in values):
        return torch.tensor([int(value) for value in values], dtype=torch.int64), tuple(classes or ())
    fractions = all(isinstance(value, float | str) and re.fullmatch(r"-?\d+\.\d+", str(value)) for value in values)
    if fractions or not all(isinstance(value, str) for value in values):
        odd = next((value for value in values if not isinstance(value, int | str)), values[0])
        got = f"types {sorted(kinds)}, such as {odd!r}"
        fix = f"write all labels in one type; {QUANTITY}"
        raise DataError(where, expected="labels as whole numbers or as text, all of one type", got=got, fix=fix)
    if not classes and len(set(values)) > max(20, len(values) // 2):
        raise DataError(
            where,
            expected="labels that samples share",
            got=f"{len(set(values)):,} different texts in {len(values):,} samples, such as {values[0]!r}",
            fix="name the column of classes with label_column, or label_column='none'",
        )
    return number_texts(where, values, classes)


def number_texts(
    where: str, values: Sequence[str], names: Sequence[str] | None = None
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Encode texts as integers, and return the different texts by number, sorted unless an order is given."""
    known = tuple(names) if names else tuple(sorted(set(values)))
    number = {name: i for i, name in enumerate(known)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        fix = "give classes= with all names"
        raise DataError(where, expected=f"labels among {list(known)[:8]}", got=f"{unknown[:5]}", fix=fix)
    return torch.tensor([number[value] for value in values], dtype=torch.int64), known


def whole_numbers(cells: Sequence[Any]) -> list[Any]:
    """Convert texts to integers if all are written as integers; "007" and "12" stay text, since 007 is no integer."""
    whole = all(cell is None or re.fullmatch(r"-?(0|[1-9]\d{0,17})", str(cell)) for cell in cells)
    return [cell if cell is None else int(cell) for cell in cells] if whole else list(cells)


def check_labels(where: str, labels: Shaped[Tensor, "..."]) -> Int[Tensor, " n"]:
    """Convert a tensor of labels to int64; raise DataError unless there is one integer >= 0 per sample."""
    if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1 or bool((labels < 0).any()):
        lowest = f", lowest {labels.min().item():g}" if labels.numel() and not labels.is_complex() else ""
        raise DataError(
            where,
            expected="labels as whole numbers from 0, one a sample",
            got=f"{labels.dtype} of shape {tuple(labels.shape)}{lowest}",
            fix=f"map them to 0, 1, …; {QUANTITY}",
        )
    return labels.to(torch.int64)
