"""Recipes against what their released code does, each expected value derived here from the definition."""

import cmath
import colorsys
import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from mmcon_views.image import cmc, color, color_tensorflow, warp
from mmcon_views.image.multi_crop import multi_crop
from PIL import Image, ImageFilter
from scipy import ndimage
from scipy.interpolate import RBFInterpolator

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import meta_of

torch.set_num_threads(1)


def images(n=3, side=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(n, 3, 7, 7, generator=g), (side, side + 3), mode="bicubic")
    return ((x + 0.1 * torch.rand(n, 3, side, side + 3, generator=g)).clamp(0, 1) * 255).round() / 255


def by_pixel(x, function):
    flat = x.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    out = np.array([function(*pixel) for pixel in flat]).reshape(len(x), *x.shape[2:], 3)
    return torch.from_numpy(out).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.31])
def test_hue_is_that_of_the_hexcone(turn):
    def turned(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

    x = images(1, 12)
    torch.testing.assert_close(color.hue(x, torch.full((1, 1, 1, 1), turn)), by_pixel(x, turned), atol=3e-6, rtol=0)


@pytest.mark.parametrize("turn", [-0.4, 0.1, 0.25])
def test_the_linear_hue_turns_u_and_v_alike(turn):
    # I and Q are U = (B − Y)/2.03 and V = (R − Y)/1.14, turned by 33°: a turn of one plane is that of the other.
    def turned(r, g, b):
        y = 0.299 * r + 0.587 * g + 0.114 * b
        chroma = complex((r - y) / 1.13988, (b - y) / 2.03211) * cmath.exp(2j * math.pi * turn)
        r, b = y + 1.13988 * chroma.real, y + 2.03211 * chroma.imag
        return tuple(np.clip([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], 0, 1))

    x = images(1, 12)
    ours = color_tensorflow.linear_hue(x, torch.full((1, 1, 1, 1), turn))
    # The matrix of I and Q has three digits.
    torch.testing.assert_close(ours, by_pixel(x, turned), atol=3e-3, rtol=0)


@pytest.mark.parametrize(("outside", "name"), [(0.0, "image/simclr-tf"), (0.5, "image/simclr-supcon")])
def test_the_blur_of_tensorflow_meets_black_or_mid_gray_beyond_the_edges(outside, name):
    # Zeros are black in [0, 1] (SimCLR) and mid-gray in [−1, 1] (SupCon).
    blur = dict(create_view(name, size=44, **({"blur": True} if "tf" in name else {})).children())["blur"]
    x, sigma = images(1, 44), 1.7
    ours = blur.apply(x, {"apply": torch.tensor([True]), "sigma": torch.tensor([sigma], dtype=torch.float64)})
    at = np.arange(-2, 3)  # 44 // 10 // 2 taps on each side
    line = np.exp(-0.5 * (at / sigma) ** 2)
    theirs = x[0].double().numpy()
    for axis in (1, 2):
        theirs = ndimage.correlate1d(theirs, line / line.sum(), axis=axis, mode="constant", cval=outside)
    torch.testing.assert_close(ours[0], torch.from_numpy(theirs).float(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("recipe", ["swav", "dino"])
def test_blurs_of_multi_crops_are_pillows(recipe):
    for view in multi_crop(recipe, global_size=48, local_size=24):
        blur = dict(view.children())["blur"]
        x = images(1, 24, seed=2)
        for sigma in (0.5, 1.2, 2.0):
            ours = blur.apply(x, {"apply": torch.tensor([True]), "sigma": torch.tensor([sigma], dtype=torch.float64)})
            image = Image.fromarray((x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
            theirs = torch.from_numpy(np.array(image.filter(ImageFilter.GaussianBlur(sigma)))).permute(2, 0, 1) / 255
            # Pillow approximates a Gaussian by three boxes and repeats the edge, where ours is mirrored.
            away = (ours[0] - theirs).abs()[:, 6:-6, 6:-6]
            assert float(away.max()) < 5 / 255
            assert float(away.mean()) < 1.2 / 255


def test_dino_and_swav_have_their_probabilities_and_areas():
    n = 20000
    meta = {name: torch.full((n,), 300) for name in ("height", "width")} | {"channels": torch.full((n,), 3)}
    table = keys(seed=1, sample=range(n))
    expected = {
        ("image/dino", "global-1"): (0.4, 1.0, 1.0, None),
        ("image/dino", "global-2"): (0.4, 1.0, 0.1, 0.2),
        ("image/dino", "local"): (0.05, 0.4, 0.5, None),
        ("image/swav", "global"): (0.14, 1.0, 0.5, None),
        ("image/swav", "local"): (0.05, 0.14, 0.5, None),
    }
    for (name, crop), (low, high, blurred, solarized) in expected.items():
        drawn = create_view(name, crop=crop).draw(table, meta)
        area = (drawn["crop"]["height"] * drawn["crop"]["width"]).double() / 300**2
        assert low - 0.01 < float(area.min()) < low + 0.02
        assert high - 0.02 < float(area.max()) < high + 0.01
        chances = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": blurred} | (
            {"solarize": solarized} if solarized else {}
        )
        assert ("solarize" in drawn) == (solarized is not None)
        for part, chance in chances.items():
            seen = float(drawn[part]["flip" if part == "flip" else "apply"].double().mean())
            assert abs(seen - chance) <= 5 * math.sqrt(chance * (1 - chance) / n), (name, crop, part)


@pytest.mark.parametrize("name", ["image/simclr-supcon", "image/stacked-randaugment-supcon"])
def test_supcons_jitter_is_tensorflows_unless_asked(name):
    x = images(4000, 4)
    meta, table = meta_of(x, "image"), keys(seed=0, sample=range(4000))
    for options, low, high in (({}, -0.8, 0.8), ({"jitter": "torchvision", "blur": 0.0}, 0.2, 1.8)):
        drawn = create_view(name, size=8, **options).draw(table, meta)
        brightness = drawn["jitter"]["brightness"]
        assert low <= float(brightness.min()) < low + 0.01
        assert high - 0.01 < float(brightness.max()) <= high
        assert abs(float(drawn["blur"]["apply"].double().mean()) - options.get("blur", 0.5)) < 0.05
        # The released functions warp half of the images; the released hyper-parameters, and our presets, none.
        assert abs(float(drawn["warp"]["apply"].double().mean()) - 0.5) < 0.05
        still = create_view(name, size=8, warp=0.0, **options).draw(table, meta)
        assert not bool(still["warp"]["apply"].any())
    with pytest.raises((InputError, TypeCheckError), match="jitter"):
        create_view(name, jitter="pillow")


def test_the_warp_is_a_spline_known_where_its_points_arrive():
    side = 30
    points = np.array([[(i + 1) * side / 3, (j + 1) * side / 3] for i in range(2) for j in range(2)])
    moves = np.random.default_rng(0).normal(size=(4, 2)) * 3
    places = np.stack(np.mgrid[0:side, 0:side], -1).reshape(-1, 2).astype(float)
    spline = RBFInterpolator(points + moves, moves, kernel="thin_plate_spline", degree=1)
    knots, at = torch.from_numpy(points + moves), torch.arange(side, dtype=torch.float64)
    ours = torch.stack(warp._displacement(knots, torch.from_numpy(moves), at, at), -1).reshape(-1, 2)
    np.testing.assert_allclose(ours.numpy(), spline(places), atol=1e-8)
    # Bilinear, from there minus the displacement, the border repeated.
    x = images(1, side)[..., :side]
    at = (places - spline(places)).T.reshape(2, side, side)
    theirs = [ndimage.map_coordinates(plane, at, order=1, mode="nearest") for plane in x[0].double().numpy()]
    shown = warp._warp(x, torch.from_numpy(moves)[None])[0]
    torch.testing.assert_close(shown, torch.from_numpy(np.stack(theirs)).float(), atol=2e-5, rtol=0)


def test_channels_are_standardized_as_cmc_and_pycontrast_have_them():
    x = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).view(5, 3, 1, 1)
    # BT.601 in bytes with head room: white and black are 235 and 16, and full red has Cr 240, full blue Cb 240.
    ycbcr = [[235, 128, 128], [16, 128, 128], [81.481, 90.203, 240], [144.553, 53.797, 34.214], [40.966, 240, 109.786]]
    ydbdr = [[1, 0, 0], [0, 0, 0], [0.299, -0.45, -1.333], [0.587, -0.883, 1.116], [0.114, 1.333, 0.217]]
    for space, values, mean, std in (
        ("ycbcr", ycbcr, (116.151, 121.080, 132.342), (109.5, 111.855, 111.964)),
        ("ydbdr", ydbdr, (0.457, -0.082, -0.052), (0.5, 1.331, 1.333)),
    ):
        seen = create_view("image/color-channels", space=space).apply(x, {}).view(5, 3)
        expected = (torch.tensor(values) - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    # Lab: the middle and half of each channel's range over the cube of RGB.
    corners = torch.cartesian_prod(*[torch.linspace(0, 1, 33)] * 3).view(-1, 3, 1, 1)
    lab = cmc.lab(corners).view(-1, 3)
    low, high = lab.amin(0), lab.amax(0)
    torch.testing.assert_close(torch.tensor(cmc.MEAN["lab"]), (low + high) / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.tensor(cmc.STD["lab"]), (high - low) / 2, atol=0.02, rtol=0)


def test_cmcs_second_version_jitters_blurs_and_keeps_colors_otherwise():
    parts = [name for name, _ in create_view("image/cmc", space="ydbdr").children()]
    assert parts == ["crop", "flip", "jitter", "blur", "randaugment", "channels"]
    assert [name for name, _ in create_view("image/cmc").children()] == ["crop", "flip", "channels"]
    n = 5000
    meta = {name: torch.full((n,), 64) for name in ("height", "width")} | {"channels": torch.full((n,), 3)}
    drawn = create_view("image/cmc", space="ydbdr", size=32).draw(keys(seed=0, sample=range(n)), meta)
    assert abs(float(drawn["jitter"]["apply"].double().mean()) - 0.8) < 0.03
    assert float(drawn["jitter"]["hue"].abs().max()) <= 0.1
    assert 1.39 < float(drawn["jitter"]["contrast"].max()) <= 1.4
