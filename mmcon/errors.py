"""The package's exceptions: each says where, what was expected, what came, and what to do about it."""

from __future__ import annotations


class MmconError(Exception):
    """Something that the caller can mend; the message has the same parts everywhere.

    Args:
        where: the component or the registered name that noticed.
        expected: what would have been right, with values and named axes.
        got: what came instead.
        fix: the likely remedy, as an instruction or a line of code.
        key: the key of the draw that was involved, so that it can be replayed.
    """

    def __init__(self, where: str, *, expected: str, got: str, fix: str = "", key: str = "") -> None:
        self.where, self.expected, self.got, self.fix, self.key = where, expected, got, fix, key
        lines = [f"{where}: expected {expected}; got {got}."]
        if fix:
            lines.append(f"  Fix: {fix}")
        if key:
            lines.append(f"  Key: {key}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple:
        """Pickle by the parts, so that an error of a worker process arrives whole."""
        return _rebuild, (type(self), self.where, self.expected, self.got, self.fix, self.key)


def _rebuild(kind: type[MmconError], where: str, expected: str, got: str, fix: str, key: str) -> MmconError:
    return kind(where, expected=expected, got=got, fix=fix, key=key)


class InputError(MmconError, ValueError):
    """An argument has the wrong shape, type or value."""


class UnknownNameError(MmconError, LookupError):
    """A name is not registered; the message lists the nearest ones."""


class DuplicateNameError(MmconError, ValueError):
    """A name is registered already."""


class DataError(MmconError, ValueError):
    """A source, a file or a sample cannot be used; the message names it."""


class ConfigError(MmconError, ValueError):
    """A configuration key or a combination of settings is not valid."""


class CheckpointError(MmconError, RuntimeError):
    """A checkpoint is missing, torn, or does not fit what is loaded from it."""


class NonFiniteError(MmconError, FloatingPointError):
    """A loss or a gradient is not finite; the message holds the keys that replay the batch."""


class MissingDependencyError(MmconError, ImportError):
    """An optional package is needed; the message names the one to install."""


def nearest(name: str, known: list[str]) -> str:
    """The few known names most like the one that is missing, for a message: "did you mean …"."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known are " + (", ".join(sorted(known)) if known else "none")
