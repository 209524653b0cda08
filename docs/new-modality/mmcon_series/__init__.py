"""Multichannel time series for mmcon: a source, three views and an encoder; samples are float tensors `channels time`.

An installed package names this module in the entry-point group `mmcon.plugins`; importing it registers its contents.
"""

import math

import torch
from torch import Tensor, nn

import mmcon

CHANNELS, LENGTH, CLASSES = 3, 192, 6


@mmcon.register_source("series/oscillators", modality="series")
def oscillators(split: str = "train", per_class: int = 100) -> mmcon.TensorSource:
    """Three coupled, damped oscillators at random phases, in noise: synthetic data.

    A class is a pair of frequencies; three classes share a lower frequency.

    Args:
        split: "train" or "test".
        per_class: the number of samples of each class.
    """
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    ids = torch.arange(len(labels)) + (0 if split == "train" else 1 << 32)
    draws = mmcon.keys(seed=0, sample=ids).child("oscillators")
    phase = 2 * math.pi * draws.uniform("phase", shape=(CHANNELS, 2)).float()
    t = torch.arange(LENGTH) / LENGTH
    frequency = torch.stack([4 + 3 * (labels // 3), 11 + 5 * (labels % 3)], 1).float()
    waves = torch.sin(2 * math.pi * frequency[:, None, :, None] * t + phase[..., None])
    damping = torch.exp(-2 * draws.uniform("damping", shape=(CHANNELS, 1)).float() * t)
    noise = draws.normal("noise", shape=(CHANNELS, LENGTH)).float()
    return mmcon.TensorSource(
        waves.sum(2) * damping + 0.7 * noise,
        modality="series",
        ids=ids,
        labels=labels,
        name=f"series/oscillators ({split})",
    )


@mmcon.register_view("series/crop", modality="series")
class Crop(mmcon.ViewGenerator):
    """A window at a random position: a class that draws and applies for a whole batch.

    Args:
        length: the length of the window, in samples.
        center: take the center; nothing is drawn.
    """

    modality = "series"

    def __init__(self, *, length: int = 128, center: bool = False) -> None:
        self.length, self.center = length, center

    def draw(self, keys, meta):
        """Draw the start of the window, as a fraction of the possible starts."""
        place = keys.uniform("place")
        return {"place": torch.full_like(place, 0.5) if self.center else place}

    def apply(self, batch: Tensor, params) -> Tensor:
        """Cut the windows, `b c t`."""
        start = (params["place"] * (batch.shape[-1] - self.length + 1)).long().to(batch.device)
        columns = start[:, None] + torch.arange(self.length, device=batch.device)
        return batch.gather(2, columns[:, None].expand(-1, batch.shape[1], -1))


@mmcon.register_view("series/gain", modality="series")
def gain(x: Tensor, generator: torch.Generator) -> Tensor:
    """A gain of up to 6 dB in each channel: a plain function of one sample and a torch.Generator."""
    decibels = 12 * torch.rand(x.shape[0], 1, generator=generator) - 6
    return x * 10 ** (decibels / 20)


@mmcon.register_view("series/window", modality="series")
def window(*, length: int = 128) -> mmcon.Chain:
    """Gain, then a window: a factory that returns a chain.

    Args:
        length: the length of the window, in samples.
    """
    return mmcon.Chain(mmcon.create_view("series/gain"), mmcon.create_view("series/crop", length=length))


@mmcon.register_view("series/plain", modality="series")
def plain(*, length: int = 128) -> Crop:
    """The center window: the view of evaluation; nothing is drawn.

    Args:
        length: the length of the window, in samples.
    """
    return Crop(length=length, center=True)


@mmcon.register_encoder("series/conv", modality="series")
class Conv(nn.Module):
    """Three convolutions over time, then the mean and the maximum.

    Args:
        channels: the number of channels of the series.
        width: the width of the first layer.
    """

    def __init__(self, channels: int = CHANNELS, width: int = 32) -> None:
        super().__init__()
        self.feature_dim = 4 * width
        layers = []
        for inner, outer in ((channels, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv1d(inner, outer, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(outer), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, views: Tensor) -> Tensor:
        """From `n c t` to features `n d`."""
        x = self.layers(views)
        return torch.cat([x.mean(2), x.amax(2)], 1)
