"""Encode stacked views: group stacks of one shape into one forward pass, and split stacks by view.

A stack is a tensor with leading axis `n`, or a nested dict of such tensors (`mmcon.batch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch, count_rows
from mmcon.errors import InputError


def encode_stacks(encoder: nn.Module, stacks: tuple[Any, ...]) -> Float[Tensor, "n f"]:
    """Features of stacks in order.

    Adjacent stacks of one shape are encoded in one forward pass, which is faster and gives batch norm all their rows.

    Raises:
        InputError: the encoder does not return one feature of width `feature_dim` for each row.
    """
    # Adjacent stacks only, so that the features keep the order of the rows.
    groups: list[list[Any]] = []
    for stack in stacks:
        if groups and _signature(groups[-1][0]) == _signature(stack):
            groups[-1].append(stack)
        else:
            groups.append([stack])
    features = [encoder(_concatenate(group)) for group in groups]
    for group, block in zip(groups, features, strict=True):
        expected = sum(map(count_rows, group)), feature_width(encoder)
        if block.shape != expected:
            raise InputError(
                type(encoder).__name__,
                expected=f"features of shape {expected}",
                got=str(tuple(block.shape)),
                fix="pool to one vector a row, and let `feature_dim` be its width",
            )
    return features[0] if len(features) == 1 else torch.cat(features)


def split_by_view(batch: ViewBatch, modality: str) -> Iterator[tuple[int, Any]]:
    """The stacks of a modality, split where the view number changes, each with its view number."""
    start = 0
    for stack in batch.views[modality]:
        n = count_rows(stack)
        views, counts = torch.unique_consecutive(batch.index[modality]["view"][start : start + n], return_counts=True)
        start += n
        yield from zip(views.tolist(), _split(stack, counts.tolist()), strict=True)


def feature_width(encoder: nn.Module) -> int:
    """The encoder's `feature_dim`."""
    width = encoder.feature_dim
    assert isinstance(width, int)
    return width


def _signature(stack: Any) -> Any:
    """Shapes without the leading axis, and dtypes; stacks with equal signatures can be concatenated."""
    if isinstance(stack, Tensor):
        return stack.shape[1:], stack.dtype
    if isinstance(stack, Mapping):
        return {name: _signature(branch) for name, branch in stack.items()}
    return None


def _concatenate(stacks: list[Any]) -> Any:
    if len(stacks) == 1:
        return stacks[0]
    if isinstance(stacks[0], Mapping):
        return {name: _concatenate([stack[name] for stack in stacks]) for name in stacks[0]}
    return torch.cat(stacks)


def _split(stack: Any, counts: list[int]) -> list[Any]:
    if isinstance(stack, Mapping):
        branches = {name: _split(branch, counts) for name, branch in stack.items()}
        return [{name: pieces[i] for name, pieces in branches.items()} for i in range(len(counts))]
    return list(torch.split(stack, counts))
