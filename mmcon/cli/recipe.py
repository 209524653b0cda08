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
from mmcon.cli.options import add_command
from mmcon.errors import InputError, UnknownNameError, nearest


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `mmcon`."""
    parser = add_command(
        commands, "recipe", help="list the recipes, run one, or copy one to change it", example="mmcon recipe list"
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add_command(actions, "list", help="list the recipes with their purposes", example="mmcon recipe list").set_defaults(
        run=_list
    )
    start = add_command(
        actions,
        "run",
        help="run a recipe, on all GPUs or on the CPU; the same as `mmcon train`",
        example="mmcon recipe run imagenet_supcon --data photos",
    )
    add_training_arguments(start)
    copy = add_command(
        actions, "copy", help="copy a recipe into a folder, to change it", example="mmcon recipe copy imagenet_supcon"
    )
    copy.add_argument("name")
    copy.add_argument("--to", type=Path, default=Path(), help="a folder (default: this one)")
    copy.set_defaults(run=_copy)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that runs a recipe, and the function that does."""
    parser.add_argument("--processes", type=int, help="default: one for each GPU, or one with --cpu")
    parser.add_argument(
        "name", metavar="RECIPE", nargs="?", help="a recipe by name (`mmcon recipe list`), or the file of a copy"
    )
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the recipe; RECIPE --help lists them")
    parser.set_defaults(run=_run, command=parser.prog)


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
    name = options.name or ""
    file = Path(name) if name.endswith(".py") else _find(name, options.command)
    launch([str(file), *options.flags], options.processes or (1 if "--cpu" in options.flags else gpus()))


def launch(words: list[str], processes: int) -> None:
    """Replace this process by a Python program, or by Accelerate's launcher for several processes of it.

    One process needs no launcher: the launcher would print a warning about its own defaults, and a traceback of its own
    after every error and after Ctrl-C.

    Args:
        words: the file of the program, or -m and a module, and its arguments.
        processes: their number on this machine.
    """
    if processes > 1:
        launcher = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
        words = ["-m", "accelerate.commands.launch", "--quiet", *launcher, "--dynamo_backend", "no", *words]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *words])


def gpus() -> int:
    """The number of GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def _find(name: str, where: str) -> Path:
    found = recipes()
    if name not in found:
        got = repr(name) if name else "none"
        raise UnknownNameError(where, expected="the name of a recipe", got=got, fix=nearest(name, list(found)))
    return found[name]


def _copy(options: argparse.Namespace) -> None:
    name = options.name.removesuffix(".py")
    source = _find(name, "mmcon recipe copy")
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
