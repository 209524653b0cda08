"""The package's exceptions and warnings; every error states where, what was expected, what was received, and a fix."""

from __future__ import annotations

import operator
from typing import Any


class MmconError(Exception):
    """An error that the caller can correct; every message has the same elements.

    Args:
        where: the component or the registered name that raises.
        expected: the valid input, with values and named axes.
        got: the received input.
        fix: the likely correction, as an instruction or a line of code.
        key: the key of the draw, if one was involved, so that it can be replayed.
    """

    def __init__(self, where: str, *, expected: str, got: str, fix: str = "", key: str = "") -> None:
        self.where, self.expected, self.got, self.fix, self.key = where, expected, got, fix, key
        lines = [f"{where}: expected {expected}; got {got}."]
        if fix:
            lines.append(f"  Fix: {fix}")
        if key:
            lines.append(f"  Key: {key}")
        # A file name that is not UTF-8 could not be printed.
        super().__init__("\n".join(lines).encode("utf-8", "backslashreplace").decode())

    def __reduce__(self) -> tuple:
        """Pickle by the elements of the message: the default, by `args`, fails in the pipe from a worker process."""
        return _rebuild, (type(self), self.where, self.expected, self.got, self.fix, self.key)


def _rebuild(kind: type[MmconError], where: str, expected: str, got: str, fix: str, key: str) -> MmconError:
    return kind(where, expected=expected, got=got, fix=fix, key=key)


class InputError(MmconError, ValueError):
    """An argument has the wrong shape, type or value."""


class UnknownNameError(MmconError, LookupError):
    """A name is not registered; the message lists the nearest ones."""


class DuplicateNameError(MmconError, ValueError):
    """A name is already registered."""


class PluginError(MmconError, ImportError):
    """The built-in components cannot be loaded."""


class PluginWarning(UserWarning):
    """A third party's plug-in failed to load; the message has its entry point, its module and the error."""


class DataError(MmconError, ValueError):
    """A source, a file or a sample cannot be used; the message names it."""


class ConfigError(MmconError, ValueError):
    """A configuration key or a combination of settings is not valid."""


class CheckpointError(MmconError, RuntimeError):
    """A checkpoint is missing, incomplete, or does not match the object that loads it."""


class StorageError(MmconError, OSError):
    """A file cannot be written: the disk is full or read-only, or its folder is gone."""


class NonFiniteError(MmconError, FloatingPointError):
    """A loss or a gradient is not finite; the message has the keys that replay the batch."""


class MissingDependencyError(MmconError, ImportError):
    """An optional package is missing; the message names the one to install."""


def check_whole(where: str, name: str, value: Any, *, least: int, fix: str = "") -> int:
    """A number of things, such as workers, as an int.

    Args:
        where: the component, for the message.
        name: the name of the argument.
        value: the argument.
        least: the smallest accepted number.
        fix: the likely correction.

    Raises:
        InputError: the value is no whole number, or it is too small.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # a float, a text, None
        whole = None
    if whole is None or whole < least:
        fix = fix or f"{name}={max(least, 1)} or more"
        raise InputError(where, expected=f"{name} as a whole number from {least} on", got=repr(value), fix=fix)
    return whole


def check_choice(where: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError for an unknown value of a setting, with the nearest known one."""
    if value not in known:
        raise InputError(
            where, expected=f"{name} one of {', '.join(known)}", got=repr(value), fix=nearest(value, list(known))
        )


def nearest(name: str, known: list[str]) -> str:
    """The known names nearest to an unknown one, for a message: "did you mean …"."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known are " + (", ".join(sorted(known)) if known else "none")
