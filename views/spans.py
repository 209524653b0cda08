"""Where in a clip a view looks: spans of time, drawn from the header before anything is decoded.

Every sampler here is one generator, `ClipSampler`, with another rule for its moments. It draws in seconds, from the
clip's duration and rate, and `apply` decodes just those moments. Beside the frames it fills the index table: `time`
(centre of the span), `time_start`, `time_end` (seconds of the clip's clock) and `group` (the clip), which is all that a
graded affinity of time needs.

Rules that place several views of one sample together (CVRL, TCLR) draw what they share from the key without the view's
number, so that views need not know of each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media import FrameStack
from mmcon.random import FIELDS, Keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator

# Frames that come as a bare tensor have no clock; their times are counted in frames.
BARE_FRAMES_PER_SECOND = 1.0
LOOP_TOLERANCE_SECONDS = 1e-4
Short = Literal["hold", "loop", "error"]


@dataclass(frozen=True)
class Headers:
    """What the rules draw from, one row a clip.

    Attributes:
        begin: where the usable span begins, seconds.
        end: where it ends.
        frames_per_second: the clip's rate.
        view: the number of the view, int64.
    """

    begin: Float64[Tensor, "b"]
    end: Float64[Tensor, "b"]
    frames_per_second: Float64[Tensor, "b"]
    view: Int[Tensor, "b"]


class Drawn(NamedTuple):
    """What a rule draws.

    Attributes:
        times: the moments of each view, `b t` seconds.
        step: for how long one of its frames stands, `b` seconds.
        overlap: the share of its span that its partner covers too, `b`, where views are drawn in pairs.
    """

    times: Float64[Tensor, "b t"]
    step: Float64[Tensor, "b"]
    overlap: Float64[Tensor, "b"] | None = None


class Moments(ABC):
    """A rule that turns keys and headers into the moments of a view."""

    @abstractmethod
    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw the moments of each view."""


