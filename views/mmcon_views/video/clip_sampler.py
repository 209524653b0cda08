"""Clip samplers: draw the frame times of a view from the clip's header, then decode only these frames.

Every view of this module is a `ClipSampler` with a sampler of frame times (`mmcon_views.video.frame_times`). Times are
seconds, drawn from the clip's duration and frame rate. A clip sampler adds four columns to the index table, for time
affinities: `time` (center of the span), `time_start`, `time_end` (seconds on the clip's clock) and `group` (the clip).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media import FrameStack
from mmcon.random import FIELDS, Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.video.frame_times import (
    ClipPairs,
    ClipSpans,
    EvenlySpacedClips,
    FrameSpacing,
    FrameTimeSampler,
    FrameWindow,
    SegmentSampling,
    SparseAndDenseClips,
    UniformStart,
)

# A tensor of frames has no frame rate: its times are frame numbers.
BARE_FRAMES_PER_SECOND = 1.0
LOOP_TOLERANCE_SECONDS = 1e-4
Short = Literal["hold", "loop", "error"]


@final
class ClipSampler(ViewGenerator):
    """Draw the frame times of a view from a clip's header, then decode only these frames.

    Args:
        frame_times: the sampler of frame times.
        shorter_side: scale frames down to this shorter side while they are decoded; smaller frames keep their size.
        short: for clips shorter than the view: `hold` repeats the last frame, `loop` repeats the clip, `error` raises.
        name: the registered name.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    ragged: ClassVar[bool] = True

    def __init__(
        self, frame_times: FrameTimeSampler, *, shorter_side: int | None = None, short: Short = "hold", name: str
    ) -> None:
        self.frame_times, self.shorter_side, self.short, self.name = frame_times, shorter_side, short, name
        if short not in ("hold", "loop", "error"):
            raise InputError(name, expected="short='hold', 'loop' or 'error'", got=repr(short))

    @property
    def preserves_labels(self) -> bool:  # type: ignore[override]
        """False if a speed is drawn, which turns a walk into a run."""
        return self.frame_times.keeps_speed

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `times` (`b t`, seconds); further parameters are the span, the frame duration and the clip's id."""
        clips = self._clip_spans(keys, meta)
        times, step, overlap, speed = self.frame_times.draw(keys, clips)
        # Half a frame before the end is still the last frame, for any rounding of the header's duration.
        last = clips.end - 0.5 / clips.frames_per_second
        over = times[:, -1] > clips.end
        if self.short == "error" and bool(over.any()):
            row = int(over.nonzero()[0])
            raise InputError(
                self.name,
                expected=f"clips of at least {float(times[row, -1] - times[row, 0] + step[row]):.2f} s",
                got=f"{float(clips.end[row] - clips.begin[row]):.2f} s in row {row}",
                fix="ask for fewer frames or a shorter stride, or short='hold' or 'loop'",
                key=keys.describe(row),
            )
        start = torch.minimum(times[:, 0], last)
        end = torch.minimum(times[:, -1] + step, clips.end)
        if self.short == "loop":
            length = clips.end - clips.begin
            # Header durations are rounded, so a time just before the end must wrap to the beginning.
            since = times - clips.begin[:, None] + LOOP_TOLERANCE_SECONDS
            times = clips.begin[:, None] + torch.remainder(since, length[:, None])
        params = {
            "times": torch.maximum(torch.minimum(times, last[:, None]), clips.begin[:, None]),
            "start": torch.maximum(start, clips.begin),
            "end": torch.maximum(end, start),
            "step": step,
            "rate": clips.frames_per_second,
            "group": meta["group"].to(torch.int64) if "group" in meta else keys.fields[:, FIELDS.index("sample")],
        }
        return params | {name: x for name, x in {"overlap": overlap, "speed": speed}.items() if x is not None}

    def apply(self, batch: Any, params: Params) -> list[Shaped[Tensor, "t c h w"]]:
        """Decode each clip's frames, each clip at its own size."""
        rates, times = params["rate"].tolist(), params["times"]
        handles = [
            FrameStack(clip, frames_per_second=rate) if isinstance(clip, Tensor) else clip
            for clip, rate in zip(batch, rates, strict=True)
        ]
        return [clip.decode(t, shorter_side=self.shorter_side) for clip, t in zip(handles, times, strict=True)]

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """The number of frames and their rate, and the scaled size if a shorter side is set."""
        count = params["times"].shape[1]
        known = {**meta, "frames": torch.full_like(params["group"], count), "frames_per_second": 1 / params["step"]}
        if self.shorter_side is not None and "height" in meta and "width" in meta:
            height, width = meta["height"].to(torch.int64), meta["width"].to(torch.int64)
            shorter = torch.minimum(height, width)
            scale = shorter > self.shorter_side
            for name, side in (("height", height), ("width", width)):
                smaller = torch.round(side * self.shorter_side / shorter.double()).to(torch.int64).clamp(min=1)
                known[name] = torch.where(scale, smaller, side)
        return known

    def columns(self, meta: Meta, params: Params) -> dict[str, Shaped[Tensor, "b ..."]]:
        """`time`, `time_start`, `time_end` (seconds) and `group`; `overlap` for paired views; `speed` if drawn."""
        start, end = params["start"], params["end"]
        columns = {"time": (start + end) / 2, "time_start": start, "time_end": end, "group": params["group"]}
        return columns | {name: params[name] for name in ("overlap", "speed") if name in params}

    def _clip_spans(self, keys: Keys, meta: Meta) -> ClipSpans:
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
                got=f"samples with the facts {sorted(meta)}",
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
    """One frame at a uniformly drawn time: `1 c h w`.

    Args:
        shorter_side: frames are scaled down to this while they are decoded.
    """
    return ClipSampler(UniformStart(FrameSpacing(frames=1)), shorter_side=shorter_side, name="video/random-frame")


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
    """A clip from a uniformly drawn start.

    >>> view = mmcon.create_view("video/random-clip", frames=8, rate_hz=8, shorter_side=128)

    Args:
        frames: frames in the view.
        stride: steps from frame to frame.
        rate_hz: steps per second; None: the clip's frame rate.
        speed: bounds of a drawn factor on the step; see video/speed.
        shorter_side: frames are scaled down to this while they are decoded.
        short: `hold`, `loop` or `error` for clips shorter than the view.
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
    """A clip from a uniformly drawn start, slower or faster by a drawn factor.

    Labels are not preserved, since a walk may look like a run. The index table gets a column `speed`, which can be a
    label (Wang et al. 2020, pace prediction).

    Args:
        frames: frames in the view.
        stride: steps from frame to frame.
        rate_hz: steps per second; None: the clip's frame rate.
        speed: bounds of the factor, drawn log-uniformly: at 2 the view takes half as long as its span.
        shorter_side: frames are scaled down to this while they are decoded.
        short: `hold`, `loop` or `error` for clips shorter than the view.
    """
    rule = UniformStart(FrameSpacing(frames, stride, rate_hz, speed))
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/speed")


@register_view("video/dense-clip", modality="video")
def dense_clip(*, frames: int = 16, shorter_side: int | None = None, short: Short = "hold") -> ClipSampler:
    """Consecutive frames of the clip from a uniformly drawn start.

    Args:
        frames: frames in the view.
        shorter_side: frames are scaled down to this while they are decoded.
        short: `hold`, `loop` or `error` for clips shorter than the view.
    """
    return ClipSampler(
        UniformStart(FrameSpacing(frames)), shorter_side=shorter_side, short=short, name="video/dense-clip"
    )


@register_view("video/sparse-clip", modality="video")
def sparse_clip(*, frames: int = 8, shorter_side: int | None = None) -> ClipSampler:
    """One random frame from each of several equal segments of the whole clip (Wang et al. 2016, TSN).

    Args:
        frames: the number of segments, and of frames in the view.
        shorter_side: frames are scaled down to this while they are decoded.
    """
    return ClipSampler(SegmentSampling(frames), shorter_side=shorter_side, name="video/sparse-clip")


@register_view("video/cvrl-clip", modality="video")
def cvrl_clip(
    *, frames: int = 16, stride: int | float = 2, rate_hz: int | float | None = None, shorter_side: int | None = None
) -> ClipSampler:
    """Two clips with a gap k between starts, of density ∝ 1 − k/K up to the longest gap K (Qian et al. 2021, CVRL).

    Pass the same object for both views.

    Args:
        frames: frames in each view.
        stride: steps from frame to frame.
        rate_hz: steps per second; None: the clip's frame rate.
        shorter_side: frames are scaled down to this while they are decoded.
    """
    return ClipSampler(
        ClipPairs(FrameSpacing(frames, stride, rate_hz), "falling"), shorter_side=shorter_side, name="video/cvrl-clip"
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
    """Two clips with a uniform, bounded gap between their starts (Feichtenhofer et al. 2021, ρBYOL).

    Pass the same object for both views; views 2 and 3 are another pair, and so on.

    Args:
        gap_seconds: the longest gap.
        frames: frames in each view.
        stride: steps from frame to frame.
        rate_hz: steps per second; None: the clip's frame rate.
        shorter_side: frames are scaled down to this while they are decoded.
    """
    if gap_seconds < 0:
        raise InputError("video/bounded-gap-clip", expected="gap_seconds >= 0", got=str(gap_seconds))
    rule = ClipPairs(FrameSpacing(frames, stride, rate_hz), "even", gap_seconds)
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
    """A sparse clip (view 0) and dense clips (views 1 to `dense`) that divide its span (Dave et al. 2022, TCLR).

    Pass the same object for all 1 + `dense` views.

    Args:
        frames: frames in each view.
        skip: the sparse clip's stride; that of the dense clips is 1.
        dense: the number of dense clips.
        rate_hz: steps per second; None: the clip's frame rate.
        shorter_side: frames are scaled down to this while they are decoded.
    """
    return ClipSampler(
        SparseAndDenseClips(frames, skip, rate_hz, dense), shorter_side=shorter_side, name="video/tclr-clip"
    )


@register_view("video/window-frames", modality="video")
def window_frames(*, views: int, rate_hz: int | float | None = None, shorter_side: int | None = None) -> ClipSampler:
    """Single frames of a drawn window: view v is frame v of the window.

    Args:
        views: frames in the window; pass the same object for as many views.
        rate_hz: frames per second; None: the clip's frame rate.
        shorter_side: frames are scaled down to this while they are decoded.
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
    """The evaluation view: the center clip, or `views` clips at equally spaced starts from the beginning to the end.

    Args:
        frames: frames in each view.
        stride: steps from frame to frame.
        rate_hz: steps per second; None: the clip's frame rate.
        views: the number of starts.
        shorter_side: frames are scaled down to this while they are decoded.
        short: `hold`, `loop` or `error` for clips shorter than the view.
    """
    rule = EvenlySpacedClips(FrameSpacing(frames, stride, rate_hz), views)
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/grid-clip")
