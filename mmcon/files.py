"""Small files that a crash, a full disk or a stranger may have damaged: written whole, read with one clear error.

A file is written under another name, flushed to the disk, and renamed: a reader finds the old content or the new one.
Only JSON and plain YAML are read: no tags, which could create objects, and no aliases, which expand without limit.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from safetensors import SafetensorError
from yaml.composer import ComposerError

from mmcon.errors import DataError, StorageError

_log = logging.getLogger(__name__)


def replace_file(path: str | Path, content: str | bytes | Callable[[BinaryIO], Any]) -> Path:
    """Write a file, or replace it, so that it has the old content or the new one whatever interrupts the writing.

    Args:
        path: the file; its folder must exist.
        content: text, bytes, or a function that writes to the open file.

    Raises:
        StorageError: the file cannot be written; the old one is intact.
    """
    return replace_by(path, lambda temporary: _write(temporary, content))


def replace_by(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """As `replace_file`, for a library that opens the file itself: `write` gets the path to write to.

    >>> replace_by("weights.safetensors", lambda file: save_file(tensors, file))  # doctest: +SKIP
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            write(temporary)
            _flush(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    return path


def append_line(path: str | Path, value: Any) -> None:
    """Append a value as a line of JSON; a last line that a crash cut off ends first, so that the new one is whole.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        with Path(path).open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write((json.dumps(value) + "\n").encode())  # in ASCII, since names of files may be no UTF-8
    except OSError as error:
        raise _not_written(path, error) from error


def read_lines(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a JSON-lines file as mappings, and the texts of those that are none, such as one that was cut off.

    A file that does not exist has no lines.
    """
    path = Path(path)
    if not path.exists():
        return [], []
    lines, damaged = [], []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        value = _parse_json(text)
        if isinstance(value, dict):
            lines.append(value)
        elif text.strip():
            damaged.append(text)
    return lines, damaged


def read_json(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if there is no such file, or if it is damaged, which is logged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        value = error
    if isinstance(value, dict):
        return value
    _log.warning("%s is damaged, and is not used: %.200r", path, value)
    return {}


def read_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text without tags and aliases.

    Raises:
        DataError: the text is not such YAML; the message has the line.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        got = " ".join(str(error).split())
    except RecursionError:
        got = "values that are nested too deeply"
    except ValueError as error:  # such as a date with month 13
        got = str(error)
    raise DataError(where, expected="YAML of plain values, without tags and aliases", got=got, fix="repair the file")


def create_folder(folder: Path) -> None:
    """Create a folder with its parents, if it is not there.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"folder {folder}",
            expected="a folder that is there, or can be created",
            got=str(error),
            fix="choose another folder",
        ) from error


def temporary_folder(prefix: str) -> Path:
    """The path of a folder that is not there yet, and is removed at exit.

    Every rank of a run asks for one, and the main rank creates its own.
    """
    folder = Path(tempfile.gettempdir()) / f"{prefix}{uuid.uuid4().hex[:12]}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_through(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file and flush it to the disk."""
    _write(path, content)
    _flush(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder, which makes the renames in it durable; some network disks cannot."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


def _write(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    with path.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, without aliases: a file of a few lines could name billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, "found an alias", event.start_mark)
        return super().compose_node(parent, index)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _not_written(path: str | Path, error: OSError | SafetensorError) -> StorageError:
    gone, got = not Path(path).parent.exists(), getattr(error, "strerror", None) or error
    return StorageError(
        f"file {path}",
        expected="a folder that exists, may be written to, and has free space",
        got=f"a folder that does not exist (was it deleted or moved?): {got}" if gone else str(error),
        fix="choose another folder, such as by --output-dir" if not gone else "do not move the folder of a run at work",
    )
