"""Hooks of `mkdocs build`: pages of files outside of docs/, the API reference, and fences that the tests leave out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Pages of the site by the file that they are made from.
OUTSIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
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
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show the blocks that the tests leave out as others, and keep links to files outside of docs/ in the site."""
    return _links_in_the_site(markdown.replace("```python no-run", "```python"))


def _links_in_the_site(text: str) -> str:
    for page, source in OUTSIDE.items():
        text = re.sub(rf"\]\((\.\./)?{re.escape(source)}", f"]({page}", text)
    return re.sub(r"\]\(docs/", "](", text)
