"""Samplers of frame times: from keys and the time spans of clips to the times, in seconds, of a view's frames.

A sampler gets the beginning, the end and the frame rate of a clip. Samplers that relate several views of one sample
(CVRL, TCLR) draw the shared values from a key without the view number, so that each view is computed independently.
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
    """The input of a frame-time sampler, one row per clip.

    Attributes:
        begin: the beginning of the clip, seconds.
        end: the end of the clip, seconds.
        frames_per_second: the clip's frame rate.
        view: the view number.
    """

    begin: Float64[Tensor, " b"]
    end: Float64[Tensor, " b"]
    frames_per_second: Float64[Tensor, " b"]
    view: Int[Tensor, " b"]


class SampledTimes(NamedTuple):
    """The result of a frame-time sampler.

    Attributes:
        times: the frame times of each view, seconds.
        step: the duration of one frame of the view, seconds.
        overlap: the fraction of a view's span that the other view of the pair also covers; None without pairs.
        speed: the factor by which a view is faster than the clip; None if it is not drawn.
    """

    times: Float64[Tensor, "b t"]
    step: Float64[Tensor, " b"]
    overlap: Float64[Tensor, " b"] | None = None
    speed: Float64[Tensor, " b"] | None = None


class FrameTimeSampler(ABC):
    """A sampler that draws frame times from keys and clip spans."""

    @property
    def keeps_speed(self) -> bool:
        """Whether views have the speed of their clip."""
        return True

    @abstractmethod
    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw the frame times of each view."""


