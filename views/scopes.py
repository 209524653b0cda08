"""One draw for several: all frames of a clip, or all views of a sample."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.view import Chain, Meta, Params, Scope, ViewGenerator


@final
class PerClip(ViewGenerator):
    """An image generator on clips, one draw for all frames of a view, so that time stays consistent.

    Takes clips `b t c h w`, or a sequence of clips `t c h w` of differing sizes and lengths.

    >>> consistent = PerClip(mmcon.create_view("image/colour-jitter"))

    Args:
        generator: a single image generator; `per_clip` wraps a chain part by part.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Scope] = "clip"

    def __init__(self, generator: ViewGenerator) -> None:
        self.generator, self.name = generator, generator.name

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """As the image generator's."""
        return self.generator.ragged

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """One row a clip."""
        return self.generator.draw(keys, meta)

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """Sizes as the image generator leaves them."""
        return self.generator.leaves(meta, params)

    def apply(self, batch: Any, params: Params) -> Any:
        """Give every frame its clip's parameters."""
        if isinstance(batch, Tensor):
            if batch.dim() != 5:
                raise InputError(self.name, expected="clips `b t c h w`", got=f"shape {tuple(batch.shape)}")
            b, t = batch.shape[:2]
            frames = self.generator.apply(batch.flatten(0, 1), _repeat(params, slice(None), t))
            return frames.view(b, t, *frames.shape[1:])
        clips = [c if isinstance(c, Tensor) else c.decode() for c in batch]
        views = [self.generator.apply(c, _repeat(params, slice(i, i + 1), len(c))) for i, c in enumerate(clips)]
        return torch.stack(views) if len({v.shape for v in views}) == 1 else views


def per_clip(generator: ViewGenerator) -> ViewGenerator:
    """An image generator, or every part of a chain of them, with one draw for all frames of a clip."""
    if isinstance(generator, Chain):
        return Chain(*((name, PerClip(part)) for name, part in generator.parts()), name=generator.name)
    return PerClip(generator)


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

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw from keys without the view."""
        shared = Keys(keys.fields, step=keys.step).drop("view", *keys.dropped)
        for name in keys.path:
            shared = shared.child(name)
        return self.generator.draw(shared, meta)

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """As the generator leaves them."""
        return self.generator.leaves(meta, params)

    def apply(self, batch: Any, params: Params) -> Any:
        """As the generator applies them."""
        return self.generator.apply(batch, params)


def _repeat(params: Any, rows: slice, times: int) -> Any:
    if isinstance(params, Tensor):
        return params[rows].repeat_interleave(times, dim=0)
    return {name: _repeat(branch, rows, times) for name, branch in params.items()}
