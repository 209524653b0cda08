"""Draws that views of one sample share, and draws kept to some views."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from mmcon.random import FIELDS, Keys
from mmcon.views import Meta, Params, Scope, ViewGenerator


@final
class SharedByViews(ViewGenerator):
    """A generator whose draws are the same in every view of a sample: the view is left out of its key.

    Args:
        generator: any single generator.
    """

    def __init__(self, generator: ViewGenerator) -> None:
        self.generator, self.name = generator, generator.name

    @property
    def modality(self) -> str:  # type: ignore[override]
        """As the generator's."""
        return self.generator.modality

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """As the generator's."""
        return self.generator.ragged

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """Whether it needs partners or draws once a batch, as the generator; else its draws depend on the sample."""
        return self.generator.scope if self.generator.scope in ("partner", "batch") else "sample"

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw from keys without the view."""
        return self.generator.draw(without_view(keys), meta)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """As the generator leaves them."""
        return self.generator.output_meta(meta, params)

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """As the generator's."""
        return self.generator.columns(meta, params)

    def partners(self, params: Params, positions: Tensor, n: int) -> Tensor:
        """As the generator's: the same in every view of a sample."""
        return self.generator.partners(params, positions, n)

    def apply(self, batch: Any, params: Params, **partners: Any) -> Any:
        """As the generator applies them."""
        return self.generator.apply(batch, params, **partners)


@final
class OnSecondViews(ViewGenerator):
    """A generator that draws whether to `apply` itself, kept to every second view of a sample: 1, 3, and so on.

    Args:
        generator: one whose parameters hold `apply`, `b` bool, such as image/solarize.
    """

    def __init__(self, generator: ViewGenerator) -> None:
        self.generator, self.name = generator, generator.name

    @property
    def modality(self) -> str:  # type: ignore[override]
        """As the generator's."""
        return self.generator.modality

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """As the generator's."""
        return self.generator.scope

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw as the generator does, then say no in first views."""
        params = self.generator.draw(keys, meta)
        return {**params, "apply": params["apply"] & (keys.fields[:, FIELDS.index("view")] % 2 == 1)}

    def apply(self, batch: Any, params: Params) -> Any:
        """As the generator applies them."""
        return self.generator.apply(batch, params)


def without_view(keys: Keys) -> Keys:
    """Keys that all views of a sample share; those of a whole batch are shared already."""
    if keys.of_batch:
        return keys
    shared = Keys(keys.fields, step=keys.step).drop("view", *keys.dropped)
    for name in keys.path:
        shared = shared.child(name)
    return shared
