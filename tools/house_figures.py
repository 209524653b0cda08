"""Print figures of the source tree: sizes, long files and functions, names that collide, shapes in annotations.

    uv run python tools/house_figures.py                          # this checkout
    uv run python tools/house_figures.py --root ../other --step   # another one, and a profile of one training step

How the figures are counted:

- Lines are all lines of a file. Those of a function run from `def` to its last line, without decorators.
- Comments are `#` comments, but for directives to tools (`noqa`, `type:`, `pyright:`, `fmt:`).
- A tensor annotation is that of a parameter or of a result in which the name `Tensor` occurs, wherever in it (so in
  `Tensor | None` and `dict[str, Tensor]`). It has a shape if it has a jaxtyping form such as `Float[Tensor, "b d"]`.
  Aliases are not resolved; annotations of attributes and variables do not count.
- Names that differ by a plural s are those of modules and packages, wherever in the tree the two lie.
- A step is profiled in the reference recipe (`--tiny --workers 0 --cpu`), from the end of the second call of `Run.step`
  to the end of the third: log line, batch, model, objective, backward, optimizer. A file is passed when one of its
  functions is entered. A change of file is the entry of a function in another file of the project than the function
  entered before; with returns, also each return to another file. Libraries in between and other threads are not seen.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import runpy
import sys
import tempfile
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

PACKAGES = ("mmcon", "views")
FOLDERS = (*PACKAGES, "recipes", "tests", "benchmarks", "tools")
RECIPE = "recipes/imagenet_supcon.py"
SHAPED = {"Shaped", "Num", "Real", "Inexact", "Float", "BFloat", "Complex", "Integer", "Int", "UInt", "Bool"}
STEPS_BEFORE = 2  # the first steps also import modules and fill caches
Function = ast.FunctionDef | ast.AsyncFunctionDef


class File(NamedTuple):
    """A Python file: its path below the root, text, number of lines, and all nodes of its syntax tree."""

    path: Path
    text: str
    lines: int
    nodes: list[ast.AST]


def files_of(root: Path) -> list[File]:
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    read = [(path.relative_to(root), path.read_text(encoding="utf-8")) for path in paths]
    return [File(path, text, len(text.splitlines()), [*ast.walk(ast.parse(text))]) for path, text in read]


def folder_of(path: Path) -> str:
    """The top folder; under mmcon, also the folder within it."""
    return "/".join(path.parent.parts[: 2 if path.parts[0] == "mmcon" else 1])


def inside(files: list[File], *folders: str) -> list[File]:
    return [file for file in files if file.path.parts[0] in folders]


def functions_of(files: list[File]) -> list[tuple[int, str, Function]]:
    """The functions and methods of files: how many lines, in which file, and the definition."""
    found = [(str(file.path), node) for file in files for node in file.nodes if isinstance(node, Function)]
    return [((node.end_lineno or 0) - node.lineno + 1, path, node) for path, node in found]


def comments_of(file: File) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(file.text).readline)
    found = [token.string.lstrip("#! ") for token in tokens if token.type == tokenize.COMMENT]
    return sum(not comment.startswith(("noqa", "type:", "pyright:", "fmt:")) for comment in found)


def tensors_of(function: Function) -> Iterator[bool]:
    """For each parameter and result whose annotation mentions a tensor, whether a jaxtyping form gives its shape."""
    given = [node.annotation for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    for annotation in filter(None, [*given, function.returns]):
        quoted = ast.parse(str(annotation.value)) if isinstance(annotation, ast.Constant) else None
        nodes = [*ast.walk(quoted or annotation)]
        names = {id(node): getattr(node, "attr", getattr(node, "id", "")) for node in nodes}  # torch.Tensor is Tensor
        if "Tensor" in names.values():
            forms = [names[id(node.value)] for node in nodes if isinstance(node, ast.Subscript)]
            yield any(form.rstrip("0123456789") in SHAPED for form in forms)


def table(head: str, rows: list[list[Any]]) -> str:
    names = head.split(" | ")
    rule = ["---" if name in (names[0], "where") else "--:" for name in names]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [names, rule, *rows])


def folder_row(name: str, files: list[File]) -> list[Any]:
    lines, comments = sum(file.lines for file in files), sum(map(comments_of, files))
    shaped = [has for _, _, function in functions_of(inside(files, *PACKAGES)) for has in tensors_of(function)]
    share = f"{sum(shaped)} of {len(shaped)} ({sum(shaped) / len(shaped):.0%})" if shaped else ""
    return [name, len(files), lines, f"{100 * comments / max(1, lines):.1f}", share]


def by_folder(files: list[File]) -> str:
    folders = dict.fromkeys(folder_of(file.path) for file in files)
    groups = {folder: [file for file in files if folder_of(file.path) == folder] for folder in folders}
    groups |= {"the package": inside(files, *PACKAGES), "all": files}
    rows = [folder_row(name, group) for name, group in groups.items()]
    return table("folder | files | lines | comments per 100 lines | tensors with a shape", rows)


def longest(files: list[File]) -> str:
    rows: list[list[Any]] = []
    for folder in (*PACKAGES, "recipes"):
        if own := inside(files, folder):
            file = max(own, key=lambda file: file.lines)
            rows.append([f"file in {folder}", file.path, file.lines])
            mains = [found for found in functions_of(own) if folder == "recipes" and found[2].name == "main"]
            others = [found for found in functions_of(own) if found not in mains]
            for title, some in (("`main`", mains), ("function", others)):
                for count, path, function in sorted(some, key=lambda found: found[0])[-1:]:
                    rows.append([f"{title} in {folder}", f"{path}: {function.name}", count])
    return table("longest | where | lines", rows)


def collisions(files: list[File]) -> str:
    names, classes = defaultdict(set), defaultdict(list)
    for file in inside(files, *PACKAGES):
        path = file.path.parent if file.path.name == "__init__.py" else file.path
        names[path.stem].add(str(path))
        for node in file.nodes:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(str(file.path))
    plurals = {f"`{name}` and `{name}s`": names[name] | names[f"{name}s"] for name in [*names] if f"{name}s" in names}
    twice = {f"class `{name}`": paths for name, paths in classes.items() if len(paths) > 1}
    head = f"names that differ by a plural s: {len(plurals)}; class names defined twice: {len(twice)} | where"
    return table(head, [[name, ", ".join(sorted(paths))] for name, paths in sorted((plurals | twice).items())])


class StepProfiled(BaseException):
    """Ends the recipe once a step was profiled."""


def profile_step(root: Path) -> str:
    sys.path[:0] = [str(root), *(str(package.parent) for package in root.glob("views/mmcon_views"))]
    import mmcon

    if root not in Path(mmcon.__file__).resolve().parents:
        raise SystemExit(f"mmcon was imported from {mmcon.__file__}, which is not under {root}")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for points in project["entry-points"].values():  # the environment may be that of another checkout
        for module in points.values():
            importlib.import_module(module)
    entered, ran, steps, run_step = [], [], 0, mmcon.Run.step
    folders = tuple(f"{root / folder}/" for folder in (*PACKAGES, "recipes"))

    def watch(frame: FrameType, event: str, _: Any) -> None:
        into = {"call": frame, "return": frame.f_back}.get(event)
        if into is not None and (file := into.f_code.co_filename).startswith(folders):
            ran.append(file)
            entered.extend([file] if event == "call" else [])

    def step(self: Any, loss: Any) -> None:
        nonlocal steps
        run_step(self, loss)
        sys.setprofile(None)
        steps += 1
        if steps > STEPS_BEFORE:
            raise StepProfiled
        sys.setprofile(watch if steps == STEPS_BEFORE else None)

    mmcon.Run.step = step
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StepProfiled):
        sys.argv = [RECIPE, "--tiny", "--workers", "0", "--cpu", "--output-dir", f"{folder}/run"]
        runpy.run_path(str(root / RECIPE), run_name="__main__")
    passed = Counter(folder_of(Path(file).relative_to(root)) for file in set(entered))
    changes, with_returns = (sum(a != b for a, b in pairwise(files)) for files in (entered, ran))
    rows = [*map(list, sorted(passed.items())), ["all files", passed.total()]]
    return table("a step passes | files", [*rows, ["changes of file", changes], ["with returns", with_returns]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Print figures of the source tree.")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the tree (this checkout)")
    parser.add_argument("--step", action="store_true", help="also profile one training step of the reference recipe")
    arguments = parser.parse_args()
    root, files = arguments.root.resolve(), files_of(arguments.root.resolve())
    recipes = table("recipe | lines", [[file.path.name, file.lines] for file in inside(files, "recipes")])
    print("\n\n".join([by_folder(files), longest(files), collisions(files), recipes]))
    if arguments.step:
        print(f"\n{profile_step(root)}")


if __name__ == "__main__":
    main()
