"""Changes of the frame order: reversal and shuffled segments. Labels are not preserved; the order can be a label."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.video.per_clip import check_clips


@register_view("video/reverse", modality="video")
@final
class Reverse(ViewGenerator):
    """Reverse the frames with probability p. Labels are not preserved: sitting down becomes standing up.

    The index table gets a column `reversed`, 1 for reversed frames, which can be a label.

    Args:
        p: the probability.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    preserves_labels: ClassVar[bool] = False

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether to reverse, `b` bool."""
        return {"reverse": keys.bernoulli("reverse", self.p)}

    def apply(self, batch: Shaped[Tensor, "b t c h w"], params: Params) -> Shaped[Tensor, "b t c h w"]:
        """Reverse the frames of the drawn clips."""
        check_clips(batch, "video/reverse")
        return torch.where(params["reverse"].to(batch.device)[:, None, None, None, None], batch.flip(1), batch)

    def columns(self, meta: Meta, params: Params) -> dict[str, Int[Tensor, " b"]]:
        """`reversed`, `b` int64."""
        return {"reversed": params["reverse"].to(torch.int64)}


@register_view("video/shuffle", modality="video")
@final
class Shuffle(ViewGenerator):
    """Shuffle the segments of the view with probability p. Labels that depend on time are not preserved.

    The index table gets a column `shuffled`, 0 for an unchanged order.

    Args:
        segments: the number of segments, of about equal length; None: every frame is a segment.
        p: the probability of a drawn order.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    preserves_labels: ClassVar[bool] = False

    def __init__(self, *, segments: int | None = None, p: float = 1.0) -> None:
        self.segments, self.p = segments, p
        if segments is not None and segments < 2:
            raise InputError("video/shuffle", expected="segments >= 2, or None", got=str(segments))

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `order`, `b t` int64: the frames' indices in their new order."""
        if "frames" not in meta:
            raise InputError("video/shuffle", expected="clips whose number of frames is known", got=str(sorted(meta)))
        counts = meta["frames"].unique()
        if len(counts) != 1:
            raise InputError("video/shuffle", expected="views of one number of frames", got=str(counts.tolist()))
        frames = int(counts)
        segments = min(self.segments or frames, frames)
        position = keys.permutation("order", segments)
        of_frame = torch.arange(frames) * segments // frames
        shuffled = torch.argsort(position[:, of_frame], dim=1, stable=True)
        apply = keys.bernoulli("apply", self.p)
        return {"order": torch.where(apply[:, None], shuffled, torch.arange(frames))}

    def apply(self, batch: Shaped[Tensor, "b t c h w"], params: Params) -> Shaped[Tensor, "b t c h w"]:
        """Put the frames in their new order."""
        check_clips(batch, "video/shuffle")
        rows = torch.arange(len(batch), device=batch.device)[:, None]
        return batch[rows, params["order"].to(batch.device)]

    def columns(self, meta: Meta, params: Params) -> dict[str, Int[Tensor, " b"]]:
        """`shuffled`, `b` int64."""
        order = params["order"]
        return {"shuffled": (order != torch.arange(order.shape[1])).any(1).to(torch.int64)}
