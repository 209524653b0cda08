"""Objects as arguments of a node of a compiled graph: lists of tensors and numbers, and a text.

A graph holds tensors and numbers, not objects. A class whose objects are described by some of their attributes names
them by `flattens`; tracing follows `flatten`, and the node builds the objects again by `unflatten`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

#: Classes by the name that their objects have in a text.
_CLASSES: dict[str, type] = {}
Class = TypeVar("Class", bound=type)


class Flat(NamedTuple):
    """A value in parts.

    Attributes:
        tensors: each once.
        numbers: floats, which a graph may hold as symbols; and so for integers, such as a number of rows.
        integers: the others.
        text: a Python literal: the structure, the constants, and which tensors have a gradient.
    """

    tensors: list[Shaped[Tensor, "..."]]
    numbers: list[float]
    integers: list[int]
    text: str


def flattens(*names: str) -> Callable[[Class], Class]:
    """Decorate a class: the attributes `names` describe its objects. It does not hold for subclasses."""

    def described(target: Class) -> Class:
        key = f"{target.__module__}.{target.__qualname__}"
        _CLASSES[key] = target
        target._flat = (key, names)  # pyright: ignore
        return target

    return described


def flatten(value: Any) -> Flat | None:
    """The parts of a value; None where it contains what has none: a function, a module, an object of another class."""
    flat = Flat([], [], [], "")
    text = _write(value, flat)
    return None if text is None else Flat(flat.tensors, flat.numbers, flat.integers, text)


def unflatten(flat: Flat) -> Any:
    """The value of `flatten`."""
    return _read(_parsed(flat.text), flat)


def with_gradients(tensors: list[Shaped[Tensor, "..."]], text: str) -> list[Shaped[Tensor, "..."]]:
    """Copies of the tensors without history; those that had a gradient when they were flattened are leaves."""
    flags = {node[1]: node[2] for node in _tensor_nodes(_parsed(text))}
    return [x.detach().requires_grad_(flags[i]) for i, x in enumerate(tensors)]


def has_gradient(text: str) -> list[bool]:
    """Whether each tensor had a gradient when it was flattened."""
    flags = {node[1]: node[2] for node in _tensor_nodes(_parsed(text))}
    return [flags[i] for i in range(len(flags))]


def _write(value: Any, flat: Flat) -> str | None:
    """A value as a Python literal, with its tensors and numbers added to the lists. No step of it reads a tensor."""
    if value is None or isinstance(value, (bool, str)):
        return repr(value)
    if isinstance(value, Tensor):
        return _write_tensor(value, flat)
    if isinstance(value, float):
        flat.numbers.append(value)
        return f"('number', {len(flat.numbers) - 1})"
    if isinstance(value, int):
        flat.integers.append(value)
        return f"('integer', {len(flat.integers) - 1})"
    if isinstance(value, torch.dtype):
        return f"('dtype', '{value}')"
    if isinstance(value, (tuple, list)):
        return _write_all("'tuple'", value, flat)
    described = getattr(value, "_flat", None)
    if described is None:
        return None
    key, names = described
    return _write_all(f"'object', '{key}'", [getattr(value, name) for name in names], flat)


def _write_tensor(value: Shaped[Tensor, "..."], flat: Flat) -> str:
    for i, known in enumerate(flat.tensors):
        if known is value:  # that two values are one tensor has a meaning: the candidates are the anchors
            return f"('tensor', {i}, {value.requires_grad})"
    flat.tensors.append(value)
    return f"('tensor', {len(flat.tensors) - 1}, {value.requires_grad})"


def _write_all(start: str, values: Any, flat: Flat) -> str | None:
    text = f"({start},"
    for value in values:
        part = _write(value, flat)
        if part is None:
            return None
        text += f" {part},"
    return text + ")"


@cache
def _parsed(text: str) -> Any:
    return ast.literal_eval(text)


def _read(node: Any, flat: Flat) -> Any:
    if not isinstance(node, tuple):
        return node
    kind, *rest = node
    if kind in ("tensor", "number", "integer"):
        values: list[Any] = {"tensor": flat.tensors, "number": flat.numbers, "integer": flat.integers}[kind]
        return values[rest[0]]
    if kind == "dtype":
        return getattr(torch, rest[0].removeprefix("torch."))
    if kind == "tuple":
        return tuple(_read(part, flat) for part in rest)
    target = _CLASSES[rest[0]]
    made = object.__new__(target)
    for name, part in zip(target._flat[1], rest[1:], strict=True):  # pyright: ignore
        object.__setattr__(made, name, _read(part, flat))  # past the check of a frozen dataclass
    return made


def _tensor_nodes(node: Any) -> list[tuple[str, int, bool]]:
    if not isinstance(node, tuple):
        return []
    if node[0] == "tensor":
        return [node]
    return [found for part in node[1:] for found in _tensor_nodes(part)]
