"""`write_plugin`: the files of a new plug-in, which passes the laws as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from mmcon.errors import InputError
from mmcon.registry import entries

_TEMPLATES = Path(__file__).parent / "plugin_template"


def write_plugin(name: str, folder: str | Path | None = None) -> list[Path]:
    """Write a package with a view, an encoder, a sampler, a source, and their tests.

    Args:
        name: of the package, and the first part of the names of its components: lower-case letters, digits and -.
        folder: where to write; by default a folder of that name.

    Returns:
        The files.

    Raises:
        InputError: the name cannot be that of a package, or is taken; or the folder is not empty.
    """
    package = _package_name(name)
    folder = Path(name if folder is None else folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "choose another name, or --to FOLDER"
        raise InputError(f"new-plugin {name}", expected="a folder that is new or empty", got=str(folder), fix=fix)
    targets = {
        "pyproject.toml": folder / "pyproject.toml",
        "README.md": folder / "README.md",
        "package.py": folder / package / "__init__.py",
        "test_package.py": folder / "tests" / f"test_{package}.py",
    }
    for template, target in targets.items():
        text = Template((_TEMPLATES / f"{template}.template").read_text(encoding="utf-8"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.substitute(name=name, package=package), encoding="utf-8")
    return list(targets.values())


def _package_name(name: str) -> str:
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(package):
        expected, fix = "lower-case letters and digits, in words joined by -", "such as bird-calls"
        raise InputError("new-plugin", expected=expected, got=repr(name), fix=fix)
    first_parts = {e.name.partition("/")[0] for k in ("view", "sampler", "encoder", "source") for e in entries(k)}
    if name in first_parts or importlib.util.find_spec(package) is not None:
        got = f"{name!r}, the name of {'registered components' if name in first_parts else 'an installed module'}"
        raise InputError("new-plugin", expected="a name that is not taken", got=got, fix=f"such as {name}-views")
    return package