@dataclass(frozen=True)
class Pace:
    """How many frames, and how far apart.

    Attributes:
        frames: in a view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate, so that a step is a frame, as published settings count.
        speed: bounds of a factor on the step, drawn log-evenly: (1, 1) leaves time as it is.
    """

    frames: int
    stride: int | float = 1
    rate_hz: int | float | None = None
    speed: tuple[int | float, int | float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        rate_fits = self.rate_hz is None or self.rate_hz > 0
        if self.frames < 1 or self.stride <= 0 or not rate_fits or not 0 < self.speed[0] <= self.speed[1]:
            raise InputError("video", expected="frames >= 1, and stride, rate_hz and speed above 0", got=str(self))

    def step(self, keys: Keys, headers: Headers) -> Float64[Tensor, "b"]:
        """Seconds from frame to frame."""
        rate = headers.frames_per_second if self.rate_hz is None else torch.full_like(headers.begin, self.rate_hz)
        step = self.stride / rate
        return step if self.speed == (1.0, 1.0) else step * keys.log_uniform("speed", *self.speed)


def room_for(step: Tensor, frames: int, headers: Headers) -> Float64[Tensor, "b"]:
    """How much later than the beginning a view of so many frames may start, in seconds."""
    return (headers.end - headers.begin - frames * step).clamp(min=0)


def evenly(begin: Tensor, step: Tensor, frames: int) -> Float64[Tensor, "b t"]:
    """Moments at even steps."""
    return begin[:, None] + torch.arange(frames, dtype=torch.float64) * step[:, None]


@dataclass(frozen=True)
class Anywhere(Moments):
    """Consecutive moments from an evenly drawn start."""

    pace: Pace

    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw an evenly placed start."""
        step = self.pace.step(keys, headers)
        start = headers.begin + keys.uniform("start") * room_for(step, self.pace.frames, headers)
        return Drawn(evenly(start, step, self.pace.frames), step)


@dataclass(frozen=True)
class Grid(Moments):
    """View v of `views` at an even place from the beginning to the end; one view: the centre. Nothing is drawn."""

    pace: Pace
    views: int = 1

    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw nothing: the place follows from the view."""
        step = self.pace.step(keys, headers)
        place = (headers.view % self.views) / (self.views - 1) if self.views > 1 else 0.5
        start = headers.begin + place * room_for(step, self.pace.frames, headers)
        return Drawn(evenly(start, step, self.pace.frames), step)


@dataclass(frozen=True)
class Segments(Moments):
    """The whole clip in equal segments, and one moment drawn in each (Wang et al. 2016, TSN)."""

    frames: int

    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw a moment in each segment."""
        length = (headers.end - headers.begin) / self.frames
        within = torch.arange(self.frames, dtype=torch.float64) + keys.uniform("within", shape=(self.frames,))
        return Drawn(headers.begin[:, None] + within * length[:, None], length)


@dataclass(frozen=True)
class Gap(Moments):
    """Views in pairs (0 and 1, 2 and 3, …) whose starts lie a drawn gap apart.

    Attributes:
        pace: of each view.
        density: of the gap k up to K, the longest that fits: `falling` is 1 − k/K (CVRL), `even` is flat.
        longest_seconds: bounds K further (ρBYOL).
    """

    pace: Pace
    density: Literal["falling", "even"]
    longest_seconds: int | float = math.inf

    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw the gap, the first start and which view comes first."""
        shared = across(keys, 2)
        step = self.pace.step(keys, headers)
        room = room_for(step, self.pace.frames, headers)
        u = shared.uniform("gap")
        share = 1 - torch.sqrt(1 - u) if self.density == "falling" else u
        gap = share * room.clamp(max=self.longest_seconds)
        first = headers.begin + shared.uniform("start") * (room - gap)
        later = shared.bernoulli("order", 0.5) == (headers.view % 2 == 0)
        shared_seconds = (self.pace.frames * step - gap).clamp(min=0)
        times = evenly(first + torch.where(later, gap, 0.0), step, self.pace.frames)
        return Drawn(times, step, shared_seconds / (self.pace.frames * step))


@dataclass(frozen=True)
class SparseAndDense(Moments):
    """View 0 covers a span in long steps; views 1 to `dense` share that span out (Dave et al. 2022, TCLR)."""

    frames: int
    skip: int
    rate_hz: int | float | None
    dense: int = 4

    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw the span's start."""
        shared = across(keys, 1 + self.dense)
        number = headers.view % (1 + self.dense)
        long = Pace(self.frames, self.skip, self.rate_hz).step(keys, headers)
        start = headers.begin + shared.uniform("start") * room_for(long, self.frames, headers)
        step = torch.where(number == 0, long, long / self.skip)
        start = start + (number - 1).clamp(min=0) * (long * self.frames / self.dense)
        return Drawn(evenly(start, step, self.frames), step)


@dataclass(frozen=True)
class Frames(Moments):
    """View v is frame v of a window of `views` frames that all views share."""

    pace: Pace
    views: int

    def draw(self, keys: Keys, headers: Headers) -> Drawn:
        """Draw the window's start."""
        step = self.pace.step(across(keys, self.views), headers)
        start = headers.begin + across(keys, self.views).uniform("start") * room_for(step, self.views, headers)
        return Drawn((start + (headers.view % self.views) * step)[:, None], step)


def across(keys: Keys, together: int) -> Keys:
    """Keys that views drawn together share: the view's number is that of their group."""
    fields = keys.fields.clone()
    fields[:, FIELDS.index("view")] //= together
    shared = Keys(fields, dropped=keys.dropped, step=keys.step)
    for name in keys.path:
        shared = shared.child(name)
    return shared.child("together")


@final
class ClipSampler(ViewGenerator):
    """Draw a view's moments from a clip's header, then decode these and nothing else.

    Args:
        moments: the rule.
        shorter_side: scale frames down to this while they are decoded; smaller ones stay.
        short: what to do where the clip is shorter than the view: `hold` its last frame, `loop` it, or `error`.
        name: the registered name.
    """

    modality: ClassVar[str] = "video"
    scope: ClassVar[Any] = "clip"
    ragged: ClassVar[bool] = True

    def __init__(self, moments: Moments, *, shorter_side: int | None = None, short: Short = "hold", name: str) -> None:
        self.moments, self.shorter_side, self.short, self.name = moments, shorter_side, short, name
        if short not in ("hold", "loop", "error"):
            raise InputError(name, expected="short='hold', 'loop' or 'error'", got=repr(short))

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `times` (`b t` seconds); beside them stand the span, the frame's duration and the clip's identity."""
        headers = self._headers(keys, meta)
        times, step, overlap = self.moments.draw(keys, headers)
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
        return drawn if overlap is None else {**drawn, "overlap": overlap}

    def apply(self, batch: Any, params: Params) -> list[Tensor]:
        """Decode each clip's moments: `t c h w` uint8, each clip at its own size."""
        rates, times = params["rate"].tolist(), params["times"]
        handles = [
            FrameStack(clip, frames_per_second=rate) if isinstance(clip, Tensor) else clip
            for clip, rate in zip(batch, rates, strict=True)
        ]
        return [clip.decode(t, shorter_side=self.shorter_side) for clip, t in zip(handles, times, strict=True)]

    def leaves(self, meta: Meta, params: Params) -> Meta:
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
        """`time`, `time_start` and `time_end` in seconds, `group`, and `overlap` where views come in pairs."""
        start, end = params["start"], params["end"]
        columns = {"time": (start + end) / 2, "time_start": start, "time_end": end, "group": params["group"]}
        return columns | ({"overlap": params["overlap"]} if "overlap" in params else {})

    def _headers(self, keys: Keys, meta: Meta) -> Headers:
        if "duration_seconds" in meta:
            rate = meta["frames_per_second"].double()
            duration = meta["duration_seconds"].double()
        elif "frames" in meta:
            rate = torch.full((len(keys),), BARE_FRAMES_PER_SECOND, dtype=torch.float64)
            duration = meta["frames"] / rate
        else:
            raise InputError(
                self.name,
                expected="clips: handles of mmcon.media.open_clip, or tensors `t c h w`",
                got=f"samples of which {sorted(meta) or 'nothing'} is known",
            )
        bad = ~((duration > 0) & (rate > 0))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            got = f"{float(duration[row])} s at {float(rate[row])} frames a second in row {row}"
            raise DataError(self.name, expected="a duration and a frame rate above 0", got=got, key=keys.describe(row))
        begin = meta["start_seconds"].double() if "start_seconds" in meta else torch.zeros_like(duration)
        return Headers(begin, begin + duration, rate, keys.fields[:, FIELDS.index("view")])


# --- by name ---------------------------------------------------------------------------------------------------------


@register_view("video/random-frame", modality="video")
def random_frame(*, shorter_side: int | None = None) -> ClipSampler:
    """One frame at an evenly drawn moment: `1 c h w`.

    Args:
        shorter_side: decode at this size.
    """
    return ClipSampler(Anywhere(Pace(1)), shorter_side=shorter_side, name="video/random-frame")


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
        speed: bounds of a drawn factor on the step. It changes how fast things move, so it keeps the meaning only where
            pace has none.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    rule = Anywhere(Pace(frames, stride, rate_hz, speed))
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/random-clip")


@register_view("video/dense-clip", modality="video")
def dense_clip(*, frames: int = 16, shorter_side: int | None = None, short: Short = "hold") -> ClipSampler:
    """Consecutive frames of the clip from an evenly drawn start.

    Args:
        frames: in the view.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    return ClipSampler(Anywhere(Pace(frames)), shorter_side=shorter_side, short=short, name="video/dense-clip")


@register_view("video/sparse-clip", modality="video")
def sparse_clip(*, frames: int = 8, shorter_side: int | None = None) -> ClipSampler:
    """A frame from each of equal segments of the whole clip (Wang et al. 2016, TSN).

    Args:
        frames: segments, and frames in the view.
        shorter_side: decode at this size.
    """
    return ClipSampler(Segments(frames), shorter_side=shorter_side, name="video/sparse-clip")


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
    return ClipSampler(Gap(Pace(frames, stride, rate_hz), "falling"), shorter_side=shorter_side, name="video/cvrl-clip")


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
    rule = Gap(Pace(frames, stride, rate_hz), "even", gap_seconds)
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
    return ClipSampler(SparseAndDense(frames, skip, rate_hz, dense), shorter_side=shorter_side, name="video/tclr-clip")


@register_view("video/window-frames", modality="video")
def window_frames(*, views: int, rate_hz: int | float | None = None, shorter_side: int | None = None) -> ClipSampler:
    """All frames of a drawn window, a view each: view v is the window's frame v.

    Args:
        views: frames in the window; give the same object for so many views.
        rate_hz: frames a second; None: the clip's own rate.
        shorter_side: decode at this size.
    """
    return ClipSampler(Frames(Pace(1, 1, rate_hz), views), shorter_side=shorter_side, name="video/window-frames")


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
    """The view of evaluation: the centre, or `views` clips at even places from the beginning to the end.

    Args:
        frames: in each view.
        stride: steps from frame to frame.
        rate_hz: steps a second; None: the clip's own rate.
        views: how many places.
        shorter_side: decode at this size.
        short: `hold`, `loop` or `error` where the clip is shorter than the view.
    """
    rule = Grid(Pace(frames, stride, rate_hz), views)
    return ClipSampler(rule, shorter_side=shorter_side, short=short, name="video/grid-clip")
