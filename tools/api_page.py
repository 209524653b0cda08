"""Write docs/api.md: a table of the public names, each with its kind and the first line of its docstring.

uv run python tools/api_page.py
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
# Public modules, and the sentence above the table of each.
MODULES = {
    "mmcon": "Views, samplers, encoders and sources have the same four verbs: register, create, list, describe.",
    "mmcon.losses": "Losses of embeddings and weights.",
    "mmcon.losses.presets": "Published losses as settings of `mmcon.Objective`: `Objective(**presets.simclr())`.",
    "mmcon.affinity": "Positive weights of pairs of samples; they are combined with `*` and `+`.",
    "mmcon.testing": "Laws for the tests of a plug-in.",
    "mmcon.errors": "What the package raises and warns.",
}
HEAD = """# Public names

Names in these tables keep their meaning between minor versions; [the changelog](../CHANGELOG.md) lists changes.
Everything else may change. `tools/api_page.py` writes this page from the docstrings.
"""


def public_names(module: ModuleType) -> list[str]:
    """The names of `__all__`, or the public names that the module itself defines; without aliases of types."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return sorted(name for name in names if kind_of(getattr(module, name)))


def kind_of(value: Any) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "module" if inspect.ismodule(value) else "function" if inspect.isfunction(value) else ""


def first_line(value: Any) -> str:
    text = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def table_of(name: str) -> str:
    module = importlib.import_module(name)
    lines = [f"## {name}", "", MODULES[name], "", "| name | kind | meaning |", "|---|---|---|"]
    for public in public_names(module):
        value = getattr(module, public)
        lines.append(f"| `{public}` | {kind_of(value)} | {first_line(value)} |")
    return "\n".join(lines)


def page() -> str:
    return "\n\n".join([HEAD.rstrip(), *map(table_of, MODULES)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
