"""Drawn parameters (nested dicts of CPU tensors with leading axis `b`): selection, checks and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.views.generator import Params


def select_samples(params: Any, index: Any) -> Any:
    """The parameters of some samples: every tensor is indexed along its leading axis."""
    if isinstance(params, Tensor):
        return params[index]
    return {name: select_samples(branch, index) for name, branch in params.items()}


def params_to_json(params: Params) -> str:
    """Convert parameters to JSON; float64 values are exact."""

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
    """Read parameters from the JSON of `params_to_json`."""

    def rebuild(node: dict[str, Any]) -> Any:
        if set(node) == {"dtype", "shape", "values"}:
            return torch.tensor(node["values"], dtype=getattr(torch, node["dtype"])).view(node["shape"])
        return {name: rebuild(branch) for name, branch in node.items()}

    return rebuild(json.loads(text))


def describe_sample(params: Params, index: int) -> dict[str, Any]:
    """The parameters of one sample as Python numbers."""

    def plain(node: Any) -> Any:
        return (
            node[index].tolist() if isinstance(node, Tensor) else {name: plain(branch) for name, branch in node.items()}
        )

    return plain(params)


def check_params(name: str, params: Params, samples: Sequence[Any] | int) -> None:
    """Raise InputError unless parameters are nested dicts of CPU tensors with one row per sample."""
    n = samples if isinstance(samples, int) else len(samples)

    def visit(path: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, branch in node.items():
                visit(f"{path}.{key}", branch)
        elif not isinstance(node, Tensor) or node.device.type != "cpu" or node.dim() < 1 or len(node) != n:
            got = f"{tuple(node.shape)} on {node.device}" if isinstance(node, Tensor) else type(node).__name__
            raise InputError(name, expected=f"{path} as a CPU tensor with leading axis {n}", got=got)

    visit("params", params)
