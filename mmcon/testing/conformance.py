"""`conform`: put registered components, such as those of a plug-in, through the laws of their kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from mmcon.errors import InputError, MmconError, UnknownNameError, nearest
from mmcon.media import TextHandle
from mmcon.models.encoders import create_encoder
from mmcon.random import Keys, keys
from mmcon.registry import Entry, Kind, create, create_view, entries, supported_options
from mmcon.sources.base import Source
from mmcon.sources.factory import create_source
from mmcon.testing.encoder_laws import check_encoder
from mmcon.testing.laws import LawBroken, check_sampler, check_view
from mmcon.testing.source_laws import check_source
from mmcon.views import Chain, ViewGenerator, collate

ROWS = 4
#: The side of images, for views and encoders that have an option for it.
SIDE = 32
#: Bundled samples by modality, where the plug-in has no source of it, and their options: views of audio take 16 kHz.
_BUNDLED: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("samples/emoji", {"split": "test"}),
    "audio": ("samples/speech", {"split": "test", "rate_hz": 16_000}),
    "text": ("samples/emoji-names", {"split": "test"}),
    "video": ("samples/motion", {"split": "test"}),
}
#: The arguments of samplers: sixteen classes of four samples each.
_BATCHES = {"labels": torch.arange(64) // 4, "batch_size": 8}


@dataclass(frozen=True)
class Conformance:
    """What the laws say of a component.

    Attributes:
        kind: view, sampler, encoder or source.
        name: the registered name.
        violation: the law that does not hold and the observed behavior, or the error of the component; empty if all
            laws hold.
    """

    kind: str
    name: str
    violation: str = ""

    def __str__(self) -> str:
        line = f"{'FAIL' if self.violation else 'ok':4}  {self.kind:7}  {self.name}"
        return f"{line}\n      {self.violation}" if self.violation else line


def conform(name: str, *, data: str | None = None, options: Mapping[str, Any] | None = None) -> Iterator[Conformance]:
    """Put components through the laws of their kind, one after another.

    Views and encoders get samples of `data`, else of the first source of their modality among the components, else
    bundled ones. Encoders get the views of `MODALITY/plain` where that is registered.

    Args:
        name: a registered name; the first part of names, such as "acme" of "acme/tint"; or the module that registered
            them.
        data: a source by name or path.
        options: of the components that take them.

    Raises:
        UnknownNameError: nothing has the name.
        InputError: no component takes an option.
    """
    found = _selected(name)
    taken = [supported_options(entry.kind, entry.name, options or {}) for entry in found]
    lost = sorted(set(options or {}) - {option for own in taken for option in own})
    if lost:
        known = sorted({option for entry in found for option in entry.options})
        raise InputError(
            f"conform({name!r})", expected=f"options among {known}", got=str(lost), fix=nearest(lost[0], known)
        )
    for entry, own in zip(found, taken, strict=True):
        yield Conformance(entry.kind, entry.name, _violation(entry, found, data, own))


def _selected(name: str) -> list[Entry]:
    known = [entry for kind in get_args(Kind) for entry in entries(kind)]
    module = name.replace("-", "_")
    found = [
        entry for entry in known
        if entry.name == name or entry.name.startswith(f"{name}/") or f"{entry.origin}.".startswith(f"{module}.")
    ]  # fmt: skip
    if not found:
        names = sorted({entry.name for entry in known} | {entry.name.partition("/")[0] for entry in known})
        raise UnknownNameError(
            f"conform({name!r})",
            expected="a registered name, the first part of one, or the module of an installed plug-in",
            got=repr(name),
            fix=f"install the plug-in (uv pip install -e FOLDER), or {nearest(name, names)}",
        )
    return found


def _violation(entry: Entry, found: Sequence[Entry], data: str | None, options: dict[str, Any]) -> str:
    checks: dict[str, Callable[..., None]] = {"view": _view, "encoder": _encoder}
    try:
        if entry.kind == "sampler":
            known = supported_options("sampler", entry.name, _BATCHES) | options
            check_sampler(lambda seed: create("sampler", entry.name, seed=seed, **known))
        elif entry.kind == "source":
            _source(entry, options)
        else:
            checks[entry.kind](entry, _samples(entry.modality, found, data), found, options)
    except (LawBroken, MmconError) as error:
        return str(error).replace("\n", "\n      ")
    # Code of a third party may fail in any way, and the components after this one are still of interest.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _source(entry: Entry, options: dict[str, Any]) -> None:
    splits = ("train", "test") if "split" in entry.options else ("all",)

    def make(split: str) -> Source:
        return create("source", entry.name, **supported_options("source", entry.name, {"split": split}), **options)

    check_source(make, splits=splits)


def _samples(modality: str, found: Sequence[Entry], data: str | None) -> Source:
    """The source of the samples for a view or an encoder."""
    if data:
        return create_source(data, modality=None if modality in ("any", "") else modality)
    own = [
        entry.name
        for entry in found
        if entry.kind == "source" and modality in (entry.modality, "any") and not _required(entry)
    ]
    name, options = (own[0], {}) if own else _BUNDLED.get("image" if modality == "any" else modality, ("", {}))
    if not name:
        got = f"no source of modality {modality!r} with it"
        raise InputError("conform", expected="samples for its views and encoders", got=got, fix="--data NAME_OR_PATH")
    return create_source(name, **options)


def _required(entry: Entry) -> list[str]:
    """The options without a default."""
    return [p.name for p in entry.options.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _sized(kind: Kind, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a component, and the size of the images if it has an option for it."""
    return supported_options(kind, name, {"size": SIDE}) | dict(options)


