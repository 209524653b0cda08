"""`mmcon recipe`: list the recipes, or copy one to change it."""

from __future__ import annotations

import argparse
import ast
import shutil
from pathlib import Path
from typing import Any

import mmcon
from mmcon.errors import InputError, UnknownNameError, nearest


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = commands.add_parser("recipe", help="list the recipes, or copy one to change it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="names and purposes").set_defaults(run=_list)
    copy = actions.add_parser("copy", help="copy one into a folder")
    copy.add_argument("name")
    copy.add_argument("--to", type=Path, default=Path(), help="a folder (default: this one)")
    copy.set_defaults(run=_copy)


def recipes() -> dict[str, Path]:
    """The files of the recipes by name: those of the installed wheel, or those of a checkout."""
    package = Path(mmcon.__file__).parent
    folder = next((f for f in (package / "recipe_files", package.parent / "recipes") if f.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))} if folder else {}


def _list(options: argparse.Namespace) -> None:
    found = recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        print(f"{name:{width}}  {about}")


def _copy(options: argparse.Namespace) -> None:
    found = recipes()
    name = options.name.removesuffix(".py")
    if name not in found:
        raise UnknownNameError(
            "mmcon recipe copy", expected="the name of a recipe", got=repr(name), fix=nearest(name, list(found))
        )
    target = options.to / f"{name}.py"
    if target.exists():
        raise InputError("mmcon recipe copy", expected="no such file yet", got=str(target), fix="choose --to FOLDER")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[name], target)
    print(f"{target}: run it with `accelerate launch {target}`")
    presets = found[name].parent / "presets" / name
    if presets.is_dir():
        copied = target.parent / "presets" / name
        shutil.copytree(presets, copied, dirs_exist_ok=True)
        print(f"{copied}: settings for --preset ({', '.join(sorted(f.stem for f in presets.glob('*.yaml')))})")
