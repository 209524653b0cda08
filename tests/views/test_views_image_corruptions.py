"""Corruptions against their published definitions, read anew with SciPy, Pillow and the standard library."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from mmcon_views.image import corruption_kernels
from PIL import Image
from scipy import ndimage

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import create_view

torch.set_num_threads(1)
SIDE = 224


@pytest.fixture(scope="module")
def photo():
    """One image at the size of the definitions, in bytes over 255, with gray, black and white pixels."""
    g = torch.Generator().manual_seed(1)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 14, 14, generator=g), (SIDE, SIDE), mode="bilinear")
    x = (x * 0.8 + torch.rand(1, 3, SIDE, SIDE, generator=g) * 0.2) * 255
    x[..., :3], x[..., 3:6], x[..., 6:9] = 0, 255, 90
    return (x.round() / 255).clamp(0, 1)


def corrupted(photo, effect, severity):
    return create_view("image/corruption", effect=effect, severity=severity)(photo, keys(seed=3, sample=1))[0]


@pytest.mark.parametrize(
    ("effect", "strengths", "deviation"),
    [
        ("gaussian-noise", (0.08, 0.12, 0.18, 0.26, 0.38), lambda c: c),
        # Photons are Poisson: the variance of k/c about the mean m is m/c.
        ("shot-noise", (60, 25, 12, 5, 3), lambda c: math.sqrt(0.25 / c)),
        ("speckle-noise", (0.15, 0.2, 0.35, 0.45, 0.6), lambda c: 0.25 * c),
    ],
)
def test_noise_is_as_strong_as_published(effect, strengths, deviation):
    for severity, c in enumerate(strengths, 1):
        gray = torch.full((1, 3, SIDE, SIDE), 0.25)
        seen = corrupted(gray, effect, severity)
        # Clipping pulls the mean and the deviation; a fifth of the values below the mean are far from it.
        below = seen[(seen < 0.25) & (seen > 0)]
        expected = deviation(c)
        if expected < 0.1:
            assert math.isclose(float(seen.std()), expected, rel_tol=0.03)
        if effect == "gaussian-noise":
            # P(−c < noise < 0) of a normal is .3413, within [0, .25) where it is narrower than that.
            inside = float((below > 0.25 - c).double().mean() * len(below) / seen.numel()) if c < 0.25 else None
            assert inside is None or abs(inside - 0.3413) < 0.01
        if effect == "shot-noise":
            steps = seen[seen < 1] * c
            assert float((steps - steps.round()).abs().max()) < 1e-4
        if effect == "speckle-noise":
            assert abs(float((seen < 0.25 * (1 - c)).double().mean()) - 0.1587) < 0.01


def test_impulses_are_as_many_as_published(photo):
    for severity, share in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1):
        gray = torch.full((1, 3, SIDE, SIDE), 0.5)
        seen = corrupted(gray, "impulse-noise", severity)
        for value in (0.0, 1.0):
            assert abs(float((seen == value).double().mean()) - share / 2) < 0.005


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_blurs_equal_scipys(photo, severity):
    x = photo[0].numpy().astype(np.float64)
    sigma = (1, 2, 3, 4, 6)[severity - 1]
    theirs = [ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4) for plane in x]
    close(corrupted(photo, "gaussian-blur", severity), theirs, 2e-6)

    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    half, taps = (8, 1) if radius <= 8 else (radius, 2)
    at = np.arange(-half, half + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    line = np.exp(-0.5 * (np.arange(-taps, taps + 1) / soft) ** 2)
    line, disk = line / line.sum(), disk / disk.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, line, axis=axis, mode="mirror")
    close(corrupted(photo, "defocus-blur", severity), [ndimage.correlate(p, disk, mode="mirror") for p in x], 3e-6)

    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    zooms = np.arange(1, last, step)
    total = x.copy()
    for zoom in zooms:
        inner = math.ceil(SIDE / zoom)
        top = (SIDE - inner) // 2
        large = ndimage.zoom(x[:, top : top + inner, top : top + inner], (1, zoom, zoom), order=1)
        trim = (large.shape[1] - SIDE) // 2
        total += large[:, trim : trim + SIDE, trim : trim + SIDE]
    close(corrupted(photo, "zoom-blur", severity), total / (len(zooms) + 1), 3e-6)


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(theirs)).float().clamp(0, 1), atol=tolerance, rtol=0)


def by_pixel(x, function):
    return np.array([function(*pixel) for pixel in x.reshape(3, -1).T]).T.reshape(x.shape)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_color_equals_its_definition(photo, severity):
    few = photo[..., :6, :40]
    x = few[0].numpy().astype(np.float64)

    def brighter(*pixel):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(h, s, min(v + severity / 10, 1))

    def saturated(*pixel):
        factor, add = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(h, min(s * factor + add, 1), v)

    close(corrupted(few, "brightness", severity), by_pixel(x, brighter), 3e-6)
    close(corrupted(few, "saturate", severity), by_pixel(x, saturated), 3e-6)
    mean = x.mean((1, 2), keepdims=True)
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    close(corrupted(few, "contrast", severity), (x - mean) * factor + mean, 3e-6)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_bytes_equal_pillows(photo, severity):
    image = Image.fromarray((photo[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    side, box = int(SIDE * (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]), Image.Resampling.BOX
    file = io.BytesIO()
    image.save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    blocks = image.resize((side, side), box).resize((SIDE, SIDE), box)
    for effect, there in (("jpeg", Image.open(file)), ("pixelate", blocks)):
        close(corrupted(photo, effect, severity), np.array(there).transpose(2, 0, 1) / 255, 1e-6)


def test_the_field_of_elastic_is_smoothed_as_scipy_mirrors():
    noise = torch.rand(1, 40, 56, generator=torch.Generator().manual_seed(0))
    # The first severity smooths over .7 of the image, far beyond its edges.
    for sigma in (0.4, 3.0, 0.7 * 244 / 224 * 40):
        theirs = ndimage.gaussian_filter(noise[0].double().numpy(), sigma, mode="reflect", truncate=3)
        close(corruption_kernels.blurred(noise, sigma, deviations=3.0, edges="mirror"), theirs[None], 2e-6)


def test_matrices_of_blurs_are_kept_for_small_sides_alone():
    kept = corruption_kernels._kept_smoothing
    kept.cache_clear()
    side = corruption_kernels.KEPT_SIDE
    corruption_kernels.blurred(torch.rand(1, side, side + 1), 1.0)
    assert kept.cache_info().currsize == 1


def test_the_motion_kernel_is_imagemagicks():
    # 2·⌈radius⌉ + 1 taps from the middle to one side, with half a Gaussian's weights.
    kernel = corruption_kernels.motion_kernel(2.0, 1.5, 0.0)
    weights = np.exp(-0.5 * (np.arange(5) / 1.5) ** 2)
    assert kernel.shape == (9, 9)
    np.testing.assert_allclose(kernel[4, 4:].numpy(), weights / weights.sum(), atol=1e-6)
    slanted = corruption_kernels.motion_kernel(2.0, 1.5, math.pi / 4)
    # Steps of 1/√2 along both axes, rounded: 0, 1, 1, 2, 3.
    assert sorted(map(tuple, slanted.nonzero().tolist())) == [(4, 4), (5, 5), (6, 6), (7, 7)]


def test_glass_moves_pixels_within_its_reach():
    x = torch.zeros(1, 1, SIDE, SIDE)
    x[..., 112, 112] = 1
    seen = corrupted(x, "glass-blur", 1)
    # Two passes of −1 or 0, and two blurs of deviation .7, cut at 3 pixels each.
    rows = (seen[0] > 0).nonzero()
    assert int(rows.min()) >= 112 - 6
    assert int(rows.max()) <= 112 + 2 + 6


def test_frost_is_blended_from_photographs_where_they_are_given(tmp_path):
    # A photograph of two halves: all of a region at 224 px is one color, so every pixel is of either half.
    photo = torch.zeros(300, 900, 3, dtype=torch.uint8)
    photo[:, 450:, 2] = 200
    Image.fromarray(photo.numpy()).save(tmp_path / "frost1.png")
    (tmp_path / "notes.txt").write_text("not a photograph")
    x, table = torch.full((6, 3, 224, 224), 0.5), keys(seed=0, sample=range(6))
    for severity, (keep, ice) in ((1, (1, 0.4)), (5, (0.6, 0.75))):
        frost = create_view("image/corruption", effect="frost", severity=severity, frost_photos=str(tmp_path))
        made = frost(x, table)
        assert torch.allclose(made[:, :2], torch.full((6, 2, 224, 224), 0.5 * keep), atol=1e-6)
        values = made[:, 2].unique()
        assert torch.allclose(
            values[[0, -1]], torch.tensor([0.5 * keep, min(0.5 * keep + ice * 200 / 255, 1.0)]), atol=1e-6
        )
        assert torch.equal(frost(x[2:4], table[2:4]), made[2:4])
    assert frost(torch.rand(2, 1, 20, 30), table[:2]).shape == (2, 1, 20, 30)
    for options in (
        {"effect": "frost", "frost_photos": str(tmp_path / "nowhere")},
        {"effect": "fog", "frost_photos": str(tmp_path)},
    ):
        with pytest.raises(InputError, match="frost_photos"):
            create_view("image/corruption", **options)


@pytest.mark.parametrize("effect", ["snow", "glass-blur", "elastic"])
def test_threads_that_share_the_images_change_no_bit(photo, effect):
    x = torch.cat([photo[..., :90, :90].flip(axis) for axis in (1, 2, 3)])
    view, table = create_view("image/corruption", effect=effect, severity=2), keys(seed=3, sample=range(3))
    with torch.inference_mode():  # what is kept for later images is of use outside of it
        alone = view(x, table)
    torch.set_num_threads(2)
    try:
        together = view(x, table)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone, together)
    assert torch.equal(view(x[1:2], table[1:2]), alone[1:2])


def test_a_line_is_applied_tap_by_tap_as_the_whole_kernel(photo):
    kernel = corruption_kernels.motion_kernel(6.0, 3.0, 0.4)
    wide = torch.nn.functional.pad(photo, (12,) * 4, mode="replicate")
    whole = torch.nn.functional.conv2d(wide.transpose(0, 1).double(), kernel[None, None].double())[:, 0]
    seen = corruption_kernels.filtered(photo[0], kernel)
    assert kernel.shape == (25, 25)
    torch.testing.assert_close(seen.double(), whole, atol=1e-6, rtol=0)
