"""Policies as TensorFlow and timm have them: tables, magnitudes and operations against their definitions, in bytes."""

import itertools
import math

import numpy as np
import pytest
import torch
from mmcon_views.image import auto_augment, policy_magnitudes, policy_operations, rand_augment
from PIL import Image
from timm.data import auto_augment as timm

from mmcon.random import keys
from mmcon.registry import create_view

torch.set_num_threads(1)
H, W = 44, 57
BYTE = 1 / 255
FILL = (124, 116, 104)


def photo():
    """Smooth bytes with a little noise: steps between neighbours are small, so that resampling is what is compared."""
    g = torch.Generator().manual_seed(3)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 7, generator=g), (H, W), mode="bicubic")
    return ((x + torch.rand(1, 3, H, W, generator=g) * 0.02).clamp(0, 1) * 255).round().to(torch.uint8)


def applied(variant, name, magnitude, bicubic=False):
    params = {
        "operation": torch.tensor([[policy_operations.NAMES.index(name)]]),
        "magnitude": torch.tensor([[magnitude]], dtype=torch.float64),
        "center": torch.tensor([[[0.4, 0.7]]], dtype=torch.float64),
    }
    if variant == "timm":
        params["bicubic"] = torch.tensor([[bicubic]])
    return create_view("image/randaugment", variant=variant).apply(photo(), params)[0]


def magnitude_of(name, level, side=(H, W)):
    """What is drawn for an operation at a level, with the sign that is positive."""
    drawn = [torch.tensor([[v]], dtype=torch.float64) for v in (level / 10, 1.0, *side)]
    code = torch.tensor([[policy_operations.NAMES.index(name)]])
    return float(policy_magnitudes.magnitudes(policy_magnitudes.tf_magnitude, code, *drawn))


# timm, through Pillow.


def test_tables_equal_timms():
    assert sorted(name.removesuffix("Rel") for name in timm._RAND_TRANSFORMS) == sorted(rand_augment.TIMM_OPERATIONS)
    v0 = timm.auto_augment_policy_v0({"translate_const": 250, "img_mean": FILL})
    theirs = [[(op.name.removesuffix("Rel"), op.prob, op.magnitude) for op in pair] for pair in v0]
    assert [[tuple(part) for part in pair] for pair in auto_augment.POLICIES["tf-v0"]] == theirs


LEVELS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9.5, 10)


EACH = [(name, False) for name in rand_augment.TIMM_OPERATIONS]
EACH += [(name, True) for name in rand_augment.TIMM_OPERATIONS if name in policy_operations.GEOMETRIC]


@pytest.mark.parametrize(("name", "bicubic"), EACH)
def test_every_operation_equals_timms_at_every_level(name, bicubic, monkeypatch):
    image = Image.fromarray(photo()[0].permute(1, 2, 0).numpy())
    # The sign is drawn there and here alike: compared where it is positive.
    monkeypatch.setattr(timm, "_randomly_negate", lambda v: v)
    theirs_name = name + ("Rel" if name.startswith("Translate") else "")
    # Pillow now refuses to keep 0 bits, which is below level 2.5.
    for level in LEVELS[3 if name == "Posterize" else 0 :]:
        rule = timm.LEVEL_TO_ARG[theirs_name]
        arguments = rule(level, {}) if rule else ()
        mode = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        there = timm.NAME_TO_OP[theirs_name](image, *arguments, fillcolor=FILL, resample=mode)
        theirs = torch.from_numpy(np.array(there)).permute(2, 0, 1) / 255
        amount = magnitude_of(name, level, (0.45 * H, 0.45 * W))
        ours = applied("timm", name, amount, bicubic)
        away = (ours - theirs).abs()
        # Pillow's cubic has the parameter -1, torch's -.75. A turn's border may fall to either side by rounding.
        most = 12 * BYTE if bicubic else 2 * BYTE
        assert float((away > most + 1e-5).double().mean()) < (2e-3 if name == "Rotate" else 1e-9), (name, level)
        assert float(away.mean()) < 1.1 * BYTE, (name, level)


def test_resampling_is_drawn_evenly_by_timms_variants():
    meta = {"height": torch.full((10000,), H), "width": torch.full((10000,), W)}
    for variant in ("timm", "color-safe"):
        drawn = create_view("image/randaugment", variant=variant).draw(keys(seed=0, sample=range(10000)), meta)
        assert abs(float(drawn["bicubic"].double().mean()) - 0.5) < 5 * math.sqrt(0.25 / 20000)


# TensorFlow, read from the definitions of its model garden: bytes in, bytes out.


def gray(x):
    return np.round(x @ np.array([0.2989, 0.587, 0.114]))


def blend(base, x, factor):
    return np.clip(base + factor * (x - base), 0, 255).astype(np.uint8)


