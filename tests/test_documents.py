"""The documents: their Python blocks run, their links lead to files, and the README keeps its length.

The blocks of a page run as one program, in order, in an empty folder that holds a small trained model. A block that
begins with ```python no-run is left out: it needs the hub.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from inference_cases import image_model, image_text_model, save_pictures

import mmcon
from mmcon.cli import main as mmcon_command
from mmcon.evaluation.calibrated_probe import fit_calibrated_probe
from mmcon.inference import save_model
from mmcon.sources.base import Subset

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
RUN = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.parent != ROOT else [])
    for page in [*PAGES, *NOTEBOOKS]
]
# Pages with a block that does not run, since it downloads from the hub.
HUB_PAGES = ["encoders.md", "sharing.md"]


def test_notebooks_have_outputs_without_errors():
    for notebook in NOTEBOOKS:
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        outputs = [output["output_type"] for cell in cells for output in cell["outputs"]]
        assert "stream" in outputs
        assert "error" not in outputs
        assert all(cell["execution_count"] for cell in cells), f"{notebook.name}: run it as CONTRIBUTING.md says"


def code_of(page):
    """The Python blocks of a page, or the code of a notebook, as one program."""
    if page.suffix != ".ipynb":
        return program_of(page.read_text())
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def program_of(text):
    """The Python blocks of a page as one program, in which every line has the number that it has in the page."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line[3:].strip() == "python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a few photos, and with untrained models of small images at the places of trained ones."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", image_size=28, in_channels=1)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=32)})
    source, views = mmcon.create_source("samples/fashion", split="test"), [mmcon.create_view("image/plain", size=28)]
    few, place = Subset(source, range(200)), folder / "runs" / "imagenet_supcon" / "model"
    saved = mmcon.load(save_model(model, place, views={"image": views}, source=source))
    features = saved.encode_source(few, normalize=False)
    fit_calibrated_probe(features, source.classes, l2=0.1).save(place, "image")
    for name in ("imagenet_simclr", "imagenet_triplet"):
        image_model(folder / "runs" / name / "model")
    image_text_model(folder / "runs" / "image_text" / "model")
    pictures = save_pictures(folder / "photos", 40)
    rows = [f"{picture.relative_to(folder)},the name of picture {i}" for i, picture in enumerate(pictures)]
    (folder / "pairs.csv").write_text("\n".join(["image,name", *rows]))
    with contextlib.chdir(folder):
        for modality, flags in (("image", []), ("text", ["--option", "id_column=image"])):
            table = "embed", "runs/image_text", "pairs.csv", "--modality", modality, "--output", f"{modality}s.parquet"
            assert mmcon_command([*table, *flags]) == 0
    return folder


@pytest.mark.parametrize("page", RUN)
def test_python_blocks_run(page, trained, tmp_path):
    program = code_of(page)
    if not program.strip():
        pytest.skip("no Python on this page")
    folder = tmp_path / "page"
    shutil.copytree(trained, folder)
    script = folder / f"{page.stem.replace('-', '_').lower()}_page.py"
    script.write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    run = subprocess.run(
        [sys.executable, script.name], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, f"{page.name}, line numbers as in the page:\n{run.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    compile(program_of(page.read_text()), str(page), "exec")


def test_a_program_keeps_the_line_numbers_of_its_page():
    blocks = "```python\na = 1\n```", "```python no-run\nb = 2\n```", "```bash\nls\n```", "```python\nc = a\n```"
    lines = program_of("\n".join(["# Title", *blocks])).splitlines()
    assert [(number, line) for number, line in enumerate(lines, 1) if line] == [(3, "a = 1"), (12, "c = a")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_navigation_of_the_site():
    def pages(entry):
        values = entry.values() if isinstance(entry, dict) else entry
        return [entry] if isinstance(entry, str) else [page for value in values for page in pages(value)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(listed)
    assert len(listed) == len(set(listed))


def test_the_page_of_installation_has_every_extra_and_no_other():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = (ROOT / "docs" / "install.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", listed, re.MULTILINE)) == set(extras)


def test_the_readme_is_short_runs_and_names_both_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "pip install uv && uv run accelerate launch recipes/imagenet_supcon.py" in text
    assert "pip install uv && uv run pytest -n 2" in text


def test_blocks_that_do_not_run_need_the_hub():
    assert [page.name for page in PAGES if "```python no-run" in page.read_text()] == HUB_PAGES
