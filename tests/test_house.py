"""The rules of the source tree: which module may import which, how long files and functions are, and their names."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MMCON = sorted((ROOT / "mmcon").rglob("*.py"))
VIEWS = sorted((ROOT / "views" / "mmcon_views").rglob("*.py"))
SIZED = [*MMCON, *VIEWS, *sorted((ROOT / "recipes").rglob("*.py"))]

LONGEST_FILE, LONGEST_FUNCTION = 350, 60

# The layers, from the bottom. A module imports only modules of its own layer or of lower ones.
LAYERS = [
    ["mmcon.errors", "mmcon.openmp_wait_policy"],
    ["mmcon.files"],
    ["mmcon.portable_math"],
    ["mmcon.random"],
    ["mmcon.views"],
    ["mmcon.registry"],
    ["mmcon.batch"],
    ["mmcon.distributed.collectives"],
    ["mmcon.media"],
    ["mmcon.sources"],
    ["mmcon.samplers"],
    ["mmcon.loading"],
    ["mmcon.models"],
    ["mmcon.affinity"],
    ["mmcon.losses"],
    ["mmcon.distributed"],
    ["mmcon.objective"],
    # The run page reads files alone, so that a run can write it.
    ["mmcon.report.vega", "mmcon.report.charts", "mmcon.report.result_tables", "mmcon.report.run_files"],
    ["mmcon.report.run_page"],
    ["mmcon.training"],
    ["mmcon.evaluation"],
    ["mmcon.inference"],
    ["mmcon.report"],
    ["mmcon.testing", "mmcon.operations"],
    ["mmcon.cli"],
]
VIEWS_MAY_IMPORT = (
    "mmcon.portable_math",
    "mmcon.random",
    "mmcon.views",
    "mmcon.media",
    "mmcon.registry",
    "mmcon.errors",
)


def module_of(path):
    parts = path.relative_to(ROOT / "views" if (ROOT / "views") in path.parents else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Every module that a file imports, also inside functions, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(module, package):
    return module == package or module.startswith(package + ".")


def layer_of(module):
    return next((i for i, packages in enumerate(LAYERS) if any(inside(module, package) for package in packages)), None)


@pytest.mark.parametrize("path", MMCON, ids=module_of)
def test_a_module_imports_only_lower_layers(path):
    module = module_of(path)
    if module == "mmcon" or module.startswith("mmcon.sources.bundled"):
        return
    own = layer_of(module)
    assert own is not None, f"{module} has no layer: add it to LAYERS"
    for other in imports_of(path):
        assert not inside(other, "mmcon_views"), f"{module} imports {other}"
        assert not inside(other, "recipes"), f"{module} imports {other}"
        if other != "mmcon" and inside(other, "mmcon") and layer_of(other) is not None:
            assert layer_of(other) <= own, f"{module} imports {other}, which is in a higher layer"


@pytest.mark.parametrize("path", VIEWS, ids=module_of)
def test_built_in_views_import_only_the_contract_and_media(path):
    for other in imports_of(path):
        if inside(other, "mmcon") and other != "mmcon":
            assert any(inside(other, module) for module in VIEWS_MAY_IMPORT), f"{module_of(path)} imports {other}"
        assert not inside(other, "recipes")


def test_losses_import_neither_modalities_nor_ranks():
    for path in (ROOT / "mmcon" / "losses").rglob("*.py"):
        for other in imports_of(path):
            for package in ("mmcon.batch", "mmcon.sources", "mmcon.distributed", "mmcon.models", "mmcon.media"):
                assert not inside(other, package), f"{module_of(path)} imports {other}"


def uses_of(path, package):
    """Every attribute and import of a package in a file, such as `torch.distributed.all_reduce`."""
    found = {name for name in imports_of(path) if inside(name, package)}
    chains = (ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))
    return found | {chain for chain in chains if inside(chain, package)}


def test_one_package_communicates_between_ranks():
    users = {module_of(path) for path in [*MMCON, *VIEWS] if uses_of(path, "torch.distributed")}
    assert not {module for module in users if not inside(module, "mmcon.distributed")}


def test_two_modules_use_accelerate():
    users = {module_of(path) for path in [*MMCON, *VIEWS] if uses_of(path, "accelerate")}
    assert users <= {"mmcon.training.run", "mmcon.training.checkpoint"}


@pytest.mark.parametrize("path", SIZED, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    """Files have up to 350 lines; functions 60, docstring included, and without a limit a recipe's `main`."""
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    recipe = "recipes" in path.parts
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(f.name, f.end_lineno - f.lineno + 1) for f in functions if not (recipe and f.name == "main")]
    assert not [(name, lines) for name, lines in lengths if lines > LONGEST_FUNCTION]


@pytest.mark.parametrize("path", SIZED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_begins_with_a_docstring(path):
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    assert len(first) >= 10


def test_no_class_name_is_defined_twice():
    modules_of_class = defaultdict(list)
    for path in [*MMCON, *VIEWS]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                modules_of_class[node.name].append(module_of(path))
    assert not {name: modules for name, modules in modules_of_class.items() if len(modules) > 1}


def test_no_two_module_names_differ_by_a_plural_s():
    names = defaultdict(set)
    for path in [*MMCON, *VIEWS]:
        names[module_of(path).rpartition(".")[2]].add(module_of(path))
    assert not {name: names[name] | names[f"{name}s"] for name in [*names] if f"{name}s" in names}


def test_undefined_names_are_found_in_code_and_in_annotations(tmp_path):
    """The axes of jaxtyping look like forward references; one axis alone has a leading space, which ruff skips."""
    file = tmp_path / "snippet.py"
    file.write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n\n\n"
        'def f(x: Float[Tensor, "b d"], y: Float[Tensor, " b"], z: Undefined1) -> "Undefined2":\n'
        "    return undefined3\n"
    )
    command = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--output-format=concise"]
    run = subprocess.run([*command, file], capture_output=True, text=True)
    assert set(re.findall(r"F821 Undefined name `(\w+)`", run.stdout)) == {"Undefined1", "Undefined2", "undefined3"}


def test_no_conflict_markers():
    texts = [*MMCON, *VIEWS, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.py")]
    for path in texts:
        marks = [line for line in path.read_text().splitlines() if line[:8] in ("<<<<<<< ", ">>>>>>> ")]
        assert not marks, f"{path}: {marks}"


def test_nothing_imports_a_recipe():
    for path in [*MMCON, *VIEWS, *(ROOT / "recipes").glob("*.py")]:
        assert not any(inside(m, "recipes") for m in imports_of(path))
