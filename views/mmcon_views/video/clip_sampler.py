"""Where in a clip a view looks: spans of time, drawn from the header before anything is decoded.

Every sampler here is one generator, `ClipSampler`, with another rule for its frame times (`mmcon_views.video.moments`).
It draws in seconds, from the clip's duration and frame rate, and `apply` decodes only those frames. It fills four
columns of the index table for graded affinities of time: `time` (center of the span), `time_start`, `time_end` (seconds
of the clip's clock) and `group` (the clip).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media import FrameStack
from mmcon.random import FIELDS, Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.video.frame_times import (
    ClipPair,
    ClipSpans,
    EvenlySpacedClips,
    FrameSpacing,
    FrameTimeSampler,
    FrameWindow,
    SegmentSampling,
    SparseAndDenseClips,
    UniformStart,
)

# Frames that come as a bare tensor have no clock; their times are counted in frames.
BARE_FRAMES_PER_SECOND = 1.0


LOOP_TOLERANCE_SECONDS = 1e-4


Short = Literal["hold", "loop", "error"]


@final
class ClipSampler(ViewGenerator):
    """Draw a view's moments from a clip's header, then decode these and nothing else.

    Args:
        frame_times: the rule.
        shorter_side: scale frames down to this while they are decoded; smaller ones stay.
        short: what to do where the clip is shorter than the view: `hold` its last frame, `loop` it, or `error`.
        name: the registered name.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    ragged: ClassVar[bool] = True

    def __init__(
        self, frame_times: FrameTimeSampler, *, shorter_side: int | None = None, short: Short = "hold", name: str
    ) -> None:
        self.frame_times, self.shorter_side, self.short, self.name = moments, shorter_side, short, name
        if short not in ("hold", "loop", "error"):
            raise InputError(name, expected="short='hold', 'loop' or 'error'", got=repr(short))

    @property
    def preserves_labels(self) -> bool:  # type: ignore[override]
        """Not where a speed is drawn: a walk becomes a run."""
        return self.frame_times.keeps_speed

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `times` (`b t` seconds); beside them stand the span, the frame's duration and the clip's identity."""
        headers = self._headers(keys, meta)
        times, step, overlap, speed = self.frame_times.draw(keys, headers)
        last = headers.end - 0.5 / headers.frames_per_second
        over = times[:, -1] > headers.end
        if self.short == "error" and bool(over.any()):
            row = int(over.nonzero()[0])
            raise InputError(
                self.name,
                expected=f"clips of at least {float(times[row, -1] - times[row, 0] + step[row]):.2f} s",
                got=f"{float(headers.end[row] - headers.begin[row]):.2f} s in row {row}",
                fix="ask for fewer frames or a shorter stride, or short='hold' or 'loop'",
                key=keys.describe(row),
            )
        start = torch.minimum(times[:, 0], last)
        end = torch.minimum(times[:, -1] + step, headers.end)
        if self.short == "loop":
            length = headers.end - headers.begin
            # Lengths from a header are rounded: a moment just short of the end is the beginning.
            since = times - headers.begin[:, None] + LOOP_TOLERANCE_SECONDS
            times = headers.begin[:, None] + torch.remainder(since, length[:, None])
        drawn = {
            "times": torch.maximum(torch.minimum(times, last[:, None]), headers.begin[:, None]),
            "start": torch.maximum(start, headers.begin),
            "end": torch.maximum(end, start),
            "step": step,
            "rate": headers.frames_per_second,
            "group": meta["group"].to(torch.int64) if "group" in meta else keys.fields[:, FIELDS.index("sample")],
        }
        return drawn | {n: x for n, x in {"overlap": overlap, "speed": speed}.items() if x is not None}

    def apply(self, batch: Any, params: Params) -> list[Tensor]:
        """Decode each clip's frame_times: `t c h w` uint8, each clip at its own size."""
        rates, times = params["rate"].tolist(), params["times"]
        handles = [
            FrameStack(clip, frames_per_second=rate) if isinstance(clip, Tensor) else clip
            for clip, rate in zip(batch, rates, strict=True)
        ]
        return [clip.decode(t, shorter_side=self.shorter_side) for clip, t in zip(handles, times, strict=True)]

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """So many frames, at the pace that was drawn, and smaller where a shorter side is set."""
        count = params["times"].shape[1]
        left = {**meta, "frames": torch.full_like(params["group"], count), "frames_per_second": 1 / params["step"]}
        if self.shorter_side is not None and "height" in meta and "width" in meta:
            height, width = meta["height"].to(torch.int64), meta["width"].to(torch.int64)
            shorter = torch.minimum(height, width)
            scale = shorter > self.shorter_side
            for name, side in (("height", height), ("width", width)):
                smaller = torch.round(side * self.shorter_side / shorter.double()).to(torch.int64).clamp(min=1)
                left[name] = torch.where(scale, smaller, side)
        return left

    def columns(self, meta: Meta, params: Params) -> dict[str, Tensor]:
        """`time`, `time_start`, `time_end` (seconds), `group`; `overlap` of views in pairs; `speed` where drawn."""
        start, end = params["start"], params["end"]
        columns = {"time": (start + end) / 2, "time_start": start, "time_end": end, "group": params["group"]}
        return columns | {name: params[name] for name in ("overlap", "speed") if name in params}

    def _headers(self, keys: Keys, meta: Meta) -> ClipSpans:
        if "duration_seconds" in meta:
            rate = meta["frames_per_second"].double()
            duration = meta["duration_seconds"].double()
        elif "frames" in meta:
            rate = torch.full((len(keys),), BARE_FRAMES_PER_SECOND, dtype=torch.float64)
            duration = meta["frames"] / rate
        else:
            raise InputError(
                self.name,
                expected="clips: handles of mmcon.media.open_video, or tensors `t c h w`",
                got=f"samples of which {sorted(meta) or 'nothing'} is known",
            )
        bad = ~((duration > 0) & (rate > 0))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            got = f"{float(duration[row])} s at {float(rate[row])} frames a second in row {row}"
            raise DataError(self.name, expected="a duration and a frame rate above 0", got=got, key=keys.describe(row))
        begin = meta["start_seconds"].double() if "start_seconds" in meta else torch.zeros_like(duration)
        return ClipSpans(begin, begin + duration, rate, keys.fields[:, FIELDS.index("view")])