def _view(entry: Entry, source: Source, found: Sequence[Entry], options: dict[str, Any]) -> None:
    view = create_view(entry.name, **_sized("view", entry.name, options))
    samples, table = source.open(torch.arange(ROWS)), keys(seed=0, sample=source.ids[:ROWS])
    ragged = view.children()[0][1].ragged
    batch = samples if ragged else _batch(view, samples, table, source.modality)
    if ragged and source.modality == "text" and _leaves_texts(view(batch, table)):
        view = Chain(view, create_view("text/tokens"))
    check_view(view, batch)


def _batch(view: ViewGenerator, samples: Any, table: Keys, modality: str) -> Any:
    """A batch for a view that does not take single samples, as the views before it would leave it."""
    if modality == "text":
        return collate(create_view("text/plain")(samples, table))
    if modality != "audio":
        return _floats(collate(samples))
    waveforms = collate(create_view("audio/crop", window_seconds=1.0)(samples, table))
    try:
        copy.deepcopy(view)(waveforms, table)  # a copy, since a view may remember samples
    except (InputError, KeyError):
        return collate(create_view("audio/plain", window_seconds=1.0)(samples, table))  # it takes spectrograms
    return waveforms


def _leaves_texts(views: Any) -> bool:
    first = views[0] if isinstance(views, list) else None
    return isinstance(first, TextHandle | str)


def _encoder(entry: Entry, source: Source, found: Sequence[Entry], options: dict[str, Any]) -> None:
    samples, plain = source.open(torch.arange(ROWS)), f"{source.modality}/plain"
    if any(known.name == plain for known in entries("view")):
        view = create_view(plain, **_sized("view", plain, {}))
        views = collate(view(samples, keys(seed=0, sample=source.ids[:ROWS])))
    else:
        views = _floats(collate(samples))
    images = {"image_size": views.shape[-1], "in_channels": views.shape[1]} if source.modality == "image" else {}
    check_encoder(lambda: create_encoder(entry.name, modality=source.modality, **{**images, **options}), views)


def _floats(batch: Any) -> Any:
    """Images of whole numbers as floats in [0, 1], as decoding views leave them."""
    return batch.float() / 255 if isinstance(batch, Tensor) and batch.dtype == torch.uint8 else batch
