"""Convert errors of any library that cannot load a published model to DataError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmcon.errors import DataError, MmconError


@contextmanager
def model_load_errors(where: str, *, expected: str, fix: str) -> Iterator[None]:
    """Convert exceptions of a library in a `with` block to a DataError with its first line and a fix.

    A library raises errors of many types: no such name, no network, a broken folder, code or a pickle that it refuses.

    Args:
        where: the component that loads the model, for the message.
        expected: the expected input, for the message.
        fix: the fix, for the message.
    """
    try:
        yield
    except MmconError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        offline = any(word in str(error).lower() for word in ("offline", "connect", "urlopen"))
        raise DataError(
            where, expected=expected, got=("no network: " if offline else "") + first_line, fix=fix
        ) from error
