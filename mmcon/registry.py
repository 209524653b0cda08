"""One registry for everything that can be named: view generators, samplers, encoders, sources.

Built-in and third-party components arrive the same way: an installed package names a module in the entry-point group
`mmcon.plugins`, and importing that module registers what it decorates. The modules are imported at the first look-up.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from mmcon.errors import DuplicateNameError, InputError, MmconError, UnknownNameError, nearest
from mmcon.views import FunctionView, ViewGenerator, takes_generator

GROUP = "mmcon.plugins"
Kind = Literal["view", "sampler", "encoder", "source"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered component.

    Attributes:
        name: what users say, such as "image/simclr".
        kind: view, sampler, encoder or source.
        modality: what it is for, or "any".
        factory: makes one from keyword options.
        origin: the module that registered it.
    """

    name: str
    kind: Kind
    modality: str
    factory: Callable[..., Any]
    origin: str

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The options of the factory, by name."""
        target = self.factory.__init__ if isinstance(self.factory, type) else self.factory
        return {name: p for name, p in inspect.signature(target).parameters.items() if name not in ("self", "name")}

    def describe(self) -> str:
        """Name, modality, options with their defaults, and the documentation."""
        options = [
            f"  {p.name}" + ("" if p.default is p.empty else f" = {p.default!r}")
            for p in self.options.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        lines = [f"{self.name}  ({self.kind}, {self.modality}; from {self.origin})", inspect.getdoc(self.factory) or ""]
        return "\n".join(lines + (["Options:", *options] if options else ["No options."]))


_entries: dict[tuple[Kind, str], Entry] = {}


def _register(kind: Kind, name: str, modality: str) -> Callable[[F], F]:
    def decorate(target: F) -> F:
        if (kind, name) in _entries:
            known = _entries[kind, name]
            raise DuplicateNameError(
                f"register_{kind}({name!r})",
                expected="a name that is not taken",
                got=f"{name!r}, registered by {known.origin}",
                fix="choose another name, such as your package's name and a slash before it",
            )
        _entries[kind, name] = Entry(name, kind, modality, _factory(kind, name, modality, target), target.__module__)
        return target

    return decorate


def _factory(kind: Kind, name: str, modality: str, target: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function f(x, generator) becomes a factory of its adapter; classes and factories serve as they are."""
    if kind == "view" and not isinstance(target, type) and takes_generator(target):

        def make() -> FunctionView:
            return FunctionView(target, modality=modality, name=name)

        make.__doc__ = target.__doc__
        return make
    return target


def register_view(name: str, *, modality: str) -> Callable[[F], F]:
    """Register a view generator under a name.

    Decorates a ViewGenerator class, a factory that returns one, or a plain function `f(x, generator)` of one sample.

    >>> @register_view("doc/brighten", modality="image")
    ... def brighten(x, generator):
    ...     return (x * torch.rand((), generator=generator)).clamp(0, 1)
    """
    return _register("view", name, modality)


def register_sampler(name: str, *, modality: str = "any") -> Callable[[F], F]:
    """Register a batch sampler: the view generator of modalities whose batches are chosen rather than augmented."""
    return _register("sampler", name, modality)


def register_encoder(name: str, *, modality: str) -> Callable[[F], F]:
    """Register an encoder: a class or factory of a module that maps a batch of views to features `n d`."""
    return _register("encoder", name, modality)


def register_source(name: str, *, modality: str) -> Callable[[F], F]:
    """Register a source: a class or factory of rows with stable ids."""
    return _register("source", name, modality)


@cache
def load_plugins() -> dict[str, Exception]:
    """Import every module of the entry-point group once; return those that failed, by entry-point name."""
    failed: dict[str, Exception] = {}
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
        try:
            point.load()
        except MmconError:
            raise
        except Exception as error:  # a third party's broken module must not take the others down
            failed[f"{point.name} = {point.value}"] = error
    return failed


def lookup(kind: Kind, name: str) -> Entry:
    """The entry of a name; an unknown one raises UnknownNameError with the nearest names."""
    failed = load_plugins()
    try:
        return _entries[kind, name]
    except KeyError:
        known = [n for k, n in _entries if k == kind]
        broken = "".join(f" Entry point {point!r} failed to load: {error!r}." for point, error in failed.items())
        raise UnknownNameError(
            f"create_{kind}({name!r})",
            expected=f"the name of a registered {kind}",
            got=f"{name!r}",
            fix=nearest(name, known) + broken,
        ) from None


def supported_options(kind: Kind, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The subset of `options` that the factory of a registered component accepts by name."""
    accepted = lookup(kind, name).options
    return {option: value for option, value in options.items() if option in accepted}


def create(kind: Kind, name: str, /, **options: Any) -> Any:
    """Make a registered component; an option that it does not take is refused with the ones that it does."""
    entry = lookup(kind, name)
    taken = entry.options
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        unknown = sorted(set(options) - set(taken))
        if unknown:
            raise InputError(
                f"create_{kind}({name!r})",
                expected=f"options among {sorted(taken)}",
                got=f"{unknown}",
                fix=nearest(unknown[0], list(taken)),
            )
    return entry.factory(**options)


def create_view(name: str, /, **options: Any) -> ViewGenerator:
    """Make a view generator by its registered name.

    Raises:
        UnknownNameError: the name is not registered.
        InputError: an option is not one of the generator's.
    """
    view = create("view", name, **options)
    if not view.name:
        view.name = name
    return view


def entries(kind: Kind, modality: str | None = None) -> list[Entry]:
    """The registered components of a kind, by name; those for any modality stand with every modality."""
    load_plugins()
    return sorted(
        (e for (k, _), e in _entries.items() if (k == kind and modality in (None, "any", e.modality)) or
         (k == kind and e.modality == "any")),
        key=lambda e: e.name,
    )  # fmt: skip


def list_views(modality: str | None = None) -> list[str]:
    """The names of view generators, and of the samplers that stand in for them, of one modality or of all."""
    return [e.name for e in entries("view", modality)] + [e.name for e in entries("sampler", modality)]


def describe_view(name: str) -> str:
    """What a registered view generator or sampler does, with its options and their defaults."""
    load_plugins()
    kind: Kind = "sampler" if ("sampler", name) in _entries and ("view", name) not in _entries else "view"
    return lookup(kind, name).describe()
