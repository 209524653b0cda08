"""The lock of a run folder: one run at a time writes to it."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcon.errors import ConfigError, StorageError

#: The file in a run folder that the run at work has locked; it names the process, and stays after the run.
LOCK = "run.lock"
_IN_USE = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# The system drops the lock of a process when the process closes *any* handle of the file. So a second run of a process
# in one folder, such as a second try in a notebook, takes over the handle of the first.
_handles: dict[Path, tuple[int, RunLock]] = {}


class RunLock:
    """A lock on a run folder, which ends with the process at the latest, killed or not.

    It is a record lock of fcntl, which NFS servers support too, and which worker processes do not inherit.

    Args:
        folder: the run folder.
        log: receives messages.
        flag: the option that names the folder, for messages.

    Raises:
        ConfigError: another process has the lock; the message has its host, number and start.
        StorageError: the folder cannot be created or written to.
    """

    def __init__(self, folder: Path, *, log: Callable[[str], Any] = print, flag: str = "--output-dir") -> None:
        self.folder, self.log, self.flag = folder.resolve(), log, flag
        self._is_locked = False
        self._open()

    def _open(self) -> None:
        path = self.folder / LOCK
        try:
            file, _ = _handles.get(self.folder, (None, None))
            if file is None or not _is_open_at(file, path):
                self.folder.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._lock(file)
            _handles[self.folder] = file, self
            about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            os.ftruncate(file, 0)
            os.pwrite(file, (json.dumps(about) + "\n").encode(), 0)
        except OSError as error:
            raise StorageError(
                f"run folder {self.folder}",
                expected="a folder that can be created and written to",
                got=str(error),
                fix=f"choose another {self.flag}",
            ) from error

    def _lock(self, file: int) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            self.log(f"this system has no file locks: make sure that no other run uses {self.folder}")
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_locked = True
        except OSError as error:
            holder = _read(file)
            if error.errno in _IN_USE or (error.errno in _NO_LOCKS and _is_alive(holder)):
                _handles.pop(self.folder, None)
                os.close(file)
                raise self._in_use(holder) from error
            if error.errno not in _NO_LOCKS:
                raise
            self.log(f"this disk has no file locks ({error}): make sure that no other run uses {self.folder}")

    def check(self) -> None:
        """Check that the run folder is still that of this run; a lock file that was removed is made again.

        The lock is taken again too: the system drops it when this process has read the file, such as for a copy of the
        folder, and a file server may lose it.

        Raises:
            ConfigError: another run has taken the lock meanwhile.
            StorageError: the folder was deleted, moved, or replaced by that of another run.
        """
        path = self.folder / LOCK
        if self.folder.is_dir() and not path.exists():
            self._open()
        file, _ = _handles.get(self.folder, (None, None))
        if file is None or not _is_open_at(file, path):
            raise StorageError(
                f"run folder {self.folder}",
                expected="the folder in which this run began",
                got="a folder of another run" if path.exists() else "none: it was deleted or moved",
                fix="do not move or delete the folder of a run at work",
            )
        if self._is_locked:
            try:
                self._lock(file)
            except OSError as error:  # of a file server that is away for a while; no other run has the lock
                self.log(f"the lock of {self.folder} could not be taken again, and the run goes on: {error}")

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock, unless a later run of this process has taken it over."""
        file, owner = _handles.get(self.folder, (None, None))
        if file is not None and owner is self:
            del _handles[self.folder]
            os.close(file)

    def _in_use(self, holder: dict[str, Any]) -> ConfigError:
        who = "process {pid} on {host} since {started}".format_map({"pid": "?", "host": "?", "started": "?"} | holder)
        return ConfigError(
            self.flag,
            expected="a folder that no other run uses",
            got=f"{self.folder}, which is in use by {who}",
            fix="wait until it ends, stop it, or choose another folder; the lock of a process ends with the process",
        )


def _is_open_at(file: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _read(file: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether a process of this machine runs; one of another machine counts as ended."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder["pid"] != os.getpid()