def smooth(x):
    out = x.copy()
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
    out[1:-1, 1:-1] = (windows * kernel).sum((-2, -1))
    return np.floor(out)


def moved(x, a, b, c, d, e, f):
    """The pixel (x, y) comes from (a x + b y + c, d x + e y + f), the nearest; outside is 128.

    Four images: on a tie, which a last bit decides, either neighbour will do, across and down.
    """
    rows, columns = np.mgrid[0:H, 0:W]
    made = []
    for across, down in itertools.product((-1e-4, 1e-4), repeat=2):
        at_x, at_y = a * columns + b * rows + c + across, d * columns + e * rows + f + down
        at_x, at_y = np.floor(at_x + 0.5).astype(int), np.floor(at_y + 0.5).astype(int)
        inside = (at_x >= 0) & (at_x < W) & (at_y >= 0) & (at_y < H)
        made.append(np.where(inside[..., None], x[np.clip(at_y, 0, H - 1), np.clip(at_x, 0, W - 1)], 128))
    return np.stack(made)


def rotated(x, degrees):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = (W - 1) / 2, (H - 1) / 2
    return moved(x, cos, -sin, across - cos * across + sin * down, sin, cos, down - sin * across - cos * down)


def stretched(x):
    low, high = x.min((0, 1)), x.max((0, 1))
    return np.clip((x - low) * 255 / (high - low), 0, 255)


def cut_to_bits(x, bits):
    # A shift of bytes by 8 is held at 7, so that 0 bits leave one.
    shift = min(8 - int(bits), 7)
    return x.astype(np.uint8) >> shift << shift


def cut_out(x, half):
    out, row, column = x.copy(), int(0.4 * H), int(0.7 * W)
    out[max(0, row - half) : row + half, max(0, column - half) : column + half] = 128
    return out


# By name: bytes `h w 3` and the level over 10 to bytes; signs where they are positive.
TF = {
    "AutoContrast": lambda x, v: stretched(x),
    "Invert": lambda x, v: 255 - x,
    "Rotate": lambda x, v: rotated(x, 30 * v),
    "Posterize": lambda x, v: cut_to_bits(x, 4 * v),
    "Solarize": lambda x, v: np.where(x < int(256 * v), x, 255 - x),
    "SolarizeAdd": lambda x, v: np.where(x < 128, np.clip(x + int(110 * v), 0, 255), x),
    "Color": lambda x, v: blend(gray(x)[..., None], x, 1.8 * v + 0.1),
    "Contrast": lambda x, v: blend(float(min(H * W // 256, 255)), x, 1.8 * v + 0.1),
    "Brightness": lambda x, v: blend(0.0, x, 1.8 * v + 0.1),
    "Sharpness": lambda x, v: blend(smooth(x), x, 1.8 * v + 0.1),
    "ShearX": lambda x, v: moved(x, 1, 0.3 * v, 0, 0, 1, 0),
    "ShearY": lambda x, v: moved(x, 1, 0, 0, 0.3 * v, 1, 0),
    "TranslateX": lambda x, v: moved(x, 1, 0, 100 * v, 0, 1, 0),
    "TranslateY": lambda x, v: moved(x, 1, 0, 0, 0, 1, 100 * v),
    "Cutout": lambda x, v: cut_out(x, int(40 * v)),
}


# Equalize is by the rule of torchvision and Pillow, held against both.
@pytest.mark.parametrize("name", sorted(TF))
def test_every_operation_equals_tensorflows_at_every_level(name):
    x = photo()[0].permute(1, 2, 0).numpy().astype(np.float64)
    for level in range(11):
        theirs = (
            torch.from_numpy(np.asarray(TF[name](x, level / 10), np.float64)).view(-1, H, W, 3).movedim(-1, 1) / 255
        )
        amount = 40 * level // 10 if name == "Cutout" else magnitude_of(name, level, (100, 100))
        away = (applied("tf", name, float(amount)).double() - theirs).abs().amax(1).amin(0)
        assert float(away.max()) <= 2 * BYTE + 1e-6, (name, level)


def test_cutout_and_solarize_of_the_top_level_are_drawn_as_published():
    n = 4000
    meta = {"height": torch.full((n,), 224), "width": torch.full((n,), 224)}
    drawn = create_view("image/randaugment", variant="tf").draw(keys(seed=0, sample=range(n)), meta)
    for name, value in (("Cutout", 40), ("Solarize", 256 / 255), ("SolarizeAdd", 110 / 255), ("Posterize", 4)):
        seen = drawn["magnitude"][drawn["operation"] == policy_operations.NAMES.index(name)]
        assert len(seen) > 300
        assert torch.allclose(seen, torch.tensor(value, dtype=torch.float64))