@register_view("video/random-frame", modality="video")
def random_frame(*, shorter_side: int | None = None) -> ClipSampler:
    """One frame at an evenly drawn moment: `1 c h w`.

    Args:
        shorter_side: decode at this size.
    """
    return ClipSampler(UniformStart(FrameSpacing(1)), shorter_side=shorter_side, name="video/random-frame")


@register_view("video/random-clip", modality="video")
def random_clip(
    *,
    frames: int = 16,
    stride: int | float = 2,
    rate_hz: int | float | None = None,
    speed: tuple[int | float, int | float] = (1.0, 1.0),
    shorter_side: int | None = None,
    short: Short = "hold",
) -> ClipSampler:
    """A clip from an evenly drawn start.

    >>> view = mmcon.create_view("video/random-clip", frames=8, rate_hz=8, shorter_side=128)

    Args:
        frames: in the view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate.
        speed: bounds of a drawn factor on the step; see video/speed.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    rule = UniformStart(FrameSpacing(frames, stride, rate_hz, speed))
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/random-clip")


@register_view("video/speed", modality="video")
def speed_clip(
    *,
    frames: int = 16,
    stride: int | float = 2,
    rate_hz: int | float | None = None,
    speed: tuple[int | float, int | float] = (0.5, 2.0),
    shorter_side: int | None = None,
    short: Short = "hold",
) -> ClipSampler:
    """A clip from anywhere, run slower or faster by a drawn factor. It does not keep the meaning: a walk becomes a run.

    The index table gets a column `speed`, so that the pace can be a label (Wang et al. 2020, pace prediction).

    Args:
        frames: in the view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate.
        speed: bounds of the factor, drawn log-evenly: 2 leaps over every other moment.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    rule = UniformStart(FrameSpacing(frames, stride, rate_hz, speed))
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/speed")


