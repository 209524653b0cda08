"""A third party's package: a view generator class, a plain function, and an encoder, loaded by their entry point."""

import torch

import mmcon


@mmcon.register_view("acme/invert", modality="image")
class Invert(mmcon.ViewGenerator):
    """Invert the pixels of some images.

    Args:
        p: the probability that an image is inverted.
    """

    modality = "image"

    def __init__(self, *, p=0.5):
        self.p = p

    def draw(self, keys, meta):
        return {"applied": keys.bernoulli("applied", self.p)}

    def apply(self, batch, params):
        return torch.where(params["applied"].view(-1, 1, 1, 1), 1 - batch, batch)


@mmcon.register_view("acme/dim", modality="image")
def dim(x, generator):
    """Dim an image by a random factor."""
    return x * torch.rand((), generator=generator)


@mmcon.register_encoder("acme/mean", modality="image")
def mean_color():
    """The mean of each channel."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
