"""One registry of named components: view generators, samplers, encoders and sources.

Built-in and third-party components use the same mechanism: an installed package lists a module in the entry-point group
`mmcon.plugins`, and the import of that module registers its decorated components. The first look-up of a name imports
all listed modules.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args

from mmcon.errors import DuplicateNameError, InputError, PluginError, PluginWarning, UnknownNameError, nearest
from mmcon.views import FunctionView, ViewGenerator, takes_generator

GROUP = "mmcon.plugins"
Kind = Literal["view", "sampler", "encoder", "source"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered component.

    Attributes:
        name: the registered name, such as "image/simclr".
        kind: view, sampler, encoder or source.
        modality: the modality of its input, or "any".
        factory: builds the component from keyword options.
        origin: the module that registered it.
    """

    name: str
    kind: Kind
    modality: str
    factory: Callable[..., Any]
    origin: str

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the factory, by name."""
        target = self.factory.__init__ if isinstance(self.factory, type) else self.factory
        return {name: p for name, p in inspect.signature(target).parameters.items() if name not in ("self", "name")}

    def describe(self) -> str:
        """Name, kind, modality, docstring, and options with their defaults."""
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
                expected="a new name",
                got=f"{name!r}, registered by {known.origin}",
                fix="choose another name, such as PACKAGE/NAME with the name of your package",
            )
        _entries[kind, name] = Entry(name, kind, modality, _factory(kind, name, modality, target), target.__module__)
        return target

    return decorate


def _factory(kind: Kind, name: str, modality: str, target: Callable[..., Any]) -> Callable[..., Any]:
    """The factory of a component: a class or factory as given, or a factory of adapters of a plain f(x, generator)."""
    if kind == "view" and not isinstance(target, type) and takes_generator(target):

        def make() -> FunctionView:
            return FunctionView(target, modality=modality, name=name)

        make.__doc__ = target.__doc__
        return make
    return target


def register_view(name: str, *, modality: str) -> Callable[[F], F]:
    """Register a view generator by decorating its class, a factory of it, or a plain `f(x, generator)` of one sample.

    >>> @register_view("doc/brighten", modality="image")
    ... def brighten(x, generator):
    ...     return (x * torch.rand((), generator=generator)).clamp(0, 1)
    """
    return _register("view", name, modality)


def register_sampler(name: str, *, modality: str = "any") -> Callable[[F], F]:
    """Register a batch sampler by decorating its class or a factory of it."""
    return _register("sampler", name, modality)


def register_encoder(name: str, *, modality: str) -> Callable[[F], F]:
    """Register an encoder by decorating the class, or a factory, of a module that maps views to features `n d`."""
    return _register("encoder", name, modality)


def register_source(name: str, *, modality: str) -> Callable[[F], F]:
    """Register a source by decorating the class, or a factory, of samples with stable ids."""
    return _register("source", name, modality)


@cache
def load_plugins() -> dict[str, Exception]:
    """Import every module of the entry-point group once; return the errors of those that failed, by entry point.

    Raises:
        PluginError: a built-in module fails to import, or the package is not installed and lists none.

    Warns:
        PluginWarning: a third party's module fails to import; the other modules are imported all the same.
    """
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: (not _built_in(point), point.name))
    if not any(map(_built_in, points)):
        raise PluginError(
            "mmcon.plugins",
            expected="the entry points of the installed distribution 'mmcon'",
            got="none: the package is imported from a source tree that is not installed",
            fix="`pip install -e .` in the source tree, or `uv sync`",
        )
    failed: dict[str, Exception] = {}
    # Built-in modules come first, so that a name registered twice is the fault of the third party.
    for point in points:
        try:
            point.load()
        except Exception as error:
            if _built_in(point):
                raise PluginError(
                    f"entry point {_shown(point)}",
                    expected=f"an import of the built-in module {point.value} without errors",
                    got=f"{type(error).__name__}: {error}",
                    fix="reinstall mmcon; after a pull, `pip install -e .` renews the entry points",
                ) from error
            failed[_shown(point)] = error
    for shown, error in failed.items():
        warnings.warn(
            f"the plug-in with entry point {shown!r} failed to load, so its names are missing: "
            f"{type(error).__name__}: {error}",
            PluginWarning,
            stacklevel=3,
        )
    return failed


def _built_in(point: importlib.metadata.EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "mmcon"


def _shown(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.name} = {point.value}"


def lookup(kind: Kind, name: str) -> Entry:
    """The entry of a name.

    Raises:
        UnknownNameError: no component of this kind has the name; the message has the nearest names, the kinds that do
            have it, and the plug-ins that failed to load.
    """
    failed = load_plugins()
    if (kind, name) in _entries:
        return _entries[kind, name]
    others = [other for other in get_args(Kind) if (other, name) in _entries]
    known = [n for k, n in _entries if k == kind]
    fix = "; ".join(f"it is a {k}: mmcon.create_{k}({name!r}, ...)" for k in others) or nearest(name, known)
    broken = "".join(f" Entry point {point!r} failed to load: {error!r}." for point, error in failed.items())
    raise UnknownNameError(
        f"create_{kind}({name!r})", expected=f"the name of a registered {kind}", got=f"{name!r}", fix=fix + broken
    )


def entries(kind: Kind, modality: str | None = None) -> list[Entry]:
    """The registered components of a kind, by name: those of a modality and those for any, or all of them."""
    load_plugins()
    found = [entry for entry in _entries.values() if entry.kind == kind]
    if modality not in (None, "any"):
        found = [entry for entry in found if entry.modality in (modality, "any")]
    return sorted(found, key=lambda entry: entry.name)


def supported_options(kind: Kind, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The subset of `options` that the factory of a registered component accepts by name."""
    accepted = lookup(kind, name).options
    return {option: value for option, value in options.items() if option in accepted}


