"""Hooks of `mkdocs build`: pages of files outside of docs/, the API reference, and fences that the tests leave out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Pages of the site by the file that they are made from.
OUTSIDE = {
    "overview.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
# Pages of the reference: a module, with all of its `__all__`, and functions that have the name of their module.
REFERENCE = {
    "mmcon": (),
    "mmcon.losses": ("mmcon.losses.siglip.siglip", "mmcon.losses.rank_n_contrast.rank_n_contrast"),
    "mmcon.losses.presets": (),
    "mmcon.affinity": (),
    "mmcon.views": (),
    "mmcon.random": (),
    "mmcon.inference": (),
    "mmcon.testing": (),
    "mmcon.errors": (),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_links_in_the_site(text)))
    for module, more in REFERENCE.items():
        blocks = [f"::: {module}\n    options:\n      show_root_heading: false"]
        blocks += [f"::: {function}\n    options:\n      show_root_heading: true" for function in more]
        text = "\n\n".join([f"# {module}", *blocks])
        files.append(File.generated(config, f"reference/{module}.md", content=text))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=_page_of(notebook)))
    return files


def _page_of(notebook: Path) -> str:
    """A notebook as Markdown: its texts, its code, and the texts and pictures that it printed."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if output["output_type"] == "stream" and output["name"] == "stdout":
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif picture:
                parts.append(f"![The picture that this cell draws](data:image/png;base64,{''.join(picture).strip()})")
    return "\n\n".join([*parts, f"[The notebook]({notebook.name}), to run and change."])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show the blocks that the tests leave out as others, and keep links to files outside of docs/ in the site."""
    return _links_in_the_site(markdown.replace("```python no-run", "```python"))


def _links_in_the_site(text: str) -> str:
    for page, source in OUTSIDE.items():
        text = re.sub(rf"\]\((\.\./)?{re.escape(source)}", f"]({page}", text)
    # Folders of code are not on the site.
    text = re.sub(r"\[([^\]]*)\]\(([\w/]+)\)", lambda m: m[0] if not (ROOT / m[2]).is_dir() else f"`{m[1]}`", text)
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((notebooks/\w+)\.ipynb", r"](\1.md", text)
