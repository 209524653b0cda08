"""Convert errors of any library that cannot load a published model to DataError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmcon.errors import DataError, MmconError, nearest


def missing_folder(name: str | Path) -> tuple[str, str] | None:
    """What to say of a name that is a path without a folder there: what was found, and a fix.

    None for a folder that is there, and for a name that may be one on the hub: `word` or `owner/model`, where no local
    folder is called `owner`.
    """
    path, parts = Path(name).expanduser(), Path(name).parts
    if path.is_dir():
        return None
    if path.is_file():
        return f"the file {path}", f"give its folder: {path.parent}"
    may_be_hub_name = len(parts) <= 2 and parts[:1] not in (("~",), ("..",)) and not path.is_absolute()
    written_as_path = str(name).startswith(("./", ".\\")) or str(name).endswith(("/", "\\"))
    if may_be_hub_name and not written_as_path and (len(parts) < 2 or not path.parent.is_dir()):
        return None
    if not path.parent.is_dir():
        return f"no folder {path.parent}", "check the path"
    beside = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
    near = nearest(path.name, beside[:1000])
    if may_be_hub_name and not written_as_path:
        near += f"; for {name} of the hub, start where no folder is called {path.parent}"
    return f"no folder {path.name!r} in {path.parent}", near


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
