"""Views of clips: spans of time (`views.spans`), then pictures changed alike in all frames of a view.

Chains take undecoded clips of any size and length, decode only what was drawn, and give float32 `b t c h w` in [0, 1].
"""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from jaxtyping import Shaped
from torch import Tensor

import views.spans  # noqa: F401  (registers the samplers)
from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.view import Chain, Meta, Params, ViewGenerator, take_rows


@final
class PerClip(ViewGenerator):
    """A generator of images for clips: drawn once a clip and applied alike to all of its frames.

    >>> flip = PerClip(mmcon.create_view("image/flip"))
    >>> clips = flip(clips, mmcon.keys(seed=0, epoch=0, sample=ids))        # `b t c h w`

    Args:
        image: the generator of images.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"

    def __init__(self, image: ViewGenerator, *, name: str = "") -> None:
        if isinstance(image, Chain) or image.scope not in ("sample", "batch"):
            raise InputError(
                "PerClip",
                expected="one generator of images whose scope is 'sample' or 'batch'",
                got=f"{image!r} of scope {image.scope!r}",
                fix="wrap the parts of a chain one by one",
            )
        self.image, self.name = image, name or image.name

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """As the generator of images."""
        return self.image.ragged

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw for each clip as for an image."""
        return self.image.draw(keys.for_batch() if self.image.scope == "batch" else keys, meta)

    def apply(self, batch: Any, params: Params) -> Any:
        """Apply to all frames, each clip's with its own parameters."""
        if isinstance(batch, Tensor) and not self.ragged:
            _check_clips(batch, self.name)
            b, t = batch.shape[:2]
            frames = self.image.apply(batch.flatten(0, 1), _for_frames(params, t))
            return frames.unflatten(0, (b, t))
        return torch.stack([self._clip(clip, take_rows(params, slice(i, i + 1))) for i, clip in enumerate(batch)])

    def leaves(self, meta: Meta, params: Params) -> Meta:
        """As the generator of images; the number of frames stays."""
        return self.image.leaves(meta, params)

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """As the generator of images."""
        return self.image.columns(meta, params)

    def _clip(self, clip: Any, params: Params) -> Tensor:
        frames = clip if isinstance(clip, Tensor) else clip.decode()
        return self.image.apply(frames, _for_frames(params, len(frames)))


def _for_frames(params: Params, frames: int) -> Params:
    """Each clip's parameters once a frame."""
    return {
        name: node.repeat_interleave(frames, 0) if isinstance(node, Tensor) else _for_frames(node, frames)
        for name, node in params.items()
    }


def _check_clips(batch: Tensor, where: str) -> None:
    if batch.dim() != 5:
        raise InputError(where, expected="clips `b t c h w`", got=f"shape {tuple(batch.shape)}")


# --- views of time, after decoding -----------------------------------------------------------------------------------


@register_view("video/reverse", modality="video")
@final
class Reverse(ViewGenerator):
    """Time run backwards with probability p. It does not keep the meaning: sitting down becomes standing up.

    The index table gets a column `reversed`, 1 where it was, so that the direction can be a label.

    Args:
        p: the probability.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    keeps_meaning: ClassVar[bool] = False

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether to reverse, `b` bool."""
        return {"reverse": keys.bernoulli("reverse", self.p)}

    def apply(self, batch: Shaped[Tensor, "b t c h w"], params: Params) -> Shaped[Tensor, "b t c h w"]:
        """Turn the order of frames round where drawn."""
        _check_clips(batch, "video/reverse")
        return torch.where(params["reverse"].to(batch.device)[:, None, None, None, None], batch.flip(1), batch)

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """`reversed`, int64."""
        return {"reversed": params["reverse"].to(torch.int64)}


@register_view("video/shuffle", modality="video")
@final
class Shuffle(ViewGenerator):
    """Segments of the view put in a drawn order. It does not keep the meaning of anything that takes time.

    The index table gets a column `shuffled`, 0 where the order is as it was.

    Args:
        segments: as equal as the number of frames allows; None: every frame is one.
        p: the probability of drawing an order at all.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    keeps_meaning: ClassVar[bool] = False

    def __init__(self, *, segments: int | None = None, p: float = 1.0) -> None:
        self.segments, self.p = segments, p
        if segments is not None and segments < 2:
            raise InputError("video/shuffle", expected="segments >= 2, or None", got=str(segments))

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw the new place of each frame's segment: `order`, `b t` int64, the frames in their new order."""
        if "frames" not in meta:
            raise InputError("video/shuffle", expected="clips whose number of frames is known", got=str(sorted(meta)))
        counts = meta["frames"].unique()
        if len(counts) != 1:
            raise InputError("video/shuffle", expected="views of one number of frames", got=str(counts.tolist()))
        frames = int(counts)
        segments = min(self.segments or frames, frames)
        place = keys.permutation("order", segments)
        of_frame = torch.arange(frames) * segments // frames
        shuffled = torch.argsort(place[:, of_frame], dim=1, stable=True)
        apply = keys.bernoulli("apply", self.p)
        return {"order": torch.where(apply[:, None], shuffled, torch.arange(frames))}

    def apply(self, batch: Shaped[Tensor, "b t c h w"], params: Params) -> Shaped[Tensor, "b t c h w"]:
        """Put the frames in their new order."""
        _check_clips(batch, "video/shuffle")
        rows = torch.arange(len(batch), device=batch.device)[:, None]
        return batch[rows, params["order"].to(batch.device)]

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """`shuffled`, int64."""
        order = params["order"]
        return {"shuffled": (order != torch.arange(order.shape[1])).any(1).to(torch.int64)}
