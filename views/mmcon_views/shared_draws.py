"""Wrappers that share a draw between all views of a sample, or restrict a generator to every second view."""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Int, Shaped
from torch import Tensor

from mmcon.random import FIELDS, Keys
from mmcon.views import Meta, Params, Scope, ViewGenerator


@final
class SharedByViews(ViewGenerator):
    """A generator with the same draws in every view of a sample, from keys without the field `view`.

    Args:
        generator: a single generator, not a chain.
    """

    def __init__(self, generator: ViewGenerator) -> None:
        self.generator, self.name = generator, generator.name

    @property
    def modality(self) -> str:  # type: ignore[override]
        """The generator's modality."""
        return self.generator.modality

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether the wrapped generator is ragged."""
        return self.generator.ragged

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The wrapped generator's scope if it is "partner" or "batch", else "sample"."""
        return self.generator.scope if self.generator.scope in ("partner", "batch") else "sample"

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw from keys without the field `view`."""
        return self.generator.draw(without_view(keys), meta)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The wrapped generator's output meta."""
        return self.generator.output_meta(meta, params)

    def columns(self, meta: Meta, params: Params) -> dict[str, Shaped[Tensor, "b ..."]]:
        """The wrapped generator's columns."""
        return self.generator.columns(meta, params)

    def partners(self, params: Params, positions: Int[Tensor, " b"], n: int) -> Int[Tensor, " b"]:
        """The wrapped generator's partners, the same in every view of a sample."""
        return self.generator.partners(params, positions, n)

    def apply(self, batch: Any, params: Params, **partners: Any) -> Any:
        """Apply the generator."""
        return self.generator.apply(batch, params, **partners)


@final
class OnSecondViews(ViewGenerator):
    """A generator with a drawn parameter `apply`, restricted to every second view of a sample: views 1, 3, and so on.

    Args:
        generator: a generator with a parameter `apply` (`b` bool), such as image/solarize.
    """

    def __init__(self, generator: ViewGenerator) -> None:
        self.generator, self.name = generator, generator.name

    @property
    def modality(self) -> str:  # type: ignore[override]
        """The generator's modality."""
        return self.generator.modality

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """The generator's scope."""
        return self.generator.scope

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the wrapped generator's parameters, then set `apply` to False in views 0, 2, and so on."""
        params = self.generator.draw(keys, meta)
        return {**params, "apply": params["apply"] & (keys.fields[:, FIELDS.index("view")] % 2 == 1)}

    def apply(self, batch: Any, params: Params) -> Any:
        """Apply the generator."""
        return self.generator.apply(batch, params)


def without_view(keys: Keys) -> Keys:
    """Drop the field `view`, so that all views of a sample share draws; keys of a whole batch are shared already."""
    if keys.of_batch:
        return keys
    shared = Keys(keys.fields, step=keys.step).drop("view", *keys.dropped)
    for name in keys.path:
        shared = shared.child(name)
    return shared
