"""`mmcon recipe`: list the recipes, run one, or copy one to change it."""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import mmcon
from mmcon.errors import InputError, UnknownNameError, nearest


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = commands.add_parser("recipe", help="list the recipes, run one, or copy one to change it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="names and purposes").set_defaults(run=_list)
    start = actions.add_parser("run", help="run one, on all GPUs or on the CPU")
    start.add_argument("--processes", type=int, help="default: one for each GPU, or one with --cpu")
    start.add_argument("name", help="a recipe by name, or the file of a copy")
    start.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the recipe")
    start.set_defaults(run=_run)
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


def _run(options: argparse.Namespace) -> None:
    """Replace this process by the recipe, or by Accelerate's launcher for several processes.

    One process needs no launcher: the launcher would print a warning about its own defaults, and a traceback of its own
    after every error and after Ctrl-C.
    """
    file = Path(options.name) if options.name.endswith(".py") else _find(options.name, "run")
    words = [str(file), *options.flags]
    processes = options.processes or (1 if "--cpu" in options.flags else _gpus())
    if processes > 1:
        launcher = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
        words = ["-m", "accelerate.commands.launch", "--quiet", *launcher, "--dynamo_backend", "no", *words]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *words])


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _find(name: str, action: str) -> Path:
    found = recipes()
    if name not in found:
        raise UnknownNameError(
            f"mmcon recipe {action}", expected="the name of a recipe", got=repr(name), fix=nearest(name, list(found))
        )
    return found[name]


def _copy(options: argparse.Namespace) -> None:
    name = options.name.removesuffix(".py")
    source = _find(name, "copy")
    target = options.to / f"{name}.py"
    if target.exists():
        raise InputError("mmcon recipe copy", expected="no such file yet", got=str(target), fix="choose --to FOLDER")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: run it with `mmcon recipe run {target}`")
    presets = source.parent / "presets" / name
    if presets.is_dir():
        copied = target.parent / "presets" / name
        shutil.copytree(presets, copied, dirs_exist_ok=True)
        print(f"{copied}: settings for --preset ({', '.join(sorted(f.stem for f in presets.glob('*.yaml')))})")
