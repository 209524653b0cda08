"""Image views against torchvision, operation by operation, and the laws of keys, splits and sizes."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from mmcon_views.image import blur, color, resample
from mmcon_views.image import crop as image_crop

from mmcon.errors import DataError, InputError
from mmcon.media import ImageHandle
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import Chain, meta_of, params_from_json, params_to_json, select_samples

torch.set_num_threads(1)


def images(n=6, channels=3, height=37, width=45, seed=0, dtype=torch.float32):
    """Random images with structure: noise over slopes, with black, white and gray pixels among them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, height, width, generator=g)
    x = (x + torch.linspace(0, 1, width)) / 2
    x[:, :, :4], x[:, :, 4:8] = 0.0, 1.0
    x[:, :, 8:12] = x[:, :1, 8:12]
    return (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x


def column(values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_color_equals_torchvision(name):
    x = images(21)
    factors = torch.linspace(-0.5, 0.5, 21) if name == "hue" else torch.linspace(0, 2.6, 21)
    ours = getattr(color, name)(x, factors.view(-1, 1, 1, 1))
    theirs = torch.stack(
        [getattr(tv, f"adjust_{name}")(p, float(f)) for p, f in zip(x, factors, strict=True)],
    )
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


def test_gray_equals_torchvision():
    x = images()
    torch.testing.assert_close(color.gray(x), tv.rgb_to_grayscale(x, 3), atol=1e-6, rtol=0)


# Small images go together, tap by tap; large ones one by one, in blocks of 16 where the kernel is wide.
@pytest.mark.parametrize(("height", "width"), [(37, 45), (70, 83), (96, 64)])
@pytest.mark.parametrize(("sigma", "kernel"), [(0.1, 23), (0.5, 5), (1.3, 23), (2.0, 23), (3.1, 7)])
def test_blur_equals_torchvision(sigma, kernel, height, width):
    x = images(2, height=height, width=width)
    ours = blur.gaussian_blur(x, torch.tensor([sigma, sigma], dtype=torch.float64), kernel // 2)
    torch.testing.assert_close(ours, tv.gaussian_blur(x, [kernel, kernel], [sigma, sigma]), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(31, 29), (83, 77)])
def test_a_blurred_image_is_the_same_alone_and_white_stays_white(height, width):
    x = images(5, height=height, width=width)
    x[2] = 1.0
    sigma = torch.tensor([0.2, 2.0, 1.3, 0.9, 1.6], dtype=torch.float64)
    together = blur.gaussian_blur(x, sigma, 11)
    assert float(together.max()) <= 1.0
    for row in range(5):
        assert torch.equal(blur.gaussian_blur(x[row : row + 1], sigma[row : row + 1], 11)[0], together[row])


def test_images_with_channels_together_are_resampled_to_the_same_bytes():
    x = images(3, height=90, width=77, dtype=torch.uint8)
    crop, table = image_crop.RandomResizedCrop(size=72, interpolation="bicubic"), keys(seed=1, sample=[1, 2, 3])
    assert torch.equal(crop(x.contiguous(memory_format=torch.channels_last), table), crop(x, table))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(("height", "width", "size"), [(37, 45, (32, 32)), (90, 120, (48, 40)), (20, 25, (64, 64))])
def test_crop_equals_torchvision(interpolation, dtype, height, width, size):
    x = images(4, height=height, width=width, dtype=dtype)
    crop = image_crop.RandomResizedCrop(size=size, area=(0.1, 1.0), interpolation=interpolation)
    params = crop.draw(keys(seed=1, sample=[1, 2, 3, 4]), meta_of(x, "image"))
    mode = tv.InterpolationMode.NEAREST_EXACT if interpolation == "nearest" else tv.InterpolationMode(interpolation)
    # Stacked and small images are resampled in floats, others in bytes, as torchvision does it for each type.
    stacked_small = max(height * width, size[0] * size[1]) <= resample.SMALL
    source = x.to(torch.float32) / 255 if dtype == torch.uint8 and stacked_small else x
    boxes = zip(*(params[n].tolist() for n in ("top", "left", "height", "width")), strict=True)
    theirs = torch.stack(
        [tv.resized_crop(p, *b, list(size), mode, antialias=True) for p, b in zip(source, boxes, strict=True)]
    )
    theirs = theirs / 255 if theirs.dtype == torch.uint8 else theirs.clamp(0, 1)
    ours = crop.apply(x, params)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_stacked_and_single_resampling_agree():
    x = images(5, height=40, width=33)
    rows = [[0, 0, 40, 33], [3, 2, 30, 20], [9, 5, 5, 28], [1, 8, 11, 3], [0, 1, 1, 1]]
    box = dict(zip(("top", "left", "height", "width"), torch.tensor(rows).unbind(1), strict=True))
    for mode in ("bilinear", "bicubic"):
        together = resample._resample_stacked(x, box, (24, 28), mode)
        boxes = torch.stack([box[n] for n in ("top", "left", "height", "width")], 1).tolist()
        each = resample._resample_each(list(x), boxes, (24, 28), mode, "test")
        torch.testing.assert_close(together, each, atol=2e-6, rtol=0)


def test_the_crop_is_torchvisions_distribution():
    # Wide images and low aspects make some tries fail, so that the fallback is met as well.
    n = 20000
    meta = {"height": torch.full((n,), 60), "width": torch.full((n,), 200)}
    drawn = image_crop.RandomResizedCrop(area=(0.08, 1.0)).draw(keys(seed=3, sample=range(n)), meta)
    torch.manual_seed(0)
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(3, 60, 200)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for i, name in enumerate(("top", "left", "height", "width")):
        ours, other = drawn[name].double(), theirs[:, i].double()
        spread = other.std() / math.sqrt(len(other)) * 4.5
        assert abs(ours.mean() - other.mean()) < spread, name
        assert abs(ours.std() / other.std() - 1) < 0.06, name
    assert bool((drawn["top"] + drawn["height"] <= 60).all())
    assert bool((drawn["left"] + drawn["width"] <= 200).all())


NAMES = ["image/simclr", "image/crop-flip", "image/plain", "image/center-crop", "image/resize",
         "image/random-resized-crop", "image/crop"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "size"), [(33, 28), (90, 72)])
def test_alone_equals_in_a_batch(name, channels, height, size):
    view = create_view(name, size=size)
    x = images(9, channels, height, height + 7, dtype=torch.uint8)
    table = keys(seed=4, epoch=1, sample=range(9), view=1)
    together = view(x, table)
    assert together.shape == (9, channels, size, size)
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1
    for rows in (slice(0, 1), slice(3, 5), slice(8, 9)):
        assert torch.equal(view(x[rows], table[rows]), together[rows])


def test_ragged_photos_equal_their_stack():
    x = images(4, height=90, width=80, dtype=torch.uint8)
    view, table = create_view("image/simclr", size=72), keys(seed=2, sample=[5, 6, 7, 8])
    assert torch.equal(view(list(x), table), view(x, table))
    assert torch.equal(view([ImageHandle(p) for p in x], table), view(x, table))


def test_parameters_survive_json_and_replay():
    x = images(5, dtype=torch.uint8)
    view = create_view("image/simclr", size=32, blur=True)
    assert isinstance(view, Chain)
    params = view.draw(keys(seed=9, sample=range(5)), meta_of(x, "image"))
    again = params_from_json(params_to_json(params))
    assert torch.equal(view.apply(x, params), view.apply(x, again))
    assert torch.equal(view.apply(x[2:4], select_samples(params, slice(2, 4))), view.apply(x, params)[2:4])


def test_inputs_are_not_changed():
    x = images(4)
    before = x.clone()
    create_view("image/simclr", size=24, blur=True)(x, keys(seed=0, sample=range(4)))
    for name in ("image/color-jitter", "image/grayscale", "image/blur", "image/flip"):
        create_view(name, p=1.0)(x, keys(seed=0, sample=range(4)))
    assert torch.equal(x, before)


def test_the_order_of_the_jitter_is_drawn_evenly():
    order = create_view("image/color-jitter").draw(keys(seed=0, sample=range(24000)), {})["order"]
    counts = np.unique((order * torch.tensor([64, 16, 4, 1])).sum(1).numpy(), return_counts=True)[1]
    assert len(counts) == 24
    # 24,000 draws over 24 orders: 1,000 each, with a standard deviation of 31.
    assert abs(counts - 1000).max() < 5 * 31


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, 8, 8), "1 (gray) or 3 (RGB) channels"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), "uint8"),
        (torch.full((2, 3, 8, 8), float("nan")), "nan"),
        (torch.full((2, 3, 8, 8), 200.0), "maximum of 200"),
        (torch.zeros(2, 3, 0, 8), "at least one pixel"),
        (torch.zeros(3, 8, 8), "b c h w"),
    ],
)
def test_bad_images_are_refused_with_the_fix(x, message):
    for name in ("image/simclr", "image/color-jitter"):
        view = create_view(name)
        sizes = {"height": torch.tensor([8, 8]), "width": torch.tensor([8, 8])}
        params = view.draw(keys(seed=0, sample=range(2)), sizes)
        with pytest.raises((InputError, DataError)) as error:
            view.apply(x, params)
        assert message in str(error.value)


def test_a_crop_larger_than_the_image_is_refused_with_the_key():
    with pytest.raises(InputError, match=r"at least 64 × 64 pixels.*\n.*\n.*sample=7"):
        create_view("image/crop", size=64)(images(1), keys(seed=0, sample=7))


def test_jitter_by_place_which_gpus_use_equals_jitter_by_order():
    x, jitter = torch.rand(33, 3, 12, 10, generator=torch.Generator().manual_seed(0)), create_view("image/color-jitter")
    params = jitter.draw(keys(seed=0, sample=range(33)), meta_of(x, "image"))
    names = ("brightness", "contrast", "saturation", "hue")
    factors = torch.stack([params[name] for name in names], 1).to(torch.float32)[..., None, None, None]
    by_order, by_place = x.clone(), x.clone()
    color.jitter_(by_order, params, jitter.OPERATIONS)
    color._jitter_by_place(by_place, params, jitter.OPERATIONS, factors)
    assert torch.equal(by_order, by_place)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_bound_of_taps_which_gpus_use_covers_every_filter(interpolation):
    for length in torch.arange(1, 300).split(1):
        found = resample.taps(torch.tensor([0]), length, 28, interpolation)
        assert len(found) <= resample._most_taps(length, 28, interpolation)
