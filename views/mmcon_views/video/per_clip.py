"""Image generators on clips: one draw for all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.views import Chain, Meta, Params, Scope, ViewGenerator, select_samples
from mmcon_views.image.crop import CropWithin, RandomResizedCrop
from mmcon_views.image.pixels import check_image
from mmcon_views.image.resample import SMALL, resize_image
from mmcon_views.image.resize import Resize


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
        images = image.apply(stacked.flatten(0, 1), _repeat(params, rows, frames))
        return images.unflatten(0, (len(stacked), frames))


def per_clip(generator: ViewGenerator) -> ViewGenerator:
    """An image generator, or every part of a chain of them, with one draw for all frames of a clip."""
    if isinstance(generator, Chain):
        return Chain(*((name, PerClip(part)) for name, part in generator.children()), name=generator.name)
    return PerClip(generator)


def _resample_clips(
    clips: Tensor | Sequence[Tensor], box: Params, image: RandomResizedCrop | Resize | CropWithin, name: str
) -> Float[Tensor, "b t c h w"]:
    """All frames of a clip share the part, so they are resampled as the channels of one image, in a single call."""
    boxes = torch.stack([box[side] for side in ("top", "left", "height", "width")], dim=1).tolist()
    out = torch.empty(len(clips), *clips[0].shape[:2], *image.size)
    for row, (clip, (top, left, height, width)) in enumerate(zip(clips, boxes, strict=True)):
        check_image(clip, name)
        part = clip[..., top : top + height, left : left + width].flatten(0, 1)
        out[row] = resize_image(part, image.size, image.interpolation).unflatten(0, clip.shape[:2])
        if clip.dtype == torch.uint8:
            out[row] /= 255
    return out


def _is_large(clip: Tensor, size: tuple[int, int]) -> bool:
    """Whether frames go through torch's own resampling, as images of their size do; small ones are gathered."""
    return max(clip.shape[-1] * clip.shape[-2], size[0] * size[1]) > SMALL


def _repeat(params: Any, rows: slice | Tensor, times: int) -> Any:
    if isinstance(params, Tensor):
        return params[rows].repeat_interleave(times, dim=0)
    return {name: _repeat(branch, rows, times) for name, branch in params.items()}


def _check_clips(batch: Tensor, where: str) -> None:
    if batch.dim() != 5:
        raise InputError(where, expected="clips `b t c h w`", got=f"shape {tuple(batch.shape)}")