@dataclass(frozen=True)
class FrameSpacing:
    """The number of frames and the time between them.

    Attributes:
        frames: the number of frames in a view.
        stride: steps from frame to frame.
        rate_hz: steps per second; None: the clip's frame rate, so that a step is one frame, as in published settings.
        speed: bounds of a factor on the step, drawn log-uniformly; (1, 1): no draw.
    """

    frames: int
    stride: int | float = 1
    rate_hz: int | float | None = None
    speed: tuple[int | float, int | float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        rate_fits = self.rate_hz is None or self.rate_hz > 0
        if self.frames < 1 or self.stride <= 0 or not rate_fits or not 0 < self.speed[0] <= self.speed[1]:
            raise InputError("video", expected="frames >= 1, and stride, rate_hz and speed above 0", got=str(self))

    @property
    def keeps_speed(self) -> bool:
        """Whether no speed is drawn."""
        return self.speed == (1.0, 1.0)

    def step(self, keys: Keys, clips: ClipSpans) -> Float64[Tensor, " b"]:
        """Seconds from frame to frame."""
        rate = clips.frames_per_second if self.rate_hz is None else torch.full_like(clips.begin, self.rate_hz)
        return self.stride / rate * self.speed_factor(keys)

    def speed_factor(self, keys: Keys) -> Float64[Tensor, " b"]:
        """The drawn speed; 1 if no speed is drawn."""
        if self.keeps_speed:
            return torch.ones(len(keys), dtype=torch.float64)
        return keys.log_uniform("speed", *self.speed)


@dataclass(frozen=True)
class UniformStart(FrameTimeSampler):
    """Equally spaced frames from a uniformly drawn start."""

    spacing: FrameSpacing

    @property
    def keeps_speed(self) -> bool:
        """Whether no speed is drawn."""
        return self.spacing.keeps_speed

    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw the start."""
        step = self.spacing.step(keys, clips)
        start = clips.begin + keys.uniform("start") * latest_start(step, self.spacing.frames, clips)
        speed = None if self.spacing.keeps_speed else self.spacing.speed_factor(keys)
        return SampledTimes(even_times(start, step, self.spacing.frames), step, speed=speed)


@dataclass(frozen=True)
class EvenlySpacedClips(FrameTimeSampler):
    """View v of `views` starts at the v-th of equally spaced starts; a single view is central. Nothing is drawn."""

    spacing: FrameSpacing
    views: int = 1

    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw nothing: the start follows from the view number."""
        step = self.spacing.step(keys, clips)
        fraction = (clips.view % self.views) / (self.views - 1) if self.views > 1 else 0.5
        start = clips.begin + fraction * latest_start(step, self.spacing.frames, clips)
        return SampledTimes(even_times(start, step, self.spacing.frames), step)


@dataclass(frozen=True)
class SegmentSampling(FrameTimeSampler):
    """One frame time drawn in each of several equal segments of the clip (Wang et al. 2016, TSN)."""

    frames: int

    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw a frame time in each segment."""
        length = (clips.end - clips.begin) / self.frames
        within = torch.arange(self.frames, dtype=torch.float64) + keys.uniform("within", shape=(self.frames,))
        return SampledTimes(clips.begin[:, None] + within * length[:, None], length)


@dataclass(frozen=True)
class ClipPairs(FrameTimeSampler):
    """Pairs of views (0 and 1, 2 and 3, …) with a drawn gap between their starts.

    Attributes:
        spacing: the frame spacing of each view.
        density: the density of the gap k up to the longest gap K: `falling` is 1 − k/K (CVRL), `even` is uniform.
        longest_seconds: a further bound of K (ρBYOL).
    """

    spacing: FrameSpacing
    density: Literal["falling", "even"]
    longest_seconds: int | float = math.inf

    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw the gap, the earlier start and the earlier view."""
        shared = shared_keys(keys, 2)
        step = self.spacing.step(keys, clips)
        room = latest_start(step, self.spacing.frames, clips)
        u = shared.uniform("gap")
        # The inverse of the distribution function 1 - (1 - k/K)^2, whose density falls as 1 - k/K.
        fraction = 1 - torch.sqrt(1 - u) if self.density == "falling" else u
        gap = fraction * room.clamp(max=self.longest_seconds)
        earlier = clips.begin + shared.uniform("start") * (room - gap)
        is_later = shared.bernoulli("order", 0.5) == (clips.view % 2 == 0)
        length = self.spacing.frames * step
        times = even_times(earlier + torch.where(is_later, gap, 0.0), step, self.spacing.frames)
        return SampledTimes(times, step, overlap=(length - gap).clamp(min=0) / length)


@dataclass(frozen=True)
class SparseAndDenseClips(FrameTimeSampler):
    """View 0 covers a span with a long stride; views 1 to `dense` divide that span (Dave et al. 2022, TCLR)."""

    frames: int
    skip: int
    rate_hz: int | float | None
    dense: int = 4

    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw the start of the span."""
        shared = shared_keys(keys, 1 + self.dense)
        number = clips.view % (1 + self.dense)
        long = FrameSpacing(self.frames, self.skip, self.rate_hz).step(keys, clips)
        start = clips.begin + shared.uniform("start") * latest_start(long, self.frames, clips)
        # The dense clips have the stride 1, so that they together cover the span of the sparse one at skip = dense.
        step = torch.where(number == 0, long, long / self.skip)
        start = start + (number - 1).clamp(min=0) * (long * self.frames / self.dense)
        return SampledTimes(even_times(start, step, self.frames), step)


@dataclass(frozen=True)
class FrameWindow(FrameTimeSampler):
    """View v is frame v of a window of `views` frames that all views share."""

    spacing: FrameSpacing
    views: int

    def draw(self, keys: Keys, clips: ClipSpans) -> SampledTimes:
        """Draw the start of the window."""
        shared = shared_keys(keys, self.views)
        step = self.spacing.step(shared, clips)
        start = clips.begin + shared.uniform("start") * latest_start(step, self.views, clips)
        return SampledTimes((start + (clips.view % self.views) * step)[:, None], step)


def latest_start(step: Float64[Tensor, " b"], frames: int, clips: ClipSpans) -> Float64[Tensor, " b"]:
    """The latest start of a view with this number of frames, in seconds after the clip's beginning."""
    return (clips.end - clips.begin - frames * step).clamp(min=0)


def even_times(start: Float64[Tensor, " b"], step: Float64[Tensor, " b"], frames: int) -> Float64[Tensor, "b t"]:
    """Equally spaced frame times."""
    return start[:, None] + torch.arange(frames, dtype=torch.float64) * step[:, None]


def shared_keys(keys: Keys, together: int) -> Keys:
    """Keys that `together` consecutive views share: the view number becomes the number of their group."""
    fields = keys.fields.clone()
    # The group's number stays in the key: two pairs of one sample draw independently.
    fields[:, FIELDS.index("view")] //= together
    shared = Keys(fields, dropped=keys.dropped, step=keys.step)
    for name in keys.path:
        shared = shared.child(name)
    return shared.child("together")
