"""What every decoder of a file goes through: regular files only, one kind of error, and a record for a time limit.

    size = file_size(path, name)                 # DataError unless it is a regular file
    with decoder_errors(name):                   # any exception of the library becomes a DataError with the name
        image = Image.open(path)

Libraries raise almost any type on a damaged file (`struct.error`, `IndexError`, `RuntimeError`), so that no list of
types is complete. Native code that does not return cannot be interrupted; so the training process reads when a worker
process began its current decoding, and ends a worker that takes too long (`mmcon.loading.workers`).
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from mmcon.errors import DataError, MmconError

_log = logging.getLogger(__name__)

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
# Messages of libjpeg; and of libmpg123, which also writes them for spans that begin inside a sound file.
_OF_IMAGES = re.compile(
    "Corrupt JPEG data|Premature end of JPEG|Invalid SOS param|Inconsistent progression|Unknown Adobe color"
)
_OF_SOUNDS = re.compile(r"Warning: |Note: |\[.*mpg123|\s*$")
# Of samples that are decoded at the same time, so many are named in a message.
_NAMED = 5


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
def decoder_messages_logged(name: str) -> Iterator[None]:
    """Log what libraries in C write to the standard error in a `with` block: they cannot be told to be quiet.

    Blocks may overlap in several threads; the message then names all samples. What is no message of a decoder, but of
    another thread, is written to the standard error at the end.

    Args:
        name: the sample.
    """
    _messages.begin(name)
    try:
        yield
    finally:
        _messages.end()


class _Messages:
    """The standard error of the process, which goes to a file in memory while decoders run."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._names = threading.Lock(), 0, list[str]()
        self._kept, self._file = -1, -1

    def begin(self, name: str) -> None:
        with self._lock:
            self._blocks += 1
            self._names.append(name)
            if self._blocks == 1:
                with suppress(OSError):  # a program without a standard error
                    self._kept = os.dup(2)
                    self._file = _memory_file() if self._file < 0 else self._file
                    os.dup2(self._file, 2)

    def end(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks:
                return
            names, self._names = self._names, []
            if self._kept < 0:
                return
            self._restore()
            if not (size := os.lseek(self._file, 0, os.SEEK_CUR)):
                return
            content = os.pread(self._file, size, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.ftruncate(self._file, 0)
        lines = content.decode(errors="surrogateescape").splitlines(keepends=True)
        shown = ", ".join([*names[:_NAMED], *(["…"] if len(names) > _NAMED else [])])
        for level, kind in ((logging.INFO, _OF_IMAGES), (logging.DEBUG, _OF_SOUNDS)):
            found = dict.fromkeys(text for line in lines if kind.match(line) and (text := line.strip()))
            lines = [line for line in lines if not kind.match(line)]
            if found:
                _log.log(level, "decoding %s: %s", shown, "; ".join(found))
        if lines:
            os.write(2, "".join(lines).encode(errors="surrogateescape"))

    def begin_again(self) -> None:
        """In a fork: blocks of other threads do not end there, and the file belongs to the parent."""
        if self._kept >= 0:
            self._restore()
        if self._file >= 0:
            os.close(self._file)
        self.__init__()

    def _restore(self) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)
        self._kept = -1


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mmcon-decoder-messages")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_messages = _Messages()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_messages.begin_again)


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
