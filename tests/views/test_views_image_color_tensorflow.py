"""TensorFlow's color jitter and the linear hue against their definitions, pixel by pixel."""

import colorsys
import math

import numpy as np
import pytest
import torch
from mmcon_views.image import color_tensorflow

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import meta_of

FACTORS = (0.0, 0.2, 0.7, 1.0, 1.8, 2.6)


def images():
    """Random colors, with black, white and gray pixels among them."""
    x = torch.rand(len(FACTORS), 3, 9, 7, generator=torch.Generator().manual_seed(0))
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    x[:, :, 2] = x[:, :1, 2]
    return x


def by_pixel(x, factors, function):
    """What a function of (pixel, factor, image) makes of each pixel."""
    out = np.empty(x.shape)
    for i, factor in enumerate(factors):
        image = x[i].double().numpy()
        for h, w in np.ndindex(x.shape[2:]):
            out[i, :, h, w] = function(image[:, h, w], factor, image)
    return torch.from_numpy(out).float()


def added(pixel, amount, _):
    return np.clip(pixel + amount, 0, 1)


def contrasted(pixel, factor, image):
    mean = image.mean((1, 2))
    return np.clip((pixel - mean) * factor + mean, 0, 1)


def saturated(pixel, factor, _):
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb(h, min(1.0, s * factor), v)


def turned(pixel, fraction, _):
    forth = np.array(color_tensorflow.YIQ)
    y, i, q = forth @ pixel
    chroma = complex(i, q) * np.exp(2j * math.pi * fraction)
    return np.clip(np.linalg.solve(forth, [y, chroma.real, chroma.imag]), 0, 1)


@pytest.mark.parametrize(
    ("ours", "definition", "factors"),
    [
        (color_tensorflow.added_brightness, added, (-0.8, -0.3, 0.0, 0.1, 0.5, 0.8)),
        (color_tensorflow.contrast_of_channels, contrasted, FACTORS),
        (color_tensorflow.hsv_saturation, saturated, FACTORS),
        (color_tensorflow.linear_hue, turned, (-0.5, -0.2, 0.0, 0.1, 0.25, 0.5)),
    ],
)
def test_an_operation_is_its_definition(ours, definition, factors):
    x = images()
    column = torch.tensor(factors).view(-1, 1, 1, 1)
    torch.testing.assert_close(ours(x, column), by_pixel(x, factors, definition), atol=3e-6, rtol=0)


def test_gray_images_keep_saturation_and_hue():
    x, factor = images()[:, :1], torch.full((len(FACTORS), 1, 1, 1), 0.3)
    assert torch.equal(color_tensorflow.hsv_saturation(x, factor), x)
    assert torch.equal(color_tensorflow.linear_hue(x, factor), x)


@pytest.mark.parametrize(("brightness", "low", "high"), [("added", -0.8, 0.8), ("multiplied", 0.2, 1.8)])
def test_the_two_versions_differ_in_brightness(brightness, low, high):
    x = torch.full((2000, 3, 2, 2), 0.5)
    jitter = create_view(
        "image/color-jitter-tf", brightness_is=brightness, contrast=0.0, saturation=0.0, hue=0.0, p=1.0
    )
    params = jitter.draw(keys(seed=0, sample=range(2000)), meta_of(x, "image"))
    drawn = params["brightness"]
    assert low <= drawn.min() < low + 0.01
    assert high - 0.01 < drawn.max() <= high
    means = {"added": 0.5 + drawn, "multiplied": 0.5 * drawn}[brightness].clamp(0, 1).float()
    torch.testing.assert_close(jitter.apply(x, params).mean((1, 2, 3)), means, atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("image/color-jitter-tf", {"hue": 0.6}, "hue at most .5"),
        ("image/color-jitter-tf", {"brightness_is": "v1"}, '"added" or "multiplied"'),
        ("image/linear-hue", {"hue": -0.1}, "hue from 0 to .5"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        create_view(name, **options)
