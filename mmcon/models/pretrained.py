"""Convert errors of any library that cannot load a published model to DataError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmcon.errors import DataError


@contextmanager
def model_load_errors(
    where: str, *, expected: str, fix: str, errors: tuple[type[Exception], ...] = (OSError, ValueError)
) -> Iterator[None]:
    """Convert exceptions of a library in a `with` block to a DataError with its first line and a fix.

    Args:
        where: the component that loads the model, for the message.
        expected: the expected input, for the message.
        fix: the fix, for the message.
        errors: the exceptions to convert.
    """
    try:
        yield
    except errors as error:
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        offline = any(word in str(error).lower() for word in ("offline", "connect", "urlopen"))
        raise DataError(
            where, expected=expected, got=("no network: " if offline else "") + first_line, fix=fix
        ) from error
