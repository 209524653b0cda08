"""Rules for the moments of a view: from keys and headers of clips to times in seconds.

A rule knows clips by where they begin and end and by their rate. Rules that place several views of one sample together
(CVRL, TCLR) draw what they share from the key without the view's number, so that views need not know of each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import FIELDS, Keys


@dataclass(frozen=True)
class ClipSpans:
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


class SampledTimes(NamedTuple):
    """What a rule draws.

    Attributes:
        times: the moments of each view, `b t` seconds.
        step: for how long one of its frames stands, `b` seconds.
        overlap: the share of its span that its partner covers too, `b`, where views are drawn in pairs.
        speed: by how much faster than it was taken a view runs, `b`, where that is drawn.
    """

    times: Float64[Tensor, "b t"]
    step: Float64[Tensor, "b"]
    overlap: Float64[Tensor, "b"] | None = None
    speed: Float64[Tensor, "b"] | None = None


class FrameTimeSampler(ABC):
    """A rule that turns keys and headers into the moments of a view."""

    @property
    def keeps_speed(self) -> bool:
        """Whether a view runs as fast as what it shows."""
        return True

    @abstractmethod
    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw the moments of each view."""


@dataclass(frozen=True)
class FrameSpacing:
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

    def step(self, keys: Keys, headers: ClipSpans) -> Float64[Tensor, "b"]:
        """Seconds from frame to frame."""
        rate = headers.frames_per_second if self.rate_hz is None else torch.full_like(headers.begin, self.rate_hz)
        return self.stride / rate * self.factor(keys)

    @property
    def keeps_speed(self) -> bool:
        """Whether no speed is drawn."""
        return self.speed == (1.0, 1.0)

    def factor(self, keys: Keys) -> Float64[Tensor, "b"]:
        """The drawn speed; 1 where none is."""
        return (
            torch.ones(len(keys), dtype=torch.float64) if self.keeps_speed else keys.log_uniform("speed", *self.speed)
        )


def latest_start(step: Tensor, frames: int, headers: ClipSpans) -> Float64[Tensor, "b"]:
    """How much later than the beginning a view of so many frames may start, in seconds."""
    return (headers.end - headers.begin - frames * step).clamp(min=0)


def even_times(begin: Tensor, step: Tensor, frames: int) -> Float64[Tensor, "b t"]:
    """Moments at even steps."""
    return begin[:, None] + torch.arange(frames, dtype=torch.float64) * step[:, None]


@dataclass(frozen=True)
class UniformStart(FrameTimeSampler):
    """Consecutive moments from an evenly drawn start."""

    pace: FrameSpacing

    @property
    def keeps_speed(self) -> bool:
        """Whether no speed is drawn."""
        return self.pace.keeps_speed

    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw an evenly placed start."""
        step = self.pace.step(keys, headers)
        start = headers.begin + keys.uniform("start") * latest_start(step, self.pace.frames, headers)
        speed = None if self.pace.keeps_speed else self.pace.factor(keys)
        return SampledTimes(even_times(start, step, self.pace.frames), step, speed=speed)


@dataclass(frozen=True)
class EvenlySpacedClips(FrameTimeSampler):
    """View v of `views` at an even place from the beginning to the end; one view: the center. Nothing is drawn."""

    pace: FrameSpacing
    views: int = 1

    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw nothing: the place follows from the view."""
        step = self.pace.step(keys, headers)
        place = (headers.view % self.views) / (self.views - 1) if self.views > 1 else 0.5
        start = headers.begin + place * latest_start(step, self.pace.frames, headers)
        return SampledTimes(even_times(start, step, self.pace.frames), step)


@dataclass(frozen=True)
class SegmentSampling(FrameTimeSampler):
    """The whole clip in equal segments, and one moment drawn in each (Wang et al. 2016, TSN)."""

    frames: int

    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw a moment in each segment."""
        length = (headers.end - headers.begin) / self.frames
        within = torch.arange(self.frames, dtype=torch.float64) + keys.uniform("within", shape=(self.frames,))
        return SampledTimes(headers.begin[:, None] + within * length[:, None], length)


@dataclass(frozen=True)
class ClipPair(FrameTimeSampler):
    """Views in pairs (0 and 1, 2 and 3, …) whose starts lie a drawn gap apart.

    Attributes:
        pace: of each view.
        density: of the gap k up to K, the longest that fits: `falling` is 1 − k/K (CVRL), `even` is flat.
        longest_seconds: bounds K further (ρBYOL).
    """

    pace: FrameSpacing
    density: Literal["falling", "even"]
    longest_seconds: int | float = math.inf

    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw the gap, the first start and which view comes first."""
        shared = shared_keys(keys, 2)
        step = self.pace.step(keys, headers)
        room = latest_start(step, self.pace.frames, headers)
        u = shared.uniform("gap")
        share = 1 - torch.sqrt(1 - u) if self.density == "falling" else u
        gap = share * room.clamp(max=self.longest_seconds)
        first = headers.begin + shared.uniform("start") * (room - gap)
        later = shared.bernoulli("order", 0.5) == (headers.view % 2 == 0)
        shared_seconds = (self.pace.frames * step - gap).clamp(min=0)
        times = even_times(first + torch.where(later, gap, 0.0), step, self.pace.frames)
        return SampledTimes(times, step, shared_seconds / (self.pace.frames * step))


@dataclass(frozen=True)
class SparseAndDenseClips(FrameTimeSampler):
    """View 0 covers a span in long steps; views 1 to `dense` share that span out (Dave et al. 2022, TCLR)."""

    frames: int
    skip: int
    rate_hz: int | float | None
    dense: int = 4

    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw the span's start."""
        shared = shared_keys(keys, 1 + self.dense)
        number = headers.view % (1 + self.dense)
        long = FrameSpacing(self.frames, self.skip, self.rate_hz).step(keys, headers)
        start = headers.begin + shared.uniform("start") * latest_start(long, self.frames, headers)
        step = torch.where(number == 0, long, long / self.skip)
        start = start + (number - 1).clamp(min=0) * (long * self.frames / self.dense)
        return SampledTimes(even_times(start, step, self.frames), step)


@dataclass(frozen=True)
class FrameWindow(FrameTimeSampler):
    """View v is frame v of a window of `views` frames that all views share."""

    pace: FrameSpacing
    views: int

    def draw(self, keys: Keys, headers: ClipSpans) -> SampledTimes:
        """Draw the window's start."""
        step = self.pace.step(shared_keys(keys, self.views), headers)
        start = headers.begin + shared_keys(keys, self.views).uniform("start") * latest_start(step, self.views, headers)
        return SampledTimes((start + (headers.view % self.views) * step)[:, None], step)


def shared_keys(keys: Keys, together: int) -> Keys:
    """Keys that views drawn together share: the view's number is that of their group."""
    fields = keys.fields.clone()
    fields[:, FIELDS.index("view")] //= together
    shared = Keys(fields, dropped=keys.dropped, step=keys.step)
    for name in keys.path:
        shared = shared.child(name)
    return shared.child("together")
