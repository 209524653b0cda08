"""Options of `weighted_supcon`: defaults, allowed values, validation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from mmcon.affinity import as_affinity, as_number, check_choice, has_values
from mmcon.errors import ConfigError, InputError, nearest
from mmcon.losses.negative_weights import HardNegatives

WHERE = "weighted_supcon"
CHOICES = {
    "form": ("out", "in"),
    "denominator": ("all", "one", "negatives"),
    "scale": ("none", "temperature"),
    "no_positives": ("exclude", "error"),
    "reduction": ("valid", "all", "sum", "none"),
    "backend": ("auto", "dense", "tiled", "triton"),
}
Similarity = Callable[[Float[Tensor, "r d"], Float[Tensor, "c d"]], Float[Tensor, "r c"]]
Target = TypeVar("Target", bound=Callable[..., Any])


def check_options(where: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check the names of keyword arguments; an error gives the nearest known name.

    Raises:
        ConfigError: `options` has a name that is not in `known`.
    """
    names = known if isinstance(known, frozenset) else frozenset(known)
    for name in options:
        if name not in names:
            names = sorted(names)
            raise ConfigError(where, expected=f"options among {names}", got=repr(name), fix=nearest(name, names))


def reject_unknown_options(target: Target) -> Target:
    """Decorate a function or a class: an unknown keyword raises `ConfigError` in place of Python's `TypeError`."""
    function = target.__init__ if isinstance(target, type) else target
    known = frozenset(inspect.signature(function).parameters) - {"self"}

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        check_options(target.__name__, options, known)
        return function(*arguments, **options)

    if not isinstance(target, type):
        return checked  # type: ignore[return-value]
    target.__init__ = checked  # type: ignore[misc]
    return target  # type: ignore[return-value]


@reject_unknown_options
@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The options of `weighted_supcon` that are the same in every step; they are documented there.

    Raises:
        InputError: a value is unknown, or a combination has no equation.
        ConfigError: a setting is unknown.
    """

    form: str = "out"
    denominator: str = "all"
    negative_weights: Any = None
    row_normalize: bool = True
    similarity: Similarity | None = None
    scale: str = "none"
    no_positives: str = "exclude"
    reduction: str = "valid"
    backend: str = "auto"
    check_finite: bool = True

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            check_choice(WHERE, name, getattr(self, name), known)
        if (self.form, self.denominator) == ("in", "one"):
            raise InputError(
                WHERE,
                expected="the in form with denominator 'all' or 'negatives'",
                got="'one'",
                fix="a denominator for each positive needs the sum outside the logarithm: form='out'",
            )
        if isinstance(self.negative_weights, HardNegatives):
            self.negative_weights.check(self.form, self.denominator)
        elif self.negative_weights is not None:
            object.__setattr__(self, "negative_weights", as_affinity(self.negative_weights))


#: The names of the options.
OPTIONS = tuple(field.name for field in fields(LossSettings))


def check_temperature(where: str, temperature: object) -> None:
    """Raise InputError unless a temperature is a finite number above 0, or a tensor of one."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise InputError(where, expected="one temperature above 0", got=f"shape {tuple(temperature.shape)}")
        if not has_values(temperature):
            return
    elif not isinstance(temperature, Real):
        fix = "call a LearnableTemperature for its value: temperature()"
        raise InputError(where, expected="a temperature, a number or a scalar tensor", got=repr(temperature), fix=fix)
    value = as_number(temperature)  # pyright: ignore
    if not 0 < value < float("inf"):
        raise InputError(where, expected="one temperature above 0", got=str(value), fix="usual values are .04 to .2")
