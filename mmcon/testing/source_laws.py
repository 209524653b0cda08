"""The laws of sources: `check_source`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcon.sources.base import Source
from mmcon.testing.laws import LawBroken, bitwise_equal, unchanged_global_randomness


def check_source(make: Callable[..., Source], *, splits: Sequence[str] = ("train", "test")) -> None:
    """Check a source against its laws.

    Args:
        make: builds the source of a split, `make(split="train")`.
        splits: the splits to check; one name for data without splits.

    Raises:
        LawBroken: a law does not hold.
    """
    made = {split: make(split=split) for split in splits}
    for split, source in made.items():
        _is_the_same_again(source, make(split=split))
        for member in source.members.values():
            _opens_as_a_function(member)
        _pickles(source)
    _splits_are_disjoint(made)


def _is_the_same_again(source: Source, again: Source) -> None:
    """A second source of the same data has the same samples in the same order: draws and resumed runs need it."""
    for name, own, other in (
        ("ids", source.ids, again.ids),
        ("columns", source.columns, again.columns),
        ("classes", source.classes, again.classes),
    ):
        if not bitwise_equal(own, other):
            raise LawBroken(source.name, "samples are stable", f"a second source of the same data has other {name}")


def _opens_as_a_function(source: Source) -> None:
    """A sample is the same each time, alone and among others, and opening changes no global random state."""
    every = torch.arange(len(source))
    there = source.present(every)
    rows = every if there is None else every[there]
    rows = rows[[0, len(rows) // 2, len(rows) - 1]].unique()
    with unchanged_global_randomness(source.name, "open"):
        together = [_content(sample) for sample in source.open(rows)]
    if len(together) != len(rows):
        raise LawBroken(source.name, "one sample for each row", f"{len(together)} samples for {len(rows)} rows")
    alone = [_content(source.open([row])[0]) for row in reversed(rows.tolist())]
    if not bitwise_equal(together, alone[::-1]):
        raise LawBroken(
            source.name, "open is a function", f"rows {rows.tolist()} have another content when opened alone"
        )
    _facts_are_true(source, rows.tolist())


def _facts_are_true(source: Source, rows: list[int]) -> None:
    """Header facts that the source lists are those of the opened samples, since draws are made from them."""
    for row in rows:
        found = getattr(source.open([row])[0], "facts", {})
        for name, column in source.facts.items():
            if name in found and float(column[row]) != float(found[name]):
                observed = f"{name} of row {row}: {float(column[row])} in the list, {float(found[name])} in the sample"
                raise LawBroken(source.name, "facts are true", observed)


def _content(sample: Any) -> Any:
    """What views receive of a sample: tensors and texts."""
    content = sample.decode() if hasattr(sample, "decode") else sample
    return content if isinstance(content, Tensor | Mapping | Sequence) else repr(content)


def _pickles(source: Source) -> None:
    try:
        copied = pickle.loads(pickle.dumps(source))
    except Exception as error:
        raise LawBroken(source.name, "pickles for workers", f"it does not pickle: {error!r}") from error
    if not bitwise_equal(copied.ids, source.ids):
        raise LawBroken(source.name, "pickles for workers", "a copy has other ids")


def _splits_are_disjoint(made: dict[str, Source]) -> None:
    """No sample is in two splits, and a class that is in several has one number."""
    first, *others = made.items()
    for split, source in others:
        shared = set(first[1].ids.tolist()) & set(source.ids.tolist())
        if shared:
            observed = f"{len(shared)} samples are in {first[0]!r} and {split!r}, such as id {min(shared)}"
            raise LawBroken(source.name, "splits are disjoint", observed)
        numbers = {name: number for number, name in enumerate(first[1].classes)}
        other = [n for n, name in enumerate(source.classes) if numbers.get(name, n) != n]
        if other:
            name = source.classes[other[0]]
            observed = f"class {name!r} is {numbers[name]} in {first[0]!r} and {other[0]} in {split!r}"
            raise LawBroken(source.name, "splits number the classes alike", observed)
