"""Typed configurations: a dataclass, a YAML file over its defaults, and the command line over both."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from mmcon.errors import ConfigError, nearest
from mmcon.training.presets import preset_file, presets_of

C = TypeVar("C")

# What may change between a run and its continuation without changing what is computed at a step.
SAFE_CHANGES = frozenset(
    {"output_dir", "resume", "force", "max_steps", "workers", "log_every", "checkpoint_every", "keep", "trackers",
     "profile", "compile", "engine", "config", "on_nonfinite", "keep_best"}
)  # fmt: skip


def parse(
    kind: type[C], *, description: str = "", args: Sequence[str] | None = None, recipe: str | Path | None = None
) -> C:
    """Read a configuration: defaults, then `--preset NAME`, then `--config file.yaml`, then the other flags.

    Args:
        kind: a dataclass.
        description: what the help begins with.
        args: the words of the command line; by default the program's own.
        recipe: the file of the recipe whose presets `--preset` names.

    Raises:
        ConfigError: a file is missing, or holds a key that the configuration does not have.
    """
    words = list(sys.argv[1:] if args is None else args)
    preset, path = _take_option(words, "--preset") if recipe else None, _take_option(words, "--config")
    files = ([str(preset_file(recipe, preset))] if recipe and preset else []) + ([path] if path else [])
    values: dict[str, Any] = {}
    for file in files:
        for name, value in _read(Path(file)).items():
            before = values.get(name)
            both = isinstance(before, Mapping) and isinstance(value, Mapping)
            values[name] = {**before, **value} if both else value  # type: ignore[dict-item]
    default = from_mapping(kind, values, where=" + ".join(files)) if files else None
    if recipe:
        named = ", ".join(presets_of(recipe))
        description += f"\n\n--config FILE.yaml reads settings from a file; --preset NAME published ones: {named}."
    chosen = tyro.cli(kind, description=description, args=words, default=default)
    assert chosen is not None
    return chosen


def from_mapping(kind: type[C], values: Mapping[str, Any], *, where: str = "config") -> C:
    """Build a configuration from plain values; a key that it does not have is refused, the nearest ones named."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(
                f"config {where}", expected=f"keys of {kind.__name__}", got=repr(name), fix=nearest(name, list(fields))
            )
    hints = typing.get_type_hints(kind)
    return kind(**{name: _as_hinted(value, hints[name]) for name, value in values.items()})


def _as_hinted(value: Any, hint: Any) -> Any:
    """What YAML cannot write as itself: a tuple comes as a list, a path as text, a dataclass as a mapping."""
    if isinstance(value, Mapping) and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where=hint.__name__)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return value


def to_yaml(config: Any) -> str:
    """Write a configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(as_plain(config), sort_keys=False)


def as_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain values: paths as text, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config))  # type: ignore[call-overload]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name: (before, now)."""
    names = sorted(set(old) | set(new))
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def check_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, force: bool = False) -> dict[str, tuple[Any, Any]]:
    """Compare a run's configuration with that of its continuation.

    Returns:
        All differences.

    Raises:
        ConfigError: one of them would change what a step computes, and `force` is not set.
    """
    changed = differences(old, new)
    unsafe = {name: pair for name, pair in changed.items() if name not in SAFE_CHANGES}
    if unsafe and not force:
        shown = ", ".join(f"{name}: {was!r} -> {now!r}" for name, (was, now) in unsafe.items())
        raise ConfigError(
            "--resume",
            expected="the settings that the run began with",
            got=shown,
            fix="give the old settings, start another --output-dir, or insist with --force",
        )
    return changed


def _take_option(words: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` from the words and return the value."""
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            value = words[i + 1]
            del words[i : i + 2]
            return value
        if word.startswith(name + "="):
            del words[i]
            return word.partition("=")[2]
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--config", expected="a YAML file", got=f"{path}: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError("--config", expected="a YAML mapping of settings", got=f"{type(values).__name__} in {path}")
    return values
