"""The rules of the house, read off the imports: who may know whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MMCON = sorted((ROOT / "mmcon").rglob("*.py"))
VIEWS = sorted((ROOT / "views" / "mmcon_views").rglob("*.py"))

# Ground floor first: a room imports only rooms of its own line or of lines above it.
FLOORS = [
    ["mmcon.errors"],
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
    ["mmcon.training"],
    ["mmcon.evaluation"],
    ["mmcon.report"],
    ["mmcon.testing", "mmcon.operations"],
    ["mmcon.cli"],
]
VIEWS_MAY_IMPORT = ("mmcon.random", "mmcon.views", "mmcon.media", "mmcon.registry", "mmcon.errors")


def module_of(path):
    parts = path.relative_to(ROOT / "views" if (ROOT / "views") in path.parents else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Every module that a file imports, wherever in the file, but for what only type checkers see."""
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
            assert node.level == 0, f"{path}: imports say the whole name"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(module, package):
    return module == package or module.startswith(package + ".")


def floor_of(module):
    return next((i for i, rooms in enumerate(FLOORS) if any(inside(module, room) for room in rooms)), None)


@pytest.mark.parametrize("path", MMCON, ids=module_of)
def test_a_room_imports_only_what_stands_below_it(path):
    module = module_of(path)
    if module == "mmcon" or module.startswith("mmcon.sources.bundled"):
        return
    own = floor_of(module)
    assert own is not None, f"{module} has no floor: give it one in FLOORS"
    for other in imports_of(path):
        assert not inside(other, "mmcon_views"), f"{module} imports {other}"
        assert not inside(other, "recipes"), f"{module} imports {other}"
        if other != "mmcon" and inside(other, "mmcon") and floor_of(other) is not None:
            assert floor_of(other) <= own, f"{module} imports {other}, which stands above it"


@pytest.mark.parametrize("path", VIEWS, ids=module_of)
def test_views_know_the_ground_floor_alone(path):
    for other in imports_of(path):
        if inside(other, "mmcon") and other != "mmcon":
            assert any(inside(other, room) for room in VIEWS_MAY_IMPORT), f"{module_of(path)} imports {other}"
        assert not inside(other, "recipes")


def test_losses_know_neither_modalities_nor_processes():
    for path in (ROOT / "mmcon" / "losses").rglob("*.py"):
        for other in imports_of(path):
            for room in ("mmcon.batch", "mmcon.sources", "mmcon.distributed", "mmcon.models", "mmcon.media"):
                assert not inside(other, room), f"{module_of(path)} imports {other}"


def test_one_room_talks_to_other_processes():
    users = {module_of(p) for p in [*MMCON, *VIEWS] if any(inside(m, "torch.distributed") for m in imports_of(p))}
    # The doctor only asks which ways between processes exist; the engine lays weights out over them.
    assert users <= {"mmcon.distributed.collectives", "mmcon.operations.doctor", "mmcon.distributed.fsdp"}


def test_one_room_knows_accelerate():
    users = {module_of(p) for p in [*MMCON, *VIEWS] if any(inside(m, "accelerate") for m in imports_of(p))}
    assert users <= {"mmcon.training.run", "mmcon.training.checkpoint"}


def test_no_merge_was_left_half_done():
    texts = [*MMCON, *VIEWS, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.py")]
    for path in texts:
        marks = [line for line in path.read_text().splitlines() if line[:8] in ("<<<<<<< ", ">>>>>>> ")]
        assert not marks, f"{path}: {marks}"


def test_nothing_imports_a_recipe():
    for path in [*MMCON, *VIEWS, *(ROOT / "recipes").glob("*.py")]:
        assert not any(inside(m, "recipes") for m in imports_of(path))


def test_no_global_random_state():
    """No call of the global generators of torch, NumPy or Python, but where they are restored or seeded by key."""
    allowed = {"mmcon.views.adapters", "mmcon.testing", "mmcon.training.run", "mmcon.training.gradient_caching"}
    calls = ("torch.manual_seed(", "np.random.seed(", "random.seed(", "torch.seed(")
    for path in [*MMCON, *VIEWS]:
        if module_of(path) not in allowed:
            text = path.read_text()
            assert not [call for call in calls if call in text], path


def test_the_readme_fits_two_screens_and_names_both_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "pip install uv && uv run accelerate launch recipes/imagenet_supcon.py" in text
    assert "pip install uv && uv run pytest" in text


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_python_in_documents_compiles(path):
    for block in path.read_text().split("```python\n")[1:]:
        compile(block.partition("```")[0], str(path), "exec")


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path):
    import re

    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
