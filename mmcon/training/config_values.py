"""Values of a configuration file by the types of a dataclass, and flags by its fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from mmcon.errors import ConfigError, nearest

C = TypeVar("C")

# Flags of the command-line parser itself, and of `mmcon.training.config.parse`.
_OTHER_FLAGS = ("--help", "--config", "--preset", "--report-to", "--tyro-print-completion", "--tyro-write-completion")
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_INVALID = object()


def from_mapping(kind: type[C], values: Mapping[str, Any], *, where: str = "config", inside: str = "") -> C:
    """A configuration from plain values.

    Args:
        kind: a dataclass.
        values: by the name of a field.
        where: the origin of the values, for messages.
        inside: the key that the values are under, with a dot, for messages.

    Raises:
        ConfigError: a key is unknown, with the nearest ones; or a value has another type than its field.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    converted = {}
    for name, value in values.items():
        if name not in fields:
            fix = nearest(str(name), list(fields))
            raise ConfigError(
                f"config {where}", expected=f"keys of {kind.__name__}", got=repr(inside + str(name)), fix=fix
            )
        converted[name] = _convert(value, hints[name], where, inside + name)
        if converted[name] is _INVALID:
            raise ConfigError(
                f"config {where}",
                expected=f"{inside}{name}: {_describe(hints[name])}",
                got=f"{value!r} ({type(value).__name__})",
                fix=_fix(value, hints[name]),
            )
    return kind(**converted)


def check_flags(kind: type, words: Sequence[str]) -> None:
    """Check that all flags among the words of a command line are fields of a dataclass.

    Raises:
        ConfigError: a flag is unknown; the message has the nearest ones.
    """
    known = [*_flags(kind), *_OTHER_FLAGS]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag != "--" and flag not in known:
            raise ConfigError("command line", expected="a flag that --help lists", got=word, fix=nearest(flag, known))


def _flags(kind: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name], f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}"
            if hints[field.name] is bool:
                yield f"--{prefix}no-{name}"


def by_modality(
    flag: str, entries: Iterable[str], *, defaults: Mapping[str, str] | None = None, needed: Iterable[str] = ()
) -> dict[str, str]:
    """Values by modality, from the entries MODALITY=VALUE of a flag, over defaults.

    Args:
        flag: the flag, for messages.
        entries: what the user wrote.
        defaults: the values of modalities that the flag does not name.
        needed: modalities that need a value.

    Raises:
        ConfigError: an entry is written otherwise, or a modality has no value.
    """
    wrong = [entry for entry in entries if not all(entry.partition("="))]
    if wrong:
        raise ConfigError(flag, expected="MODALITY=VALUE, such as image=photos/", got=str(wrong))
    values = {**(defaults or {}), **dict(entry.split("=", 1) for entry in entries)}
    if missing := [modality for modality in needed if modality not in values]:
        raise ConfigError(flag, expected=f"a value for {missing}", got="none", fix=f"{flag} {missing[0]}=NAME")
    return values


def _convert(value: Any, hint: Any, where: str, key: str) -> Any:
    """The value as its hint, or `_INVALID`: lists become tuples, text paths, and mappings dataclasses.

    YAML reads 1e-3 as text, since it has no dot, so text is a number if it is written as one.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        options = (_convert(value, argument, where, key) for argument in arguments)
        return next((option for option in options if option is not _INVALID), _INVALID)
    if origin is Literal:
        return value if any(value == choice and type(value) is type(choice) for choice in arguments) else _INVALID
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return _INVALID
        items = tuple(_convert(item, arguments[0], where, key) for item in value)
        return _INVALID if any(item is _INVALID for item in items) else items
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return from_mapping(hint, value, where=where, inside=f"{key}.")
        return value if isinstance(value, hint) else _INVALID
    return _convert_plain(value, hint, origin)


def _convert_plain(value: Any, hint: Any, origin: Any) -> Any:
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return _INVALID
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (int, bool):
        return value if type(value) is hint else _INVALID
    expected = origin or hint
    return value if not isinstance(expected, type) or isinstance(value, expected) else _INVALID


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list, each {_describe(arguments[0])}"
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return f"a mapping, the keys of {hint.__name__}"  # pyright: ignore[reportAttributeAccessIssue]
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _fix(value: Any, hint: Any) -> str:
    if isinstance(value, bool):
        return "quote the word: YAML reads no, yes, on and off as true or false"
    return "write a list: [a, b]" if typing.get_origin(hint) is tuple else "correct the value"
