"""Published settings by name: YAML files beside the recipes, one folder a recipe."""

from __future__ import annotations

from pathlib import Path

from mmcon.errors import ConfigError, nearest


def preset_file(recipe: str | Path, name: str) -> Path:
    """The file of a preset, from `presets/RECIPE/` beside the recipe, else from those that came with the wheel.

    Args:
        recipe: the recipe's own file.
        name: the preset's name; a path to a YAML file is taken as it is.
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
