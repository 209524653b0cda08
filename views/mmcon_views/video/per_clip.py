"""Apply image generators to clips, with one draw for all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float32, Int, Shaped
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
    """An image generator on clips: all frames of a view get the same draw, so that motion is kept.

    It takes clips `b t c h w`, or a sequence of clips `t c h w` or handles, of different sizes and lengths.

    >>> flip = PerClip(mmcon.create_view("image/flip"))
    >>> clips = flip(clips, mmcon.keys(seed=0, epoch=0, sample=ids))

    Args:
        image: a single image generator; `per_clip` wraps the children of a chain.
        name: by default the image generator's.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Scope] = "clip"

    def __init__(self, image: ViewGenerator, *, name: str = "") -> None:
        if isinstance(image, Chain) or image.scope not in ("sample", "batch"):
            raise InputError(
                "PerClip",
                expected="a single image generator of scope 'sample' or 'batch'",
                got=f"{image!r} of scope {image.scope!r}",
                fix="mmcon_views.video.per_clip.per_clip wraps the children of a chain",
            )
        self.image, self.name = image, name or image.name

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether the image generator is ragged."""
        return self.image.ragged

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw once per clip, as for an image."""
        return self.image.draw(keys.for_batch() if self.image.scope == "batch" else keys, meta)

    def apply(self, batch: Any, params: Params) -> Any:
        """Apply the image generator to every frame with the parameters of its clip."""
        if isinstance(batch, Tensor):
            check_clips(batch, self.name)
            return self._apply_equal_shapes(batch, params, slice(None))
        clips = [clip if isinstance(clip, Tensor) else clip.decode() for clip in batch]
        rows_by_shape: dict[Any, list[int]] = {}
        for row, clip in enumerate(clips):
            rows_by_shape.setdefault((clip.shape, clip.dtype), []).append(row)
        if len(rows_by_shape) == 1:
            return self._apply_equal_shapes(clips, params, slice(None))
        views: list[Any] = [None] * len(clips)
        for rows in rows_by_shape.values():
            some = self._apply_equal_shapes([clips[row] for row in rows], params, torch.tensor(rows))
            for row, view in zip(rows, some, strict=True):
                views[row] = view
        return torch.stack(views) if len({view.shape for view in views}) == 1 else views

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The sizes of the image generator; the number of frames is unchanged."""
        return self.image.output_meta(meta, params)

    def columns(self, meta: Meta, params: Params) -> dict[str, Shaped[Tensor, "b ..."]]:
        """The columns of the image generator."""
        return self.image.columns(meta, params)

    def _apply_equal_shapes(
        self,
        clips: Shaped[Tensor, "b t c h w"] | Sequence[Shaped[Tensor, "t c h w"]],
        params: Params,
        rows: slice | Int[Tensor, " m"],
    ) -> Shaped[Tensor, "b t c h2 w2"]:
        """Clips of one shape, stacked or not; `rows` selects their parameters."""
        image, frames = self.image, len(clips[0])
        if isinstance(image, RandomResizedCrop | Resize | CropWithin) and _is_large(clips[0], image.size):
            return _resample_clips(clips, select_samples(params, rows), image, self.name)
        stacked = clips if isinstance(clips, Tensor) else torch.stack(list(clips))
        images = image.apply(stacked.flatten(0, 1), _repeat(params, rows, frames))
        return images.unflatten(0, (len(stacked), frames))


def per_clip(generator: ViewGenerator) -> ViewGenerator:
    """Wrap an image generator, or every child of a chain, with one draw for all frames of a clip."""
    if isinstance(generator, Chain):
        return Chain(*((name, PerClip(child)) for name, child in generator.children()), name=generator.name)
    return PerClip(generator)


def _resample_clips(
    clips: Shaped[Tensor, "b t c h w"] | Sequence[Shaped[Tensor, "t c h w"]],
    box: Params,
    image: RandomResizedCrop | Resize | CropWithin,
    name: str,
) -> Float32[Tensor, "b t c h2 w2"]:
    """Resample all frames of a clip as the channels of one image, in a single call, since they have the same crop."""
    boxes = torch.stack([box[side] for side in ("top", "left", "height", "width")], dim=1).tolist()
    # One call for 3t channels instead of one call per frame.
    out = torch.empty(len(clips), *clips[0].shape[:2], *image.size)
    for row, (clip, (top, left, height, width)) in enumerate(zip(clips, boxes, strict=True)):
        check_image(clip, name)
        region = clip[..., top : top + height, left : left + width].flatten(0, 1)
        out[row] = resize_image(region, image.size, image.interpolation).unflatten(0, clip.shape[:2])
        if clip.dtype == torch.uint8:
            out[row] /= 255
    return out


def _is_large(clip: Shaped[Tensor, "t c h w"], size: tuple[int, int]) -> bool:
    """Whether torch's kernels resample the frames, by the same rule as for images (see `resample`)."""
    return max(clip.shape[-1] * clip.shape[-2], size[0] * size[1]) > SMALL


def _repeat(params: Any, rows: slice | Int[Tensor, " m"], times: int) -> Any:
    if isinstance(params, Tensor):
        return params[rows].repeat_interleave(times, dim=0)
    return {name: _repeat(branch, rows, times) for name, branch in params.items()}


def check_clips(batch: Shaped[Tensor, "..."], where: str) -> None:
    """Raise InputError unless a batch has the shape `b t c h w`."""
    if batch.dim() != 5:
        raise InputError(where, expected="clips `b t c h w`", got=f"shape {tuple(batch.shape)}")