def create(kind: Kind, name: str, /, **options: Any) -> Any:
    """Build a registered component.

    Raises:
        UnknownNameError: no component of this kind has the name.
        InputError: the component has no such option, or a required one is missing; the message lists the options.
    """
    entry = lookup(kind, name)
    accepted = entry.options
    unknown = sorted(set(options) - set(accepted))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        raise InputError(
            f"create_{kind}({name!r})",
            expected=f"options among {sorted(accepted)}",
            got=f"{unknown}",
            fix=nearest(unknown[0], list(accepted)),
        )
    needed = [p for p in accepted.values() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [p.name for p in needed if p.name not in options]
    if missing:
        call = ", ".join([repr(name), *(f"{option}=..." for option in missing)])
        raise InputError(
            f"create_{kind}({name!r})",
            expected=f"the required options {missing}",
            got=f"{sorted(options) or 'none'}",
            fix=f"mmcon.create_{kind}({call}); mmcon.describe_{kind}({name!r}) lists all",
        )
    return entry.factory(**options)


def create_view(name: str, /, **options: Any) -> ViewGenerator:
    """Build a view generator by its registered name.

    >>> create_view("image/simclr", size=32).name
    'image/simclr'

    Raises:
        UnknownNameError: no view generator has the name.
        InputError: the generator has no such option.
    """
    view = create("view", name, **options)
    if not view.name:
        view.name = name
    view.made_from = {"name": name, "options": options}
    return view


def create_sampler(name: str, /, **options: Any) -> Any:
    """Build a batch sampler by its registered name.

    Raises:
        UnknownNameError: no sampler has the name.
        InputError: the sampler has no such option.
    """
    return create("sampler", name, **options)


def list_views(modality: str | None = None) -> list[str]:
    """The names of view generators of one modality or of all.

    The names of samplers follow in the list of all and in that of text, where the choice of a batch takes the place of
    augmentation.
    """
    names = [entry.name for entry in entries("view", modality)]
    return names + list_samplers(modality) if modality in (None, "text") else names


def list_samplers(modality: str | None = None) -> list[str]:
    """The names of batch samplers of one modality or of all."""
    return [entry.name for entry in entries("sampler", modality)]


def list_sources(modality: str | None = None) -> list[str]:
    """The registered names of sources of one modality or of all; paths and hub names are not listed."""
    return [entry.name for entry in entries("source", modality)]


def describe_view(name: str) -> str:
    """The docstring and the options, with defaults, of a view generator; a sampler is described and marked as such."""
    load_plugins()
    is_sampler = ("sampler", name) in _entries and ("view", name) not in _entries
    return lookup("sampler" if is_sampler else "view", name).describe()


def describe_sampler(name: str) -> str:
    """The docstring and the options, with defaults, of a batch sampler."""
    return lookup("sampler", name).describe()


def describe_source(name: str) -> str:
    """The docstring and the options, with defaults, of a registered source."""
    return lookup("source", name).describe()
