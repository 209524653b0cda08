"""What every decoder of a file goes through: regular files only, one kind of error, and a record for a time limit.

    size = file_size(path, name)                 # DataError unless it is a regular file
    with decoder_errors(name):                   # any exception of the library becomes a DataError with the name
        image = Image.open(path)

Libraries raise almost any type on a damaged file (`struct.error`, `IndexError`, `RuntimeError`), so that no list of
types is complete. Native code that does not return cannot be interrupted; so the training process reads when a worker
process began its current decoding, and ends a worker that takes too long (`mmcon.loading.lost_workers`).
"""

from __future__ import annotations

import os
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from mmcon.errors import DataError, MmconError

DAMAGED = "replace or remove the file; `mmcon doctor --data PATH` lists all such files"
"""The usual fix of a file that cannot be decoded."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

# Where a worker process records when its current decoding began: one number of shared memory, 0 between decodings.
_began: Float64[np.ndarray, "1"] | None = None
# How many blocks drop the standard error, and a copy of it meanwhile.
_lock, _dropping, _kept_standard_error = threading.Lock(), 0, -1


@contextmanager
def decoder_errors(name: str, *, expected: str = "a readable file", fix: str = DAMAGED) -> Iterator[None]:
    """Convert every exception of a decoder to a DataError that names the sample; errors of this package pass through.

    Args:
        name: the sample in the message: its path, or its name in the source.
        expected: what the decoder should find, such as "a readable image".
        fix: the likely correction.
    """
    is_outermost = _began is not None and not _began[0]
    if is_outermost:
        restart_time_limit()
    try:
        yield
    except MmconError:
        raise
    except Exception as error:  # any type: see above
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(name, expected=expected, got=reason, fix=fix) from error
    finally:
        if is_outermost and _began is not None:
            _began[0] = 0.0


@contextmanager
def pillow_is_quiet() -> Iterator[None]:
    """Ignore the warnings of Pillow in a `with` block of the main thread; in other threads the block has no effect.

    A photo beyond 90 megapixels is large, not an attack, and odd tags do not cost a photo. Filters of warnings belong
    to the process, so that blocks in several threads could leave each other's filters behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextmanager
def standard_error_dropped() -> Iterator[None]:
    """Drop what the process writes to the standard error in a `with` block: libraries in C cannot be told to be quiet.

    Blocks may overlap in several threads. What other threads write meanwhile is dropped too, so the block is short.
    """
    global _kept_standard_error, _dropping
    with _lock:
        if not _dropping:
            _kept_standard_error, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        _dropping += 1
    try:
        yield
    finally:
        with _lock:
            _dropping -= 1
            if not _dropping:
                os.dup2(_kept_standard_error, 2)
                os.close(_kept_standard_error)


def file_size(path: str | Path, name: str) -> int:
    """The size of a regular file in bytes, without opening it: opening a FIFO waits forever, and a device has no end.

    Raises:
        DataError: there is no file at the path, it is not a regular file, or it may not be looked at.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise DataError(name, expected="a file", got=f"none at {str(path)!r}", fix="check the path") from error
    except (OSError, ValueError) as error:  # a forbidden folder, a loop of links, a null byte in the name
        got = f"{type(error).__name__}: {error}"
        raise DataError(name, expected="a file", got=got, fix="check the path") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for matches, words in _KINDS if matches(status.st_mode)), "another kind of entry")
        raise DataError(name, expected="a regular file", got=kind, fix="remove it, or copy its content to a file")
    return status.st_size


def restart_time_limit() -> None:
    """Begin the time limit of the current decoding anew: a long decoding calls it after each frame or block."""
    if _began is not None:
        _began[0] = time.monotonic()


def record_decoding(began: Float64[np.ndarray, "1"] | None) -> None:
    """Record in shared memory when each decoding of this process begins, for the time limit on worker processes."""
    global _began
    _began = began
