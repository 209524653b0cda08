"""Policies against torchvision: every operation at every bin, the tables, and how often what is drawn."""

import math

import pytest
import torch
import torchvision.transforms.v2 as tvt
import torchvision.transforms.v2.functional as tv
from mmcon_views.image import auto_augment, policy_magnitudes, policy_operations, rand_augment
from torchvision.transforms import AutoAugmentPolicy

from mmcon.random import keys
from mmcon.registry import create_view

torch.set_num_threads(1)
META = {"height": torch.tensor([41]), "width": torch.tensor([53])}


def image(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, 41, 53, generator=g) * 0.7 + torch.linspace(0, 0.3, 53)
    x = (x * 255).round() / 255
    x[:, :, :6] = 0.5
    return x


@pytest.mark.parametrize("bins", [10, pytest.param(31, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", rand_augment.TORCHVISION_OPERATIONS)
def test_every_operation_equals_torchvision_at_every_bin(name, bins):
    # Off the bytes, so that no pixel ties with a threshold.
    x, theirs = image() * 0.9973, tvt.RandAugment()
    space, signed = tvt.RandAugment._AUGMENTATION_SPACE[name]
    for number in range(bins):
        for sign in (1, -1) if signed else (1,):
            level = torch.tensor([[number / (bins - 1)]], dtype=torch.float64)
            sizes = [torch.tensor([[side]], dtype=torch.float64) for side in (41, 53)]
            code = torch.tensor([[policy_operations.NAMES.index(name)]])
            ours = policy_magnitudes.magnitudes(
                policy_magnitudes.torchvision_magnitude,
                code,
                level,
                torch.tensor([[sign]], dtype=torch.float64),
                *sizes,
            )
            table = space(bins, 41, 53)
            magnitude = 0.0 if table is None else sign * float(table[number])
            enhances = name in policy_magnitudes.ENHANCEMENTS
            if table is not None:
                assert math.isclose(float(ours), magnitude + enhances, abs_tol=2e-5), (name, number)
            geometric = name in policy_operations.GEOMETRIC
            # A slope one unit in the last place away moves ties by a pixel: geometry is held at one and the same float.
            given = float(ours.float()) if geometric else magnitude
            mine = x.clone()
            policy_operations.apply_operations(mine, {"operation": code, "magnitude": ours}, 0.0)
            other = theirs._apply_image_or_video_transform(
                x, name, given, interpolation=tv.InterpolationMode.NEAREST, fill={torch.Tensor: None}
            )
            if geometric:
                assert torch.equal(mine, other), (name, number)
            else:
                torch.testing.assert_close(mine, other, atol=3e-6, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (48, 33), (40, 71)])
@pytest.mark.parametrize(("name", "most"), [("ShearX", 0.3), ("ShearY", 0.3), ("Rotate", 30.0)])
def test_nearest_geometry_equals_torchvision_on_ties_too(name, most, size):
    x, theirs = torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(0)), tvt.RandAugment()
    # Tenths put whole rows between two pixels; the batch has a magnitude of its own for each image.
    amounts = torch.tensor([0.0, 1 / 3, -2 / 3, 0.1, -1.0]) * most
    mine = policy_operations.OPERATIONS[name](x, amounts.view(-1, 1, 1, 1))
    for row, amount in enumerate(amounts.tolist()):
        other = theirs._apply_image_or_video_transform(
            x[row : row + 1], name, amount, interpolation=tv.InterpolationMode.NEAREST, fill={torch.Tensor: None}
        )
        assert torch.equal(mine[row : row + 1], other), amount


@pytest.mark.parametrize(("ours", "theirs"), [("imagenet", "IMAGENET"), ("cifar10", "CIFAR10")])
def test_tables_equal_torchvision(ours, theirs):
    table = tvt.AutoAugment(AutoAugmentPolicy[theirs])._policies
    mine = auto_augment.POLICIES[ours]
    assert len(mine) == len(table) == 25
    for a, b in zip(mine, table, strict=True):
        assert [(n, p, v or 0) for n, p, v in b] == [tuple(part) for part in a]


def test_autoaugment_draws_every_pair_evenly_and_each_half_as_often_as_the_table_says():
    n = 50000
    view = create_view("image/autoaugment", policy="cifar10")
    meta = {k: v.expand(n) for k, v in META.items()}
    drawn = view.draw(keys(seed=1, sample=range(n)), meta)["operation"]
    for slot in (0, 1):
        for code, name in enumerate(policy_operations.NAMES):
            expected = sum(pair[slot][1] for pair in auto_augment.POLICIES["cifar10"] if pair[slot][0] == name) / 25
            seen = float((drawn[:, slot] == code).double().mean())
            assert abs(seen - expected) <= 5 * math.sqrt(max(expected * (1 - expected), 1e-9) / n), name


@pytest.mark.parametrize("variant", ["torchvision", "tf", "timm", "color-safe"])
def test_randaugment_draws_operations_signs_and_levels_as_told(variant):
    n = 40000
    view = create_view("image/randaugment", variant=variant)
    drawn = view.draw(keys(seed=2, sample=range(n)), {k: v.expand(n) for k, v in META.items()})
    names = view.VARIANTS[variant]
    chance = (0.5 if variant in ("timm", "color-safe") else 1.0) / len(names)
    for name in names:
        hit = drawn["operation"] == policy_operations.NAMES.index(name)
        assert abs(float(hit.double().mean()) - chance) < 5 * math.sqrt(chance / (2 * n))
    shear = drawn["magnitude"][drawn["operation"] == policy_operations.NAMES.index("ShearX")]
    assert abs(float((shear > 0).double().mean()) - 0.5) < 0.05
    if variant == "torchvision":
        assert torch.allclose(shear.abs(), torch.tensor(0.09, dtype=torch.float64))
    if variant == "timm":
        # Levels are min(10, N(10, .5)): half at the cap, mean 10 − .5/√(2π).
        assert abs(float((shear.abs() == 0.3).double().mean()) - 0.5) < 0.05
        assert abs(float(shear.abs().mean()) / 0.03 - (10 - 0.5 / math.sqrt(2 * math.pi))) < 0.02


def test_solarize_add_and_cutout_are_what_their_definitions_say():
    x = torch.tensor([0.0, 100, 127, 128, 255]).view(1, 1, 1, 5) / 255
    added = policy_operations.solarize_add(x, torch.full((1, 1, 1, 1), 110 / 255))
    torch.testing.assert_close((added * 255).flatten(), torch.tensor([110.0, 210, 237, 128, 255]))
    # Half a side of 2 around row ⌊.5·8⌋ = 4, column ⌊.25·8⌋ = 2: rows 2..5, columns 0..3.
    cut = policy_operations.cutout(torch.ones(1, 1, 8, 8), torch.tensor([2.0, 0.5, 0.25]).view(1, 3, 1, 1), fill=0.0)
    assert float(cut[0, 0, 2:6, 0:4].sum()) == 0
    assert float(cut.sum()) == 64 - 16


EVERY = [("image/autoaugment", {"policy": p}) for p in auto_augment.POLICIES]
EVERY += [("image/randaugment", {"variant": v}) for v in ("torchvision", "tf", "timm")]


@pytest.mark.parametrize("size", [32, 71])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_alone_equals_in_a_batch(name, options, size):
    view = create_view(name, **options)
    x = torch.rand(12, 3, size, size, generator=torch.Generator().manual_seed(0))
    table = keys(seed=4, sample=range(12))
    together = view(x, table)
    for row in range(12):
        assert torch.equal(view(x[row : row + 1], table[row : row + 1]), together[row : row + 1])
