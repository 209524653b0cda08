"""The preprocessing of a saved model: by modality, how media are decoded and which evaluation views are made of them.

It is saved as `preprocessing.json` beside the weights. Views are saved as registered names with their options, so that
loading runs no code but that of registered components.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmcon.errors import CheckpointError, ConfigError, MmconError
from mmcon.files import replace_file
from mmcon.models.saving import inside_folder
from mmcon.registry import create_view
from mmcon.views import Chain, ViewGenerator

FILE, VERSION = "preprocessing.json", 1

Spec = dict[str, Any]


@dataclass(frozen=True)
class Preprocessing:
    """How the media of one modality become views.

    Attributes:
        views: the evaluation views of a sample, as `view_spec` describes them.
        media: of images, the `channels`; of audio, the `rate_hz` and the `channels`; of texts, the names of the
            `columns`.
        combine: how the features of several views become one row: their mean, or the unit rows of all views side by
            side, for a model with an encoder for each view.
        folder: the folder of the model, in which saved tokenizers are.
    """

    views: tuple[Spec, ...]
    media: dict[str, Any] = field(default_factory=dict)
    combine: Literal["mean", "concatenate"] = "mean"
    folder: Path = Path()

    def generators(self) -> list[ViewGenerator]:
        """The view generators; equal views are one generator, which is drawn anew for each."""
        made: dict[str, ViewGenerator] = {}
        for spec in self.views:
            key = json.dumps(spec, sort_keys=True)
            made[key] = made.get(key) or create_from_spec(spec, self.folder)
        return [made[json.dumps(spec, sort_keys=True)] for spec in self.views]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `preprocessing.json`."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def view_spec(generator: ViewGenerator) -> Spec:
    """A view generator as plain values: its registered name and options, or the parts of a chain of such.

    Raises:
        ConfigError: a generator was not built by `mmcon.create_view`.
    """
    if generator.made_from is not None:
        return {"view": generator.made_from["name"], "options": _plain(generator.made_from["options"])}
    if isinstance(generator, Chain):
        named = [part if isinstance(part, tuple) else ("", part) for part in generator.parts]
        return {"chain": [{"as": name, **view_spec(part)} for name, part in named], "name": generator.name}
    raise ConfigError(
        "preprocessing",
        expected="views that mmcon.create_view built, or chains of them",
        got=type(generator).__name__,
        fix="register the generator with mmcon.register_view, and build it by its name",
    )


def create_from_spec(spec: Mapping[str, Any], folder: Path) -> ViewGenerator:
    """The view generator that `view_spec` described.

    Args:
        spec: plain values.
        folder: the folder of the model; options that begin with "./" are paths inside it.
    """
    if "chain" in spec:
        parts = ((part["as"], create_from_spec(part, folder)) for part in spec["chain"])
        return Chain(*((name, part) if name else part for name, part in parts), name=spec.get("name", ""))
    return create_view(spec["view"], **{name: _option(value, folder) for name, value in spec["options"].items()})


def write_preprocessing(
    folder: Path, by_modality: Mapping[str, Preprocessing], *, temperature: float | None = None
) -> None:
    """Write `preprocessing.json`: the preprocessing by modality, and the temperature of the training."""
    content = preprocessing_content(by_modality, temperature=temperature)
    replace_file(folder / FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def preprocessing_content(
    by_modality: Mapping[str, Preprocessing], *, temperature: float | None = None
) -> dict[str, Any]:
    """The content of `preprocessing.json`."""
    modalities = {name: own.to_json() for name, own in by_modality.items()}
    return {"version": VERSION, "modalities": modalities, "temperature": temperature}


def read_preprocessing(folder: Path) -> tuple[dict[str, Preprocessing], float | None] | None:
    """The preprocessing of a saved model by modality, and its temperature; None for a model that was saved without it.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """
    if not (folder / FILE).is_file():
        return None
    return parse_preprocessing(lambda: json.loads((folder / FILE).read_text(encoding="utf-8")), folder)


def parse_preprocessing(read: Callable[[], Any], folder: Path) -> tuple[dict[str, Preprocessing], float | None]:
    """The preprocessing by modality and the temperature, from the content of `preprocessing.json`.

    Args:
        read: returns the content.
        folder: in which the tokenizers are.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    where, expected = f"load {str(folder)!r}", f"a complete {FILE} of version {VERSION}"
    try:
        content = read()
        if content["version"] != VERSION:
            got, fix = f"version {content['version']!r}", "load it with the version of mmcon that saved it"
            raise CheckpointError(where, expected=expected, got=got, fix=fix)
        temperature = content.get("temperature")
        by_modality = {name: _preprocessing(own, folder) for name, own in content["modalities"].items()}
        return by_modality, None if temperature is None else float(temperature)
    except MmconError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        fix = "save the model again with mmcon.inference.save_model"
        raise CheckpointError(where, expected=expected, got=got, fix=fix) from error


def _preprocessing(content: Mapping[str, Any], folder: Path) -> Preprocessing:
    if content["combine"] not in ("mean", "concatenate"):
        raise ValueError(f"combine {content['combine']!r}")
    own = Preprocessing(tuple(content["views"]), dict(content["media"]), content["combine"], folder)
    own.generators()
    return own


def _plain(value: Any) -> Any:
    """Options as JSON has them: tuples as lists, paths as texts."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ConfigError(
        "preprocessing",
        expected="options of numbers, texts, and lists of them",
        got=type(value).__name__,
        fix="register a view that makes the object itself",
    )


def _option(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return tuple(_option(inner, folder) for inner in value)
    return inside_folder(value, folder)
