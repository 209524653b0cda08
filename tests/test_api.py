"""The public names: all of them resolve, type checkers see the same ones, and docs/api.md lists them."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import mmcon

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
api_page = importlib.import_module("api_page")
sys.path.pop(0)


@pytest.mark.parametrize("name", sorted(mmcon.__all__))
def test_a_public_name_resolves(name):
    assert getattr(mmcon, name) is not None
    assert name in dir(mmcon)


@pytest.mark.parametrize("kind", ["view", "sampler", "encoder", "source"])
def test_every_kind_has_the_same_verbs(kind):
    assert {f"register_{kind}", f"create_{kind}", f"list_{kind}s", f"describe_{kind}"} <= set(mmcon.__all__)


def test_every_folder_of_the_package_is_an_attribute():
    folders = {file.parent.name for file in (ROOT / "mmcon").glob("*/__init__.py")} - {"cli"}
    assert folders <= set(mmcon._SUBMODULES)
    for name in mmcon._SUBMODULES:
        assert getattr(mmcon, name) is importlib.import_module(f"mmcon.{name}")
    with pytest.raises(AttributeError, match="no attribute 'not_there'"):
        _ = mmcon.not_there


def test_type_checkers_see_the_names_that_are_loaded():
    tree = ast.parse((ROOT / "mmcon" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: mmcon._MODULE_OF.get(name, "mmcon") for name in mmcon.__all__}


LAZY = """
import contextlib, sys, mmcon
from mmcon import cli
assert mmcon.__version__
for words in ([], ["--help"], ["train", "--help"], ["search", "--help"]):
    with contextlib.suppress(SystemExit):
        cli.main(words)
heavy = {"torch", "numpy", "timm", "pandas", "scipy", "numba", "PIL", "rich", "tyro"} & set(sys.modules)
assert not heavy, heavy
import mmcon.inference
heavy = {"torch._dynamo", "torch.distributed.tensor", "torchvision", "timm", "transformers", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_import_the_help_and_the_use_of_a_model_are_lazy(python):
    run = python(LAZY)
    assert run.returncode == 0, run.stderr


def test_the_page_lists_the_public_names():
    assert api_page.PAGE.read_text() == api_page.page(), "run `python tools/api_page.py` after a change of names"


@pytest.mark.parametrize("module", api_page.MODULES)
def test_every_public_name_has_a_docstring(module):
    home = importlib.import_module(module)
    assert [name for name in api_page.public_names(home) if not api_page.first_line(getattr(home, name))] == []
