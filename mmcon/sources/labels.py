"""Labels as integers from 0, by the same rule for folders, tables, archives and hubs.

The type of a label is decided by its column: integers if all cells are, else texts. Integers are unchanged, so that the
training and the test table have equal labels, except where few of them are in use, as of ids: these are numbered, and
the classes are named by them. Texts are numbered in the order of `classes`, by default sorted. Fractional or missing
labels, and texts that are nearly all different, raise DataError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.batch import Numbers, as_column
from mmcon.errors import DataError

# Cells that spreadsheets, pandas and databases write for a missing value. (NA and none may be names of classes.)
MISSING = frozenset({"", "nan", "NaN", "NAN", "null", "NULL", "<NA>", "#N/A"})
# Labels up to this number are never renumbered; above it, if fewer than a tenth of the numbers are in use.
SPARSE = 10_000
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
QUANTITY = "a quantity (an age, a rating) goes into `columns`, where an affinity grades it"


def encode_labels(
    where: str,
    values: Sequence[Any],
    classes: Sequence[str] | None = None,
    *,
    place: Callable[[int], str] = lambda row: f"row {row + 1}",
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Encode labels as integers from 0, and return the names of the classes too.

    Args:
        where: the source, for messages.
        values: the label of each sample: integers or texts. Spaces around a text do not count.
        classes: the names of the classes in order.
        place: a function from the index of a sample to its place in the source, for messages.

    Raises:
        DataError: labels are missing, are fractions or of mixed types, are not among `classes`, or nearly all differ.
    """
    cells = [value.strip() if isinstance(value, str) else value for value in values]
    absent = [i for i, cell in enumerate(cells) if is_missing(cell)]
    if absent:
        got = f"{len(absent):,} samples without one, the first in {place(absent[0])}"
        fix = "label these samples, leave them out, or pass label_column='none'"
        raise DataError(where, expected="a label for every sample", got=got, fix=fix)
    if all(isinstance(cell, int) for cell in cells):
        return _encode_integers(where, [int(cell) for cell in cells], classes)
    fractions = all(isinstance(cell, float | str) and re.fullmatch(r"-?\d+\.\d+", str(cell)) for cell in cells)
    if fractions or not all(isinstance(cell, str) for cell in cells):
        odd = next((cell for cell in cells if not isinstance(cell, int | str)), cells[0])
        got = f"types {sorted({type(cell).__name__ for cell in cells})}, such as {odd!r}"
        fix = f"write all labels in one type; {QUANTITY}"
        raise DataError(where, expected="labels as whole numbers or as text, all of one type", got=got, fix=fix)
    if not classes and len(set(cells)) > max(20, len(cells) // 2):
        raise DataError(
            where,
            expected="labels that samples share",
            got=f"{len(set(cells)):,} different texts in {len(cells):,} samples, such as {cells[0]!r}",
            fix="name the column of classes with label_column, or label_column='none'",
        )
    return number_texts(where, cells, classes)


def _encode_integers(
    where: str, values: list[int], classes: Sequence[str] | None
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Integers are labels, or names of classes: those in `classes`, or ids with more digits than a tensor holds."""
    large = max(map(abs, values), default=0) >= 1 << 63
    if large or (classes and max(values) >= len(classes) and {*map(str, values)} <= {*classes}):
        return number_texts(where, [*map(str, values)], classes)
    labels = check_labels(where, torch.tensor(values))
    return (labels, tuple(classes)) if classes else number_integers(labels)


def number_integers(labels: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Labels and the names of the classes 0, 1, ... up to the highest; ids are renumbered, and name their classes."""
    highest = int(labels.max()) if len(labels) else -1
    if highest >= SPARSE:
        different, numbers = labels.unique(return_inverse=True)
        if highest >= 10 * len(different):
            return numbers, tuple(map(str, different.tolist()))
    return labels, tuple(map(str, range(highest + 1)))


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


def is_missing(cell: Any) -> bool:
    """Whether a cell has no value: it is empty, NaN, or a spelling of these."""
    # Only NaN, as tables have for an empty number, differs from itself.
    return cell is None or cell != cell or (isinstance(cell, str) and cell in MISSING)


def whole_numbers(cells: Sequence[Any]) -> list[Any]:
    """Convert texts to integers if all are written as integers; "007" and "12" stay text, since 007 is no integer."""
    whole = all(cell is None or _INTEGER.fullmatch(str(cell)) for cell in cells)
    return [cell if cell is None else int(cell) for cell in cells] if whole else list(cells)


def check_labels(where: str, labels: Numbers) -> Int[Tensor, " n"]:
    """Convert labels to an int64 tensor; raise an error unless there is one integer >= 0 per sample."""
    labels = as_column(f"{where}, labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1 or bool((labels < 0).any()):
        lowest = f", lowest {labels.min().item():g}" if labels.numel() and not labels.is_complex() else ""
        raise DataError(
            where,
            expected="labels as whole numbers from 0, one a sample",
            got=f"{labels.dtype} of shape {tuple(labels.shape)}{lowest}",
            fix=f"map them to 0, 1, …; {QUANTITY}",
        )
    return labels.to(torch.int64)
