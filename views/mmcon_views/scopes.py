"""One draw for several: all frames of a clip, all views of a sample, or some views only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import FIELDS, Keys
from mmcon.views import Chain, Meta, Params, Scope, ViewGenerator, select_samples
from mmcon_views.image.geometry import RandomResizedCrop, Resize
from mmcon_views.image.pixels import check_picture
from mmcon_views.image.resample import SMALL, resize_picture


@final
class PerClip(ViewGenerator):
    """An image generator on clips, one draw for all frames of a view, so that time stays consistent.

    Takes clips `b t c h w`, or a sequence of clips `t c h w`, or handles, of differing sizes and lengths.

    >>> flip = PerClip(mmcon.create_view("image/flip"))
    >>> clips = flip(clips, mmcon.keys(seed=0, epoch=0, sample=ids))

    Args:
        image: a single image generator; `per_clip` wraps a chain part by part.
        name: by default the image generator's.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Scope] = "clip"

    def __init__(self, image: ViewGenerator, *, name: str = "") -> None:
        if isinstance(image, Chain) or image.scope not in ("sample", "batch"):
            raise InputError(
                "PerClip",
                expected="one generator of images whose scope is 'sample' or 'batch'",
                got=f"{image!r} of scope {image.scope!r}",
                fix="mmcon_views.scopes.per_clip wraps the parts of a chain one by one",
            )
        self.image, self.name = image, name or image.name

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """As the image generator."""
        return self.image.ragged

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """One row a clip, as for an image."""
        return self.image.draw(keys.for_batch() if self.image.scope == "batch" else keys, meta)

    def apply(self, batch: Any, params: Params) -> Any:
        """Give every frame its clip's parameters."""
        if isinstance(batch, Tensor):
            _check_clips(batch, self.name)
            return self._apply_alike(batch, params, slice(None))
        clips = [clip if isinstance(clip, Tensor) else clip.decode() for clip in batch]
        alike: dict[Any, list[int]] = {}
        for row, clip in enumerate(clips):
            alike.setdefault((clip.shape, clip.dtype), []).append(row)
        if len(alike) == 1:
            return self._apply_alike(clips, params, slice(None))
        views: list[Any] = [None] * len(clips)
        for rows in alike.values():
            made = self._apply_alike([clips[row] for row in rows], params, torch.tensor(rows))
            for row, view in zip(rows, made, strict=True):
                views[row] = view
        return torch.stack(views) if len({view.shape for view in views}) == 1 else views

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Sizes as the image generator leaves them; the number of frames stays."""
        return self.image.output_meta(meta, params)

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """As the image generator."""
        return self.image.columns(meta, params)

    def _apply_alike(self, clips: Tensor | Sequence[Tensor], params: Params, rows: slice | Tensor) -> Tensor:
        """Clips of one shape, stacked or not; `rows` are theirs of the parameters."""
        image, frames = self.image, len(clips[0])
        if isinstance(image, RandomResizedCrop | Resize | CropWithin) and _is_large(clips[0], image.size):
            return _resample_clips(clips, select_samples(params, rows), image, self.name)
        stacked = clips if isinstance(clips, Tensor) else torch.stack(list(clips))
        pictures = image.apply(stacked.flatten(0, 1), _repeat(params, rows, frames))
        return pictures.unflatten(0, (len(stacked), frames))


def _resample_clips(
    clips: Tensor | Sequence[Tensor], box: Params, image: RandomResizedCrop | Resize | CropWithin, name: str
) -> Float[Tensor, "b t c h w"]:
    """All frames of a clip share the part, so they are resampled as the channels of one picture, in a single call."""
    boxes = torch.stack([box[side] for side in ("top", "left", "height", "width")], dim=1).tolist()
    out = torch.empty(len(clips), *clips[0].shape[:2], *image.size)
    for row, (clip, (top, left, height, width)) in enumerate(zip(clips, boxes, strict=True)):
        check_picture(clip, name)
        part = clip[..., top : top + height, left : left + width].flatten(0, 1)
        out[row] = resize_picture(part, image.size, image.interpolation).unflatten(0, clip.shape[:2])
        if clip.dtype == torch.uint8:
            out[row] /= 255
    return out


def per_clip(generator: ViewGenerator) -> ViewGenerator:
    """An image generator, or every part of a chain of them, with one draw for all frames of a clip."""
    if isinstance(generator, Chain):
        return Chain(*((name, PerClip(part)) for name, part in generator.children()), name=generator.name)
    return PerClip(generator)


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
        return self.generator.draw(_without_view(keys), meta)

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
class CropWithin(ViewGenerator):
    """A crop inside a part of the picture that all views of a sample share, made in one resampling.

    The shared part is another picture of the same video in each epoch, in which time runs as it did; the crop within is
    what views of the sample differ by.

    Args:
        shared: draws the part; of its options only `area` and `aspect` count.
        crop: draws within it.
    """

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(self, shared: RandomResizedCrop, crop: RandomResizedCrop) -> None:
        self.shared, self.crop, self.name = shared, crop, crop.name
        self.size, self.interpolation = crop.size, crop.interpolation

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw top, left, height and width, `b` int64 each, in pixels of the picture."""
        part = self.shared.draw(_without_view(keys).child("shared"), meta)
        within = self.crop.draw(keys, {**meta, "height": part["height"], "width": part["width"]})
        return {**within, "top": part["top"] + within["top"], "left": part["left"] + within["left"]}

    def apply(self, batch: Any, params: Params) -> Any:
        """Cut and resample."""
        return self.crop.apply(batch, params)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Every picture has the one size."""
        return self.crop.output_meta(meta, params)


def _without_view(keys: Keys) -> Keys:
    """Keys that all views of a sample share; those of a whole batch are shared already."""
    if keys.of_batch:
        return keys
    shared = Keys(keys.fields, step=keys.step).drop("view", *keys.dropped)
    for name in keys.path:
        shared = shared.child(name)
    return shared


def _is_large(clip: Tensor, size: tuple[int, int]) -> bool:
    """Whether frames go through torch's own resampling, as pictures of their size do; small ones are gathered."""
    return max(clip.shape[-1] * clip.shape[-2], size[0] * size[1]) > SMALL


def _check_clips(batch: Tensor, where: str) -> None:
    if batch.dim() != 5:
        raise InputError(where, expected="clips `b t c h w`", got=f"shape {tuple(batch.shape)}")


def _repeat(params: Any, rows: slice | Tensor, times: int) -> Any:
    if isinstance(params, Tensor):
        return params[rows].repeat_interleave(times, dim=0)
    return {name: _repeat(branch, rows, times) for name, branch in params.items()}
