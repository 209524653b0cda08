"""Presets: published settings of a recipe by name, as YAML files in `presets/` next to the recipe."""

from __future__ import annotations

from pathlib import Path

from mmcon.errors import ConfigError, nearest


def preset_file(recipe: str | Path, name: str) -> Path:
    """The file of a preset, from `presets/RECIPE/` beside the recipe or, if there is none, from the installed package.

    Args:
        recipe: the file of the recipe.
        name: the name of the preset; a path to a YAML file is returned unchanged.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = presets_of(recipe)
    if name not in known:
        fix = nearest(name, list(known)) if known else "give a file: --config settings.yaml"
        raise ConfigError("--preset", expected=f"one of {sorted(known)}", got=repr(name), fix=fix)
    return known[name]


def presets_of(recipe: str | Path) -> dict[str, Path]:
    """The presets of a recipe by name."""
    recipe = Path(recipe)
    packaged = Path(__file__).parents[1] / "recipe_files"
    for folder in (recipe.parent, packaged, packaged.parents[1] / "recipes"):
        found = sorted((folder / "presets" / recipe.stem).glob("*.yaml"))
        if found:
            return {file.stem: file for file in found}
    return {}
