"""Drawn parameters as data: nested dicts of tensors with a row a sample, that slice, are checked, and save as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.views.generator import Params


def select_samples(params: Any, rows: Any) -> Any:
    """The parameters of some samples: every tensor indexed along its leading axis."""
    if isinstance(params, Tensor):
        return params[rows]
    return {name: select_samples(branch, rows) for name, branch in params.items()}


def params_to_json(params: Params) -> str:
    """Write parameters as JSON; float64 survives exactly."""

    def plain(node: Any) -> Any:
        if isinstance(node, Tensor):
            return {
                "dtype": str(node.dtype).removeprefix("torch."),
                "shape": list(node.shape),
                "values": node.flatten().tolist(),
            }
        return {name: plain(branch) for name, branch in node.items()}

    return json.dumps(plain(params))


def params_from_json(text: str) -> Params:
    """Read parameters that `params_to_json` wrote."""

    def rebuild(node: dict[str, Any]) -> Any:
        if set(node) == {"dtype", "shape", "values"}:
            return torch.tensor(node["values"], dtype=getattr(torch, node["dtype"])).view(node["shape"])
        return {name: rebuild(branch) for name, branch in node.items()}

    return rebuild(json.loads(text))


def describe_sample(params: Params, row: int) -> dict[str, Any]:
    """One sample's parameters as plain numbers, for a person to read."""

    def plain(node: Any) -> Any:
        return (
            node[row].tolist() if isinstance(node, Tensor) else {name: plain(branch) for name, branch in node.items()}
        )

    return plain(params)


def check_params(name: str, params: Params, rows: Sequence[Any] | int) -> None:
    """Refuse parameters that are not nested dicts of CPU tensors with one row a sample."""
    n = rows if isinstance(rows, int) else len(rows)

    def visit(path: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, branch in node.items():
                visit(f"{path}.{key}", branch)
        elif not isinstance(node, Tensor) or node.device.type != "cpu" or node.dim() < 1 or len(node) != n:
            got = f"{tuple(node.shape)} on {node.device}" if isinstance(node, Tensor) else type(node).__name__
            raise InputError(name, expected=f"{path} as a CPU tensor with leading axis {n}", got=got)

    visit("params", params)
