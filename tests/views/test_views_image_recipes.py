"""Recipes, channel views, partner views and corruptions: their laws and their definitions."""

import math

import numpy as np
import pytest
import torch
from mmcon_views.image import cmc, corruptions, mixup
from mmcon_views.image.multi_crop import multi_crop
from mmcon_views.video.per_clip import PerClip, per_clip

from mmcon.errors import InputError
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.views import meta_of

torch.set_num_threads(1)


def photos(n=5, channels=3, side=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(n, channels, 6, 6, generator=g), (side, side + 6), mode="bilinear")
    return (x * 255).to(torch.uint8)


RECIPES = [
    ("image/supcon-autoaugment", {}),
    ("image/simclr-supcon", {"warp": 0.5}),
    ("image/simclr-tf", {"brightness": "added"}),
    ("image/stacked-randaugment-talk", {}),
    ("image/stacked-randaugment-supcon", {"warp": 0.5}),
    ("image/stacked-randaugment-infomin", {}),
    ("image/swav", {"crop": "local"}),
    ("image/dino", {"crop": "global-2"}),
    ("image/cmc", {"channels": "both"}),
    ("image/cmc", {"channels": "chroma", "space": "ydbdr"}),
]


@pytest.mark.parametrize(("name", "options"), RECIPES)
@pytest.mark.parametrize("size", [32, 72])
def test_recipes_alone_equal_in_a_batch(name, options, size):
    view, x = create_view(name, size=size, **options), photos(6, side=80 if size == 72 else 40)
    table = keys(seed=1, sample=range(6), view=1)
    together = view(x, table)
    assert together.dtype == torch.float32
    assert together.shape[-2:] == (size, size)
    for rows in (slice(0, 1), slice(2, 5), slice(5, 6)):
        assert torch.equal(view(x[rows], table[rows]), together[rows])


def test_gray_images_go_through_the_recipes():
    x = photos(4, channels=1)
    for name in ("image/simclr-supcon", "image/stacked-randaugment-supcon", "image/stacked-randaugment-infomin"):
        assert create_view(name, size=28)(x, keys(seed=0, sample=range(4))).shape == (4, 1, 28, 28)


def test_multi_crops_have_their_numbers_and_sizes():
    x, table = photos(2, side=64), keys(seed=0, sample=[1, 2])
    for recipe, shapes in (("swav", [48] * 2 + [24] * 6), ("dino", [48] * 2 + [24] * 8)):
        views = multi_crop(recipe, global_size=48, local_size=24)
        assert [v(x, table).shape[-1] for v in views] == shapes


def test_both_channel_views_see_the_same_crop():
    x = photos(3, side=64)
    parts = [create_view("image/cmc", channels=c, size=32) for c in ("luminance", "chroma", "both")]
    tables = [keys(seed=0, sample=range(3), view=v) for v in range(3)]
    light, chroma, both = (part(x, table) for part, table in zip(parts, tables, strict=True))
    assert torch.equal(torch.cat([light, chroma], dim=1), both)


def test_lab_of_known_colors():
    # White, black, and sRGB red, green, blue: CIE values for D65.
    x = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).view(5, 3, 1, 1)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    torch.testing.assert_close(cmc.lab(x).view(5, 3), torch.tensor(expected), atol=0.05, rtol=0)


def test_frames_of_a_clip_share_one_draw():
    clip = photos(1, side=40).expand(4, -1, -1, -1)[None].repeat(2, 1, 1, 1, 1)
    view = per_clip(create_view("image/simclr", size=32, blur=True))
    out = view(clip, keys(seed=0, sample=[1, 2]))
    assert out.shape == (2, 4, 3, 32, 32)
    assert torch.equal(out[:, :1].expand_as(out), out)
    assert not torch.equal(out[0], out[1])
    with pytest.raises(InputError, match="b t c h w"):
        PerClip(create_view("image/flip")).apply(photos(2), {})


def test_mixup_and_cutmix_by_their_definitions():
    x = torch.stack([torch.zeros(3, 8, 10), torch.ones(3, 8, 10)])
    table = keys(seed=5, sample=[1, 2])
    for name in ("image/mixup", "image/cutmix"):
        view = create_view(name)
        params = view.draw(table, meta_of(x, "image"))
        out = view.apply(x, params)
        # Two samples are each other's partners: the mean of the black one's view is the partner's share.
        assert math.isclose(float(out[0].mean()), 1 - float(params["share"][0]), abs_tol=1e-5)
        assert math.isclose(float(out[1].mean()), float(params["share"][1]), abs_tol=1e-5)
        assert torch.equal(view.apply(x[:1], {k: v[:1] for k, v in params.items()}, partners=x[1:]), out[:1])
        with pytest.raises(InputError, match="partners of shape"):
            view.apply(x, params, partners=x[:1])


def test_partners_are_others_and_even():
    n, u = 7, keys(seed=0, sample=range(70000)).uniform("partner")
    positions = torch.arange(70000) % n
    partner = mixup.partner_positions(u, positions, n)
    away = (partner - positions) % n
    counts = torch.bincount(away, minlength=n)
    assert int(counts[0]) == 0
    assert float((counts[1:] / 70000 - 1 / 6).abs().max()) < 5 * math.sqrt(1 / 6 * 5 / 6 / 70000)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_beta_has_its_frame_times(alpha):
    drawn = mixup.beta(keys(seed=1, sample=range(10000)), "share", alpha)
    # Beta(α, α) has mean ½ and variance 1 / (4 (2α + 1)).
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(float(drawn.mean()) - 0.5) < 5 * math.sqrt(variance / 10000)
    assert abs(float(drawn.var()) / variance - 1) < 0.06


def test_soft_labels_sum_to_one():
    soft = mixup.soft_labels(torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.75, 0.4]), 3)
    torch.testing.assert_close(soft, torch.tensor([[0.75, 0, 0.25], [0, 1, 0]]))


@pytest.mark.parametrize("kind", sorted(corruptions.CORRUPTIONS))
def test_corruptions_obey_the_laws_and_grow_with_severity(kind):
    x = photos(3, side=48)
    table, clean = keys(seed=2, sample=range(3)), x.to(torch.float32) / 255
    moved = []
    for severity in (1, 5):
        view = create_view("image/corruption", effect=kind, severity=severity)
        out = view(x, table)
        assert out.shape == clean.shape
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
        assert torch.equal(view(x[1:2], table[1:2]), out[1:2])
        moved.append(float((out - clean).abs().mean()))
    assert moved[0] > 0
    # Elastic trades global bending for fine ripples, as published; on small images glass moves pixels by one at any
    # severity, since lengths scale with the size: neither need grow.
    assert moved[1] > moved[0] or kind in ("elastic", "glass-blur")
    gray = create_view("image/corruption", effect=kind)(photos(2, channels=1), keys(seed=0, sample=[0, 1]))
    assert gray.shape[1] == 1


def test_there_are_nineteen_corruptions_and_a_wrong_one_is_refused():
    assert len(corruptions.CORRUPTIONS) == 19
    with pytest.raises(InputError, match="severity 1 to 5"):
        create_view("image/corruption", effect="rain")


def test_noise_has_its_published_strength():
    view = create_view("image/corruption", effect="gaussian-noise", severity=2)
    out = view(torch.full((4, 3, 64, 64), 0.5), keys(seed=0, sample=range(4)))
    assert np.isclose(float(out.std()), 0.12, rtol=0.02)
