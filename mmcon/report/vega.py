"""The JavaScript that draws Vega-Lite charts, as one text to put into a page.

It comes from vl-convert-python, which carries Vega, Vega-Lite and Vega-Embed. Making the text takes seconds and a
JavaScript engine, so it is made once, in a process of its own, and kept in the user's cache folder.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from mmcon.errors import MissingDependencyError
from mmcon.files import write_through

_PACKAGE = "vl-convert-python"
_PROGRAM = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
_log = logging.getLogger(__name__)


@functools.cache
def vega_script() -> str:
    """The script; `vegaEmbed` is a global name in it.

    Raises:
        MissingDependencyError: vl-convert-python is not installed, or does not work here.
    """
    file = script_file()
    try:
        return file.read_text()
    except OSError:
        pass  # not made yet
    made = subprocess.run([sys.executable, "-P", "-c", _PROGRAM], capture_output=True)
    script = made.stdout.decode()
    if made.returncode or "vegaEmbed" not in script or "</script" in script:
        raise _missing(made.stderr.decode(errors="replace")[-200:] or "no script")
    keep(script.encode(), file)
    return script


def script_is_ready() -> bool:
    """Whether `vega_script` takes no time: the script was made before, or cannot be made. Else begin to make it."""
    try:
        if script_file().exists():
            return True
    except MissingDependencyError:
        return True
    return _begin().poll() is not None  # it has ended without a script: the page is written without waiting for one


@functools.cache
def _begin() -> subprocess.Popen[Any]:
    """Make the script in the background."""
    program = "from mmcon.report.vega import vega_script; vega_script()"
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-P", "-c", program], start_new_session=True, **quiet)


def script_file() -> Path:
    """Where the script of the installed version is kept.

    Raises:
        MissingDependencyError: vl-convert-python is not installed.
    """
    try:
        version = metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise _missing("none") from error
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Without a home folder it is kept nowhere.
    return Path(os.devnull if cache.startswith("~") else cache) / "mmcon" / f"vega-{version}.js"


def keep(content: bytes, file: Path) -> None:
    """Write a file of the cache, whole or not at all; a folder that cannot be written to is logged."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_through(temporary, content)
        temporary.replace(file)
    except OSError as error:
        _log.info("the chart script is not kept, and is made again for the next page: %s", error)


def _missing(got: str) -> MissingDependencyError:
    return MissingDependencyError(
        "charts of the run page", expected=_PACKAGE, got=got, fix=f'pip install "{_PACKAGE}>=1.7"'
    )