@register_view("video/dense-clip", modality="video")
def dense_clip(*, frames: int = 16, shorter_side: int | None = None, short: Short = "hold") -> ClipSampler:
    """Consecutive frames of the clip from an evenly drawn start.

    Args:
        frames: in the view.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    return ClipSampler(
        UniformStart(FrameSpacing(frames)), shorter_side=shorter_side, short=short, name="video/dense-clip"
    )


@register_view("video/sparse-clip", modality="video")
def sparse_clip(*, frames: int = 8, shorter_side: int | None = None) -> ClipSampler:
    """A frame from each of equal segments of the whole clip (Wang et al. 2016, TSN).

    Args:
        frames: segments, and frames in the view.
        shorter_side: decode at this size.
    """
    return ClipSampler(SegmentSampling(frames), shorter_side=shorter_side, name="video/sparse-clip")


@register_view("video/cvrl-clip", modality="video")
def cvrl_clip(
    *, frames: int = 16, stride: int | float = 2, rate_hz: int | float | None = None, shorter_side: int | None = None
) -> ClipSampler:
    """Two clips whose starts are k apart, with density 1 − k/K up to the longest that fits (Qian et al. 2021, CVRL).

    Give the same object for both views.

    Args:
        frames: in each view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate.
        shorter_side: decode at this size.
    """
    return ClipSampler(
        ClipPair(FrameSpacing(frames, stride, rate_hz), "falling"), shorter_side=shorter_side, name="video/cvrl-clip"
    )


@register_view("video/bounded-gap-clip", modality="video")
def bounded_gap_clip(
    *,
    gap_seconds: int | float,
    frames: int = 8,
    stride: int | float = 8,
    rate_hz: int | float | None = None,
    shorter_side: int | None = None,
) -> ClipSampler:
    """Two clips whose starts are at most a gap apart, evenly (Feichtenhofer et al. 2021, ρBYOL's bounded time span).

    Give the same object for both views; further pairs of views are pairs of their own.

    Args:
        gap_seconds: the longest gap.
        frames: in each view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate.
        shorter_side: decode at this size.
    """
    if gap_seconds < 0:
        raise InputError("video/bounded-gap-clip", expected="gap_seconds >= 0", got=str(gap_seconds))
    rule = ClipPair(FrameSpacing(frames, stride, rate_hz), "even", gap_seconds)
    return ClipSampler(rule, shorter_side=shorter_side, name="video/bounded-gap-clip")


@register_view("video/tclr-clip", modality="video")
def tclr_clip(
    *,
    frames: int = 16,
    skip: int = 4,
    dense: int = 4,
    rate_hz: int | float | None = None,
    shorter_side: int | None = None,
) -> ClipSampler:
    """A sparse clip (view 0) and dense ones (views 1 to `dense`) that share its span out (Dave et al. 2022, TCLR).

    Give the same object for all 1 + `dense` views.

    Args:
        frames: in each view.
        skip: the sparse clip's stride; the dense ones' is 1.
        dense: how many dense clips.
        rate_hz: steps a second; None: the clip's own rate.
        shorter_side: decode at this size.
    """
    return ClipSampler(
        SparseAndDenseClips(frames, skip, rate_hz, dense), shorter_side=shorter_side, name="video/tclr-clip"
    )


@register_view("video/window-frames", modality="video")
def window_frames(*, views: int, rate_hz: int | float | None = None, shorter_side: int | None = None) -> ClipSampler:
    """All frames of a drawn window, a view each: view v is the window's frame v.

    Args:
        views: frames in the window; give the same object for so many views.
        rate_hz: frames a second; None: the clip's own rate.
        shorter_side: decode at this size.
    """
    return ClipSampler(
        FrameWindow(FrameSpacing(1, 1, rate_hz), views), shorter_side=shorter_side, name="video/window-frames"
    )


@register_view("video/grid-clip", modality="video")
def grid_clip(
    *,
    frames: int = 16,
    stride: int | float = 2,
    rate_hz: int | float | None = None,
    views: int = 1,
    shorter_side: int | None = None,
    short: Short = "hold",
) -> ClipSampler:
    """The view of evaluation: the center, or `views` clips at even places from the beginning to the end.

    Args:
        frames: in each view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate.
        views: how many places.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    rule = EvenlySpacedClips(FrameSpacing(frames, stride, rate_hz), views)
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/grid-clip")
